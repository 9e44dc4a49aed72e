"""MiniLLM on tiny models: what its steps are equal to, by hand and by enumeration of all completions."""

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from llmkd.checks.recipe import Subject, opened
from llmkd.checks.verify import run
from llmkd.trainers.onpolicy import OnPolicyTrainer
from llmkd.trainers.own_share import on_policy

from minillm import END, TOKEN, by_hand, recipe
from rollouts import lines, weights
from runs import (
    assert_same_run,
    built,
    crashed,
    loaded,
    main_with,
    make_inputs,
    noted,
    one_message,
    put,
    trained,
    without_step_time,
    write_recipe,
)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_inputs(tmp_path_factory.mktemp("inputs"))


# -- the gradient -----------------------------------------------------------------------------------------------------

FEW, LONGEST = 4, 3  # a vocabulary of which all completions can be written down


def completions() -> list[list[int]]:
    """All that end at END or at LONGEST."""
    cut = {s[: s.index(END) + 1] if END in s else s for s in itertools.product(range(FEW), repeat=LONGEST)}
    return sorted(map(list, cut))


def of_few(inputs: Path, output: Path, **changes: Any) -> OnPolicyTrainer:
    """The trainer of the recipe in float64, whose models have the first FEW tokens alone."""
    trainer = built(recipe(inputs, output, **changes)).trainer
    trainer.objective = replace(trainer.objective, vocabulary=FEW)
    trainer.sequences = replace(trainer.sequences, vocabulary=FEW)
    for model in (trainer.model, trainer.teachers["teacher"].model):
        model.double()
    trainer.model.train()
    return trainer


def log_probability(model: Any, prompt: list[int], said: list[int]) -> Tensor:
    """Of each token of a completion, among the FEW."""
    logits = model(input_ids=torch.tensor([prompt + said])).logits[0, len(prompt) - 1 : -1, :FEW]
    return logits.log_softmax(-1).gather(-1, torch.tensor(said)[:, None])[:, 0]


def flat(gradients: tuple[Tensor, ...]) -> Tensor:
    return torch.cat([g.flatten() for g in gradients])


def step_gradient(trainer: OnPolicyTrainer, row: dict[str, Any], said: list[int]) -> Tensor:
    """Of the loss of a step whose one completion is this, summed over its tokens instead of their mean."""
    trainer._generate_single_turn = lambda *_, **__: [said]
    batch = trainer._generate_and_score_completions([row])
    loss = trainer.compute_loss(trainer.model, batch)
    return len(said) * flat(torch.autograd.grad(loss, list(trainer.model.parameters())))


def exact_gradient(trainer: OnPolicyTrainer, prompt: list[int]) -> Tensor:
    """Of the reverse KL of whole completions, each looked at."""
    student, teacher = trainer.model, trainer.teachers["teacher"].model
    total = torch.zeros((), dtype=torch.float64)
    for said in completions():
        logq, logp = (log_probability(m, prompt, said).sum() for m in (student, teacher))
        total = total + logq.exp() * (logq - logp)
    return flat(torch.autograd.grad(total, list(student.parameters())))


def mean_gradient(trainer: OnPolicyTrainer, row: dict[str, Any], prompt: list[int]) -> Tensor:
    """Of a step, over what the student may write."""
    found, chances = torch.zeros(()), 0.0
    for said in completions():
        with torch.no_grad():
            chance = log_probability(trainer.model, prompt, said).sum().exp()
        found, chances = found + chance * step_gradient(trainer, row, said), chances + float(chance)
    assert chances == pytest.approx(1, abs=1e-9)
    return found


def test_a_steps_mean_gradient_is_that_of_the_divergence_of_completions(inputs: Path, tmp_path: Path) -> None:
    plain = {"term": "future_reverse_kl", "returns": "plain"}
    terms = {"token": {"term": "reverse_kl"}, "future": plain}
    trainer = of_few(inputs, tmp_path / "run", objective__terms=terms, train__teacher_mixture=0.0)
    row = trainer.train_dataset[0]
    prompt = trainer.prompt_ids([row])[0]
    wanted, found = exact_gradient(trainer, prompt), mean_gradient(trainer, row, prompt)
    assert float((found - wanted).norm() / wanted.norm()) < 1e-6
    trainer.sequences = None  # the next token alone is another gradient, and not by a little
    trainer.objective = replace(trainer.objective, terms=trainer.objective.terms[:1])
    assert float((mean_gradient(trainer, row, prompt) - wanted).norm() / wanted.norm()) > 0.1


