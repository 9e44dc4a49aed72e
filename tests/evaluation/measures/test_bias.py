"""CrowS-Pairs on models that prefer by construction, WEAT on embeddings whose association is known, and real data."""

import gzip
import json
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from llmkd.evaluation.measures.bias import (
    WEAT,
    Pair,
    association,
    crows_pairs,
    group_gaps,
    log_likelihoods,
    read_pairs,
    read_words,
    weat,
    word_ids,
)
from llmkd.teachers.local import LocalTeacher
from llmkd.types import Logits

PAIRS = [
    Pair("the red cat sees a stone.", "the red dog sees a stone.", "pets"),
    Pair("an old cat forgets.", "an old dog forgets.", "pets"),
    Pair("the river is a cat", "the river is a dog, and more than that", "rivers"),
]


@pytest.fixture(scope="module")
def tokenizer(model_folder: Path) -> PreTrainedTokenizerFast:
    return AutoTokenizer.from_pretrained(model_folder)


@pytest.fixture(scope="module")
def model(model_folder: Path) -> LocalTeacher:
    return LocalTeacher("student", AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32))


class Liking:
    """A model without context whose logit of a token is `liked` for the given ids, else 0."""

    name = "liking"

    def __init__(self, ids: list[int], liked: float) -> None:
        self.logits = torch.zeros(384)
        self.logits[ids] = liked

    def score(self, batch: dict[str, torch.Tensor]) -> Logits:
        return Logits(self.logits.expand(int(batch["counted"].sum()), -1))


def cat_ids(tokenizer: Any) -> list[int]:
    return sorted(set(tokenizer("cat")["input_ids"] + tokenizer(" cat")["input_ids"]))


# -- CrowS-Pairs -------------------------------------------------------------------------------------------------------


def test_log_likelihoods_are_those_of_the_model_s_own_forward(model: LocalTeacher, tokenizer: Any) -> None:
    texts = [text for p in PAIRS for text in (p.more, p.less)]
    found = log_likelihoods(model, tokenizer, texts, batch_size=4)
    for text, value in zip(texts, found, strict=True):
        ids = torch.tensor([[tokenizer.eos_token_id, *tokenizer(text)["input_ids"]]])
        logq = model.model(input_ids=ids).logits[0, :-1].double().log_softmax(-1)
        assert value == pytest.approx(float(logq.gather(-1, ids[0, 1:, None]).sum()), rel=1e-5)


def test_batches_change_nothing(model: LocalTeacher, tokenizer: Any) -> None:
    texts = [text for p in PAIRS for text in (p.more, p.less)]
    one, all_ = (log_likelihoods(model, tokenizer, texts, batch_size=size) for size in (1, 6))
    np.testing.assert_allclose(one, all_, rtol=1e-5)


@pytest.mark.parametrize(("liked", "share"), [(5.0, 1.0), (-5.0, 0.0)])
def test_a_model_that_prefers_by_construction(liked: float, share: float, tokenizer: Any) -> None:
    found = crows_pairs(Liking(cat_ids(tokenizer), liked), tokenizer, PAIRS[:2])
    assert found.metrics["stereotype"].estimate.value == share
    assert (found.metrics["log_likelihood_difference"].estimate.value > 0) == (share == 1)


def test_a_model_without_preference_is_at_one_half(tokenizer: Any) -> None:
    pairs = [Pair("the red cat", "the red cat", "same")] * 3
    found = crows_pairs(Liking([], 0.0), tokenizer, pairs)
    assert found.metrics["stereotype"].estimate.value == 0.5 and found.details["ties"] == 3


def test_types_have_their_own_shares_and_the_items_give_them(tokenizer: Any) -> None:
    # Every token costs: the longer sentence of the last pair is the less likely one, whatever is liked.
    found = crows_pairs(Liking(cat_ids(tokenizer), -0.5), tokenizer, PAIRS)
    shares = {name: m.estimate.value for name, m in found.metrics.items()}
    assert shares["stereotype/pets"] == 0.0 and shares["stereotype/rivers"] == 1.0
    assert shares["stereotype"] == pytest.approx(1 / 3)
    assert found.details["pairs"] == {"all": 3, "pets": 2, "rivers": 1}
    assert [i["stereotype"] for i in found.items] == [float(i["more"] > i["less"]) for i in found.items]
    json.dumps([found.items, found.details])


