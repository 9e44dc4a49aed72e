"""What a model costs: counts and what follows from them; nothing here is timed."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from llmkd.evaluation.measures import efficiency
from llmkd.evaluation.measures.efficiency import energy_meter, measure_efficiency, one_round, sizes, working_memory

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def model(model_folder: Path) -> LlamaForCausalLM:
    return AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32)


def llama(tie: bool, dtype: torch.dtype = torch.float32) -> LlamaForCausalLM:
    config = LlamaConfig(vocab_size=50, hidden_size=8, intermediate_size=16, num_hidden_layers=1, num_attention_heads=1,
                         num_key_value_heads=1, head_dim=8, tie_word_embeddings=tie)  # fmt: skip
    return LlamaForCausalLM(config).to(dtype)


# One layer: four 8x8 projections, three 8x16 ones, two norms; and the final norm.
BODY = 4 * 64 + 3 * 128 + 3 * 8


@pytest.mark.parametrize(("tie", "ends"), [(True, 400), (False, 800)])
def test_parameters_are_counted_once_and_without_the_embeddings(tie: bool, ends: int) -> None:
    found = {name: value for name, (value, _) in sizes(llama(tie)).items()}
    assert found == {
        "parameters": BODY + ends, "non_embedding_parameters": BODY, "bytes": 4 * (BODY + ends),
    }  # fmt: skip


def test_bytes_follow_the_precision() -> None:
    assert sizes(llama(True, torch.bfloat16))["bytes"][0] * 2 == sizes(llama(True))["bytes"][0]


def test_all_is_measured_and_nothing_left_unsaid(model: LlamaForCausalLM) -> None:
    model.train()
    found = measure_efficiency(model, batch_size=2, prompt_tokens=8, new_tokens=3, repeats=3)
    assert model.training
    names = {"parameters", "non_embedding_parameters", "bytes", "prefill", "decode", "working_memory", "energy"}
    assert found.metrics.keys() | found.details["left_out"].keys() == names
    assert not found.metrics.keys() & found.details["left_out"].keys()
    for name in ("prefill", "decode"):
        rounds = sorted(found.details["rounds"][name])
        assert len(rounds) == 3 and found.metrics[name].estimate.value == rounds[1] > 0
        assert found.metrics[name].unit == "tokens/s" and found.metrics[name].better == "higher"
    assert found.settings["batch_size"] == 2 and found.settings["dtype"] == "float32" and found.settings["device"]
    assert found.metrics["parameters"].estimate.value == sum(p.numel() for p in model.parameters())


def test_the_tokens_written_are_those_of_greedy_generation(
    model: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    model.eval()
    ids = torch.arange(5, 13).reshape(2, 4)
    fed: list[torch.Tensor] = []
    forward = model.forward

    def seen(input_ids: torch.Tensor, logits_to_keep: int = 0, **named: object) -> object:
        fed.append(input_ids)
        return forward(input_ids=input_ids, logits_to_keep=logits_to_keep, **named)

    monkeypatch.setattr(model, "forward", seen)
    one_round(model, ids, 6)
    monkeypatch.undo()
    made = model.generate(input_ids=ids, max_new_tokens=6, min_new_tokens=6, do_sample=False)
    assert torch.equal(torch.cat(fed, 1)[:, :10], made[:, :10])
    assert [t.shape for t in fed] == [(2, 4)] + [(2, 1)] * 6


@pytest.mark.parametrize(
    ("lengths", "said"),
    [
        ({"prompt_tokens": 510, "new_tokens": 3}, "more than the model's 512 positions"),
        ({"repeats": 0}, "repeats is 0"),
    ],
)
def test_impossible_lengths_are_refused(lengths: dict[str, int], said: str, model: LlamaForCausalLM) -> None:
    with pytest.raises(ValueError, match=said):
        measure_efficiency(model, **lengths)


def test_memory_that_is_held_for_a_moment_is_seen() -> None:
    size = 2**26
    small = working_memory(CPU, lambda: None)
    large = working_memory(CPU, lambda: torch.ones(size, dtype=torch.uint8).max())
    if isinstance(small, str):
        assert "cannot be read" in small
    else:
        assert small < size / 4 and 0.9 * size < large < 2 * size


# -- energy ------------------------------------------------------------------------------------------------------------


def domain(folder: Path, number: str, energy: int, name: str = "package-0") -> Path:
    at = folder / f"intel-rapl:{number}"
    at.mkdir(parents=True)
    for file, value in {"energy_uj": energy, "max_energy_range_uj": 1_000_000_000, "name": name}.items():
        (at / file).write_text(f"{value}\n")
    return at


def test_without_a_meter_energy_is_left_out_with_the_reason(
    model: LlamaForCausalLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(efficiency, "energy_meter", lambda device: energy_meter(device, tmp_path / "none"))
    found = measure_efficiency(model, prompt_tokens=4, new_tokens=2, repeats=1)
    assert "energy" not in found.metrics and found.details["meter"] is None
    assert "no RAPL packages" in found.details["left_out"]["energy"]


def test_joules_are_summed_over_packages_and_past_the_end_of_their_range(tmp_path: Path) -> None:
    one, two = domain(tmp_path, "0", 999_000_000), domain(tmp_path, "1", 5, "package-1")
    others = [domain(tmp_path, "0:0", 0, "core"), domain(tmp_path, "2", 0, "psys")]
    meter = energy_meter(CPU, tmp_path)
    assert meter.read and meter.read() == 0
    (one / "energy_uj").write_text("2000000")
    (two / "energy_uj").write_text("500005")
    for other in others:
        (other / "energy_uj").write_text("7000000")
    assert meter.read() == pytest.approx(3.5)
    (one / "energy_uj").write_text("3000000")
    assert meter.read() == pytest.approx(4.5)
    assert "2 processor package" in meter.what


def test_energy_is_by_written_token(model: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    readings = iter([10.0, 22.0])
    monkeypatch.setattr(efficiency, "energy_meter", lambda device: efficiency.Meter(lambda: next(readings), "a test"))
    found = measure_efficiency(model, batch_size=2, prompt_tokens=4, new_tokens=3, repeats=2)
    assert found.metrics["energy"].estimate.value == 1.0 and found.metrics["energy"].unit == "J/token"
    assert found.details["meter"] == "a test" and "energy" not in found.details["left_out"]


@pytest.mark.gpu
def test_a_gpu_s_memory_is_its_allocator_s() -> None:
    device = torch.device("cuda")
    found = working_memory(device, lambda: torch.ones(2**24, dtype=torch.uint8, device=device))
    assert found == 2**24