def test_a_teacher_that_is_the_student_changes_no_draw_and_teaches_nothing(inputs: Path, tmp_path: Path) -> None:
    found = []
    for share in (0.0, 0.3):
        job = built(recipe(inputs, tmp_path / f"run-{share}", train__teacher_mixture=share, train__max_steps=1,
                           teachers__0__model_name_or_path=str(inputs / "student")))  # fmt: skip
        seen = noted(job.trainer)
        job.trainer.train()
        found.append(seen[0]["input_ids"])
        line = lines(job.trainer)[0]
        for name in ("loss", "token/value", "future/value", "future/return"):
            assert line[name] == pytest.approx(0, abs=1e-6)
        assert line["grad_norm"] == pytest.approx(0, abs=1e-5)
        assert line.get("importance_weight", 1) == pytest.approx(1, abs=1e-6)
    assert found[0].tolist() == found[1].tolist()


# -- weights and returns by hand --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("returns", "deaf"), [("normalised", False), ("plain", False), ("normalised", True)])
def test_a_step_by_hand(inputs: Path, tmp_path: Path, returns: str, deaf: bool) -> None:
    job = built(recipe(inputs, tmp_path / "run", objective__terms__future__returns=returns, train__max_steps=1,
                       train__per_device_train_batch_size=4, train__gradient_accumulation_steps=2))  # fmt: skip
    if deaf:
        job.trainer.ends = {"teacher": [2]}
        end_early(job.trainer)
    seen = noted(job.trainer)
    job.trainer.train()
    models = loaded(inputs / "student"), loaded(inputs / "teacher")
    tokens = [t for batch in seen for t in by_hand(*models, batch, 0.3, returns == "normalised", deaf)]
    assert len(seen) == 2 and any(abs(t["A"]) > 0.1 for t in tokens) and any(t["w"] < 0.95 for t in tokens)
    assert not deaf or sum(not t["heard"] for t in tokens) == 8

    def column(name: str) -> Tensor:
        return torch.cat([batch[name][batch["counted"]] for batch in seen])

    torch.testing.assert_close(column("column:importance"), of(tokens, lambda t: t["w"]), rtol=1e-4, atol=1e-5)
    wanted = of(tokens, lambda t: t["w"] * t["A"])
    torch.testing.assert_close(column("column:future:future"), wanted, rtol=1e-4, atol=1e-5)
    token = of(tokens, lambda t: t["heard"] * t["w"] * t["kl"]).mean()
    future = of(tokens, lambda t: -t["w"] * t["A"] * t["logq"]).mean()
    line = lines(job.trainer)[0]
    assert line["loss"] == pytest.approx(float(token + future), rel=1e-4)
    assert line["future/value"] == pytest.approx(float(future), rel=1e-4)
    assert line["future/return"] == pytest.approx(float(of(tokens, lambda t: t["A"]).mean()), rel=1e-4)
    assert line["importance_weight"] == pytest.approx(float(of(tokens, lambda t: t["w"]).mean()), rel=1e-4)


def of(tokens: list[dict], number: Any) -> Tensor:
    return torch.tensor([number(t) for t in tokens])


def end_early(trainer: Any) -> None:
    """Let every completion end by itself, after one to six tokens."""
    write = trainer._generate_single_turn

    def ended(*given: Any, **rest: Any) -> list[list[int]]:
        said = [[max(token, 7) for token in line] + [7] * 6 for line in write(*given, **rest)]
        return [[*line[: i % 6], END] for i, line in enumerate(said)]

    trainer._generate_single_turn = ended


# -- what changes nothing ---------------------------------------------------------------------------------------------