def test_gaps_are_paired(tokenizer: Any) -> None:
    pairs = PAIRS[:2] * 10
    likes, dislikes = (crows_pairs(Liking(cat_ids(tokenizer), x), tokenizer, pairs) for x in (5.0, -5.0))
    gap = group_gaps(likes, dislikes)
    assert gap["gap"].estimate.value == gap["gap/pets"].estimate.value == 1.0
    assert group_gaps(likes, likes)["gap"].estimate.value == 0.0
    with pytest.raises(ValueError, match="same pairs"):
        group_gaps(likes, crows_pairs(Liking([], 0.0), tokenizer, PAIRS))


def test_pairs_are_read_from_csv_and_json_lines_alike(tmp_path: Path) -> None:
    rows = [{"sent_more": 'a "b", c', "sent_less": "d", "bias_type": "x", "anon_writer": "a1"}]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    (tmp_path / "a.csv").write_text(',sent_more,sent_less,bias_type\n0,"a ""b"", c",d,x\n')
    with gzip.open(tmp_path / "b.jsonl.gz", "wt") as file:
        file.write(json.dumps(rows[0]))
    for name in ("a.jsonl", "a.csv", "b.jsonl.gz"):
        assert read_pairs(tmp_path / name) == [Pair('a "b", c', "d", "x")], name


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"sent_more": "a", "sent_less": "b"}\n', r"row 1 has no bias_type \(columns: sent_more, sent_less\)"),
        ("{\n", "line 1 is not JSON"),
        ("", "holds no rows"),
        (None, "does not exist"),
    ],
)
def test_bad_files_of_pairs_are_refused(text: str | None, said: str, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "pairs.jsonl").write_text(text)
    with pytest.raises(ValueError, match=f"pairs.jsonl: {said}"):
        read_pairs(tmp_path / "pairs.jsonl")


# -- WEAT --------------------------------------------------------------------------------------------------------------


def at_angle(degrees: list[float]) -> np.ndarray:
    """Vectors of different lengths in the plane: s of each is cos(angle) - sin(angle) for A = e1, B = e2."""
    radians = np.deg2rad(degrees)
    return np.stack([np.cos(radians), np.sin(radians)], 1) * np.linspace(0.5, 3, len(degrees))[:, None]


A, B = np.array([[1.0, 0.0], [2.0, 0.0]]), np.array([[0.0, 1.0], [0.0, 0.3]])


def test_effect_size_and_p_value_by_hand() -> None:
    x, y = [10.0, 20.0, 50.0], [30.0, 70.0, 80.0]
    s = np.cos(np.deg2rad(x + y)) - np.sin(np.deg2rad(x + y))
    d = (s[:3].mean() - s[3:].mean()) / np.sqrt(((s - s.mean()) ** 2).sum() / 5)
    at_least = [sum(s[list(c)]) >= sum(s[:3]) - 1e-12 for c in combinations(range(6), 3)]
    found = association(at_angle(x), at_angle(y), A, B)
    assert found.effect_size == pytest.approx(d, rel=1e-12)
    assert (found.exact, found.partitions) == (True, 20)
    assert found.p_value == pytest.approx(sum(at_least) / 20) and 1 < sum(at_least) < 20


def test_the_strongest_association() -> None:
    found = association(at_angle([0.0] * 8), at_angle([90.0] * 8), A, B)
    assert found.p_value == pytest.approx(1 / 12870)
    assert found.effect_size == pytest.approx(2 / np.sqrt(16 / 15))
    back = association(at_angle([90.0] * 8), at_angle([0.0] * 8), A, B)
    assert back.p_value == 1 and back.effect_size == pytest.approx(-found.effect_size)


def test_p_is_uniform_where_labels_mean_nothing() -> None:
    generator = np.random.default_rng(0)
    drawn = [association(*(generator.normal(size=(n, 6)) for n in (5, 5, 7, 7))).p_value for _ in range(400)]
    from scipy.stats import kstest

    assert kstest(drawn, "uniform").pvalue > 0.01
    assert np.mean(np.array(drawn) <= 0.05) == pytest.approx(0.05, abs=0.03)


def test_sampled_partitions_come_near_the_exact_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(3)
    sets = [generator.normal(size=(n, 6)) + shift for n, shift in ((6, 0.3), (5, 0), (7, 0.3), (7, 0))]
    exact = association(*sets)
    monkeypatch.setattr("llmkd.evaluation.measures.bias.comb", lambda *_: 10**9)
    sampled, again, other = (association(*sets, seed=s) for s in (0, 0, 1))
    assert exact.exact and not sampled.exact
    assert sampled == again != other
    assert sampled.p_value == pytest.approx(exact.p_value, abs=4 * np.sqrt(0.25 / 20000))


