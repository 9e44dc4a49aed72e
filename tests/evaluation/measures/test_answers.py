"""Answers and texts of student and teacher compared: hand-made completions, and sacrebleu's own score."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from llmkd.evaluation.exact_match import complete
from llmkd.evaluation.measures import answers

RIGHT = ["5", "7", "9", "11"]
TEACHER = ["5 it is.\nAnswer: 5", "seven\nAnswer: 7", "wrong\nAnswer: 8", "I do not know."]


def texts(*student: str, **others: list[str]) -> dict[str, list[str]]:
    same = {"teacher": TEACHER, "teacher_sampled": TEACHER, "teacher_resampled": TEACHER}
    return {"student": list(student), **same, **others}


def value(found: Any, name: str) -> float:
    return found[0][name].estimate.value


def test_answers_are_compared_where_the_teacher_gives_one() -> None:
    """It shares one right answer of two, and the mistake; where the teacher has no answer nothing is compared."""
    found = answers.compared(texts("Answer: 5", "Answer: 6", "so\nAnswer: 8", "I do not know."), RIGHT)
    assert value(found, "answer_agreement") == pytest.approx(2 / 3)
    assert value(found, "answer_agreement_teacher_right") == 0.5
    assert value(found, "answer_agreement_teacher_wrong") == 1.0
    assert found[0]["answer_agreement"].estimate.n == 3
    assert found[0]["answer_agreement_teacher_wrong"].better is None


def test_student_without_an_answer_does_not_agree() -> None:
    assert value(answers.compared(texts("", "x", "", ""), RIGHT), "answer_agreement") == 0.0


def test_students_of_equal_accuracy_and_other_agreement_are_told_apart() -> None:
    """Both are right on two of four problems; one makes the teacher's mistake and the other its own."""
    faithful = answers.compared(texts("Answer: 5", "Answer: 7", "Answer: 8", "Answer: 1"), RIGHT)
    own = answers.compared(texts("Answer: 5", "Answer: 7", "Answer: 1", "Answer: 2"), RIGHT)
    assert value(faithful, "answer_agreement") == 1.0
    assert value(own, "answer_agreement") == pytest.approx(2 / 3)


def test_baseline_stands_beside_with_a_paired_difference() -> None:
    other = ["Answer: 6", "Answer: 7", "Answer: 1", "Answer: 1"]
    found = answers.compared(texts("Answer: 5", "Answer: 7", "Answer: 8", "none", baseline=other), RIGHT)
    assert value(found, "baseline/answer_agreement") == pytest.approx(1 / 3)
    assert value(found, "difference/answer_agreement") == pytest.approx(2 / 3)
    assert value(found, "difference/rationale_bleu") == pytest.approx(
        value(found, "rationale_bleu") - value(found, "baseline/rationale_bleu")
    )


def test_teacher_that_never_answers_leaves_the_agreement_out() -> None:
    silent = ["hm"] * 4
    found, left_out = answers.compared(texts(*["Answer: 5"] * 4, teacher=silent), RIGHT)
    assert "answer_agreement" not in found and "gives no such answer" in left_out["answer_agreement"]
    assert "answer_agreement" not in left_out or "rationale_bleu" in found


def test_teacher_resampled_is_compared_with_itself() -> None:
    again = ["Answer: 5", "Answer: 6", "Answer: 8", "Answer: 1"]
    found = answers.compared(texts(*TEACHER, teacher_resampled=again), RIGHT)
    assert value(found, "resampled_teacher/answer_agreement") == pytest.approx(2 / 3)
    assert value(found, "answer_agreement") == 1.0 and value(found, "rationale_bleu") == 100.0


# -- BLEU --------------------------------------------------------------------------------------------------------------

WORDS = ["a", "cat", "Cat", "sees", "two", "stones", ",", "then", "Answer:", "7", "12", "left."]


def made(generator: random.Random, longest: int) -> str:
    return " ".join(generator.choices(WORDS, k=generator.randint(0, longest)))


def near(text: str, generator: random.Random) -> str:
    words = text.split()
    return " ".join(word if generator.random() < 0.8 else generator.choice(WORDS) for word in words)


@pytest.mark.parametrize("longest", [3, 5, 30])
@pytest.mark.parametrize("seed", range(4))
def test_bleu_is_sacrebleus(longest: int, seed: int) -> None:
    import sacrebleu

    generator = random.Random(seed)
    theirs = [made(generator, longest) for _ in range(12)]
    ours = [near(text, generator) for text in theirs]
    if seed == 3:
        ours = ours[1:] + ours[:1]  # hardly a match: n-grams without any are smoothed
    found = answers.bleu([np.array(sum(column)) for column in answers.matches(ours, theirs)])
    assert float(found) == pytest.approx(sacrebleu.corpus_bleu(ours, [theirs]).score, abs=1e-6)


def test_same_texts_have_bleu_100_however_short() -> None:
    for same in (["one", "two"], ["", ""], TEACHER):
        columns = answers.matches(same, same)
        assert float(answers.bleu([np.array(sum(column)) for column in columns])) == pytest.approx(100)


def test_texts_without_a_common_word_have_bleu_0() -> None:
    columns = answers.matches(["one two three four five"] * 3, ["six seven eight nine ten"] * 3)
    assert float(answers.bleu([np.array(sum(column)) for column in columns])) == 0.0


def test_bleu_of_many_resamples_at_once_is_that_of_each() -> None:
    generator = random.Random(0)
    theirs = [made(generator, 12) for _ in range(10)]
    columns = np.array(answers.matches([near(t, generator) for t in theirs], theirs))
    picks = np.random.default_rng(0).integers(0, 10, (5, 10))
    together = answers.bleu(list(columns[:, picks].sum(-1)))
    assert together.shape == (5,)
    for pick, score in zip(picks, together, strict=True):
        assert score == pytest.approx(float(answers.bleu(list(columns[:, pick].sum(-1)))))


def test_without_sacrebleu_the_overlap_is_left_out_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers, "find_spec", lambda name: None)
    found, left_out = answers.compared(texts(*TEACHER), RIGHT)
    assert "rationale_bleu" not in found and "answer_agreement" in found
    assert "llmkd[eval]" in left_out["rationale_bleu"]


# -- sampled completions -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(model_folder: Path) -> tuple[Any, Any]:
    loaded = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32).eval()
    return loaded, AutoTokenizer.from_pretrained(model_folder)


def test_samples_repeat_with_their_seed_and_leave_the_random_numbers_alone(model: Any) -> None:
    before = torch.random.get_rng_state()
    drawn = [complete(*model, ["the red cat", "12 +"], 12, seed=seed) for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert torch.equal(torch.random.get_rng_state(), before)


def test_samples_come_from_the_whole_distribution_at_temperature_1(model: Any) -> None:
    """First tokens of 2,000 samples against the model's own probabilities: chi squared over the likeliest."""
    lm, tokenizer = model
    ids = tokenizer("the red cat", add_special_tokens=False, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        p = lm(ids).logits[0, -1].double().softmax(-1)
    texts = complete(lm, tokenizer, ["the red cat"] * 2000, 1, batch=500, seed=5)
    words = [tokenizer.decode([i], skip_special_tokens=True) for i in range(len(p))]
    share = {word: 0.0 for word in words}
    for word, chance in zip(words, p.tolist(), strict=True):
        share[word] += chance
    likely = [word for word, chance in share.items() if chance > 0.01]
    statistic = sum((texts.count(w) - 2000 * share[w]) ** 2 / (2000 * share[w]) for w in likely)
    assert len(likely) > 5 and statistic < len(likely) + 5 * (2 * len(likely)) ** 0.5