def test_without_a_mixture_it_is_plain_on_policy_distillation(inputs: Path, tmp_path: Path) -> None:
    """Bitwise, whether the weight is named, which is 1 then, or not."""
    runs = []
    for name, changes in {
        "plain": {"objective__terms": {"kd": {"term": "reverse_kl"}}, "train__teacher_mixture": None},
        "named": {"objective__terms": {"kd": TOKEN}, "train__teacher_mixture": 0.0},
    }.items():
        job = built(recipe(inputs, tmp_path / name, **changes))
        assert (job.trainer.sequences is None) == (name == "plain")
        job.trainer.train()
        runs.append(job.trainer)
    kept = [[{k: v for k, v in line.items() if k not in ("step_time", "seconds")} for line in lines(t)] for t in runs]
    assert kept[0] == kept[1]
    assert torch.equal(weights(runs[0]), weights(runs[1]))


def test_micro_batches_change_nothing(inputs: Path, tmp_path: Path) -> None:
    whole = trained(recipe(inputs, tmp_path / "whole"))
    split = trained(recipe(inputs, tmp_path / "split", train__per_device_train_batch_size=2,
                           train__gradient_accumulation_steps=4))  # fmt: skip
    for one, other in zip(whole, split, strict=True):
        for key in ("loss", "grad_norm", "token/value", "future/value", "future/return", "importance_weight"):
            assert one[key] == pytest.approx(other[key], rel=1e-4)


def test_completions_of_the_data_are_rewarded_for_nothing(inputs: Path, tmp_path: Path) -> None:
    """On their steps the long part is 0 and every token weighs the same."""
    both = trained(recipe(inputs, tmp_path / "both", train__lmbda=0.5, train__max_steps=4))
    assert {line["on_policy"] for line in both} == {0.0, 1.0}
    alone = trained(recipe(inputs, tmp_path / "alone", train__lmbda=0.0, train__teacher_mixture=0.0, train__max_steps=1,
                           objective__terms={"token": {"term": "reverse_kl"}}))  # fmt: skip
    named = trained(recipe(inputs, tmp_path / "named", train__lmbda=1e-9, train__teacher_mixture=0.0,
                           train__max_steps=1))  # fmt: skip
    assert named[0]["loss"] == alone[0]["loss"] and named[0]["grad_norm"] == alone[0]["grad_norm"]
    for line in (named[0], next(line for line in both if not line["on_policy"])):
        assert line["future/value"] == 0 and "future/return" not in line and "importance_weight" not in line