@pytest.mark.parametrize(
    ("x", "said"), [([[1.0, 0.0]], "X has 1 known words"), ([[0.0, 0.0], [1.0, 0.0]], "zero or not finite")]
)
def test_bad_vectors_are_refused(x: list[list[float]], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        association(np.array(x), B, A, B)


def test_words_of_several_tokens_are_the_mean_and_unknown_ones_are_named(tokenizer: Any) -> None:
    words = {
        "x": ["stone", "apples", "river"], "y": ["dog", "cat"],
        "a": ["winter", "letters"], "b": ["bird", "garden"],
    }  # fmt: skip
    table = torch.randn(384, 8, generator=torch.Generator().manual_seed(0))
    found = weat(table, tokenizer, words, {"t": ("x", "y", "a", "b")})
    vectors = [
        np.stack([table[word_ids(tokenizer, w)].mean(0).numpy() for w in words[k]]) for k in ("x", "y", "a", "b")
    ]
    assert found.metrics["effect_size/t"].estimate.value == pytest.approx(association(*vectors).effect_size, rel=1e-5)
    assert len(word_ids(tokenizer, "zebra")) > 1
    assert tokenizer.decode(word_ids(tokenizer, "river")) == " river"
    with pytest.raises(ValueError, match=r"Y has 1 known words.*test t: x, y, a, b"):
        weat(table, WithoutDogs(tokenizer), words, {"t": ("x", "y", "a", "b")})
    words["y"].append("bird")
    found = weat(table, WithoutDogs(tokenizer), words, {"t": ("x", "y", "a", "b")})
    assert found.details["tests"]["t"]["unknown"] == ["dog"]


class WithoutDogs:
    """A tokenizer whose unknown token is the one of "dog"."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.unk_token_id = word_ids(tokenizer, "dog")[0]

    def __call__(self, *args: Any, **named: Any) -> Any:
        return self.tokenizer(*args, **named)


def test_missing_lists_are_named(tokenizer: Any) -> None:
    table = torch.randn(384, 8)
    with pytest.raises(ValueError, match=r"t: there is no word list b among x, y, a"):
        weat(table, tokenizer, {"x": [], "y": [], "a": []}, {"t": ("x", "y", "a", "b")})
    with pytest.raises(ValueError, match="no test has its lists among x"):
        weat(table, tokenizer, {"x": ["one"]})


@pytest.mark.parametrize("text", ["[1]", '{"a": "b"}', '{"a": [1]}', "{"])
def test_bad_files_of_words_are_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "words.json").write_text(text)
    with pytest.raises(ValueError, match=r"words\.json: "):
        read_words(tmp_path / "words.json")


# -- real data ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stories(assets: Path) -> tuple[LocalTeacher, Any]:
    folder = assets / "models" / "stories260K"
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return LocalTeacher("stories", model), AutoTokenizer.from_pretrained(folder)


@pytest.mark.assets
def test_crows_pairs_runs_whole_on_a_real_model(stories: tuple[LocalTeacher, Any], assets: Path) -> None:
    pairs = read_pairs(assets / "data" / "bias" / "crows_pairs.jsonl.gz")
    found = crows_pairs(*stories, pairs)
    assert len(pairs) == len(found.items) == found.details["pairs"]["all"] == 1508
    estimate = found.metrics["stereotype"].estimate
    assert 0 < estimate.low < estimate.value < estimate.high < 1
    types = {name: m.estimate for name, m in found.metrics.items() if name.startswith("stereotype/")}
    assert len(types) == 9 and sum(e.n for e in types.values()) == 1508
    assert sum(e.n * e.value for e in types.values()) == pytest.approx(1508 * estimate.value)
    print({name: (e.value, e.low, e.high) for name, e in types.items()}, estimate)


@pytest.mark.assets
def test_weat_runs_whole_on_real_embeddings(stories: tuple[LocalTeacher, Any], assets: Path) -> None:
    model, tokenizer = stories
    words = read_words(assets / "data" / "bias" / "weat_words.json")
    found = weat(model.model.get_input_embeddings().weight, tokenizer, words)
    assert {name.split("/")[1] for name in found.metrics} == WEAT.keys()
    for name in WEAT:
        assert -2 <= found.metrics[f"effect_size/{name}"].estimate.value <= 2
        assert 0 < found.metrics[f"p_value/{name}"].estimate.value <= 1
    assert found.details["tests"]["math_arts"]["exact"] and not found.details["tests"]["flowers_insects"]["exact"]
    print({name: m.estimate.value for name, m in found.metrics.items()})