def test_broken_off_it_goes_on_as_if_it_had_not(inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bitwise, with log lines of two steps, of which one falls around the checkpoint, and completions of the teacher
    for the data's steps."""
    several = {
        "train__max_steps": 6, "train__save_steps": 1, "train__logging_steps": 2, "train__lmbda": 0.5,
        "train__per_device_train_batch_size": 4, "train__gradient_accumulation_steps": 2, "train__seq_kd": True,
        "student__lora": {"r": 4, "lora_dropout": 0.1},
    }  # fmt: skip
    assert on_policy(3, 2, 0.5) != on_policy(3, 3, 0.5)
    assert main_with(recipe(inputs, tmp_path / "whole", **several)) == 0
    crashed(monkeypatch, recipe(inputs, tmp_path / "broken", **several), 3, trainer=OnPolicyTrainer)
    assert main_with(recipe(inputs, tmp_path / "broken", **several)) == 0
    without_step_time([tmp_path / "whole", tmp_path / "broken"])
    assert_same_run(tmp_path / "whole", tmp_path / "broken")


def test_verify_holds_its_laws_on_what_both_have_drawn(inputs: Path, tmp_path: Path) -> None:
    """Weights and returns are those of a row, whatever stands beside it and behind it."""
    path = write_recipe(recipe(inputs, tmp_path / "run"), tmp_path / "recipe.yaml")
    with opened(str(path), [], None) as job:
        subject = Subject(job, None)
        results = run(subject.laws())
        assert float(subject.collated(subject.rows[0])["column:future:future"].abs().max()) > 0.1
    assert len(results) == 6 and [r.law for r in results if not r.passed] == []


# -- mistakes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"train__teacher_mixture": 1.0}, "train.teacher_mixture: 1.0 is outside [0, 1)"),
        ({"train__use_vllm": True}, "give train.use_vllm: false"),
        ({"train__temperature": 0.7}, "train.temperature: 0.7 changes what tokens are drawn from, and teacher_mixture"),
        ({"train__pairs": True}, "train.pairs: teacher_mixture is of completions that were drawn in the step alone"),
        ({"train__replay_capacity": 64}, "train.replay_capacity: teacher_mixture is of completions"),
        ({"train__top_p": 0.9}, "train.top_p: 0.9 changes what tokens are drawn from"),
        ({"train__top_k": 20, "train__teacher_mixture": 0.0}, "and future_reverse_kl of future counts on"),
        ({"train__generation_kwargs": {"do_sample": False}}, "train.generation_kwargs: "),
        ({"train__lmbda": 0.0}, "give train.lmbda above 0"),
        ({"train__lmbda": 0.0, "train__teacher_mixture": 0.0}, "future.term: future_reverse_kl reads the student's"),
        ({"train__teacher_mixture": "much"}, "train.teacher_mixture"),
        ({"objective__terms__future__completions": "data", "train__lmbda": 0.5}, "of which future_reverse_kl is 0"),
        ({"train__temperature": 0.7, "train__teacher_mixture": 0.0, "objective__terms": {"token": TOKEN}},
         "train.temperature: 0.7 changes what tokens are drawn from, and the importance weight of token"),
        ({"teachers": [], "objective__terms": {"ce": {"term": "cross_entropy", "completions": "data"}},
          "train__lmbda": 0.5}, "train.teacher_mixture: 0.3, and there are 0 teachers: give the one"),
        ({"train__teacher_mixture": None, "objective__terms": {"token": TOKEN}}, "importance is 1 where the student"),
        ({"objective__terms__future__token_weight": None}, "give {by: importance}"),
        ({"objective__terms__future__token_weight": {"by": "student_entropy"}}, "give importance, or leave it out"),
        ({"objective__terms__future__alpha": 0.5}, "is not a knob of future_reverse_kl"),
        ({"objective__terms__token__returns": "plain"}, "is read by future_reverse_kl, not by reverse_kl"),
        ({"objective__terms__future__returns": "discounted"}, "returns"),
        ({"objective__terms__token__token_weight__floor": 0.5}, "floor and power are not read with by: importance"),
        ({"objective__temperature": {"student": 2.0}}, "objective.temperature.student: 2.0, but future_reverse_kl"),
        ({"objective__logit_standardize": True}, "objective.logit_standardize: is not read by future_reverse_kl"),
        ({"teachers": []}, "needs a teacher"),
        ({"train__method": "rl"}, "future_reverse_kl is a term of method: onpolicy, not of rl"),
        ({"train__method": "offpolicy", "objective__terms": {"kd": {"term": "reverse_kl"}}},
         "teacher's share in what completions are drawn from is read by method: onpolicy"),
        ({"train__method": "offpolicy", "train__teacher_mixture": None}, "a term of method: onpolicy, not of offpol"),
        ({"train__method": "offpolicy", "train__teacher_mixture": None, "objective__terms": {"token": TOKEN}},
         "importance is of completions that the student writes"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_message(inputs: Path, tmp_path: Path, capsys: Any, changes: dict, words: str) -> None:
    assert main_with(recipe(inputs, tmp_path / "run", **changes)) == 2
    error = capsys.readouterr().err
    assert words in error and "Traceback" not in error


def test_two_teachers_do_not_both_have_a_share(inputs: Path, tmp_path: Path, capsys: Any) -> None:
    two = [{"name": name, "model_name_or_path": str(inputs / name)} for name in ("teacher", "near")]
    data = recipe(inputs, tmp_path / "run", teachers=two)
    for name in ("token", "future"):
        put(data, f"objective.terms.{name}.teacher", "near")
    assert main_with(data) == 2
    assert "train.teacher_mixture: 0.3, and there are 2 teachers" in one_message(capsys)


def test_under_fsdp_it_is_refused(inputs: Path, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(ValueError, match=r"train\.teacher_mixture: not under FSDP"):
        built(recipe(inputs, tmp_path / "run"))
