"""Every mistake in a recipe is refused in one line that says where, what was given, what is allowed, what to do."""

from typing import Any

import pytest

from llmkd.config import TrainField, from_dict

from config_recipe import FIELDS, MISSING, changed, only_problem, plain, problems

# ---------------------------------------------------------------- unknown keys and wrong sections


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("trainer", {}, "x.yaml: trainer: is not a key of a recipe: did you mean train?"),
        ("zzz", 1, "x.yaml: zzz: is not a key of a recipe: allowed are data, eval, objective, rewards, run, student,"),
        ("run.sede", 1, "x.yaml: run.sede: is not a key of run: did you mean seed?"),
        ("teachers.0.modle_name_or_path", "x", "did you mean model_name_or_path?"),
        ("data.datasets.1.max_row", 1, "x.yaml: data.datasets.1.max_row: is not a key of data.datasets.1: did you"),
        ("objective.terms.kd.wieght", 1, "x.yaml: objective.terms.kd.wieght: is not a key of objective.terms.kd: did"),
        ("objective.terms.kd.normalise", "all", "did you mean normalize?"),
        ("objective.terms.kd.mask.domain", "code", "belongs to data.datasets.N.domain"),
        ("train.learning_rat", 1e-3, "x.yaml: train.learning_rat: is not a key of train: did you mean learning_rate?"),
        ("run.learning_rat", 1e-3, "did you mean train.learning_rate?"),
        ("eval.tasks.0.level", [1], "did you mean levels?"),
    ],
)
def test_unknown_key(path: str, value: Any, said: str) -> None:
    line = only_problem(path, value)
    assert line.startswith(f"x.yaml: {path}: ") and said in line


@pytest.mark.parametrize(
    ("path", "place"),
    [
        ("run.learning_rate", "train.learning_rate"),
        ("learning_rate", "train.learning_rate"),
        ("train.output_dir", "run.output_dir"),
        ("train.seed", "run.seed"),
        ("train.run_name", "run.name"),
        ("train.report_to", "run.report_to"),
        ("train.resume_from_checkpoint", "run.resume"),
        ("train.hub_model_id", "run.hub.model_id"),
        ("train.push_to_hub", "run.hub"),
        ("train.temperature", "objective.temperature"),
        ("train.loss_type", "objective.terms"),
        ("train.chat_template_path", "student.chat_template"),
        ("train.model_init_kwargs", "student"),
        ("train.dataset_text_field", "data.datasets.N.columns"),
        ("train.lora", "student.lora"),
        ("train.lr", "train.learning_rate"),
        ("teacher_model_name_or_path", "teachers.N.model_name_or_path"),
        ("train.teacher_model_name_or_path", "teachers.N.model_name_or_path"),
        ("dataset_name", "data.datasets.N.path"),
        ("data.dataset_name", "data.datasets.N.path"),
        ("student.r", "student.lora.r"),
        ("objective.terms.kd.temperature", "objective.temperature"),
        ("model_name_or_path", "student.model_name_or_path or teachers.N.model_name_or_path"),
    ],
)
@pytest.mark.parametrize("fields", [FIELDS, None])
def test_key_in_the_wrong_section(path: str, place: str, fields: dict[str, TrainField] | None) -> None:
    line = only_problem(path, 1, fields)
    assert line.startswith(f"x.yaml: {path}: belongs to {place}") and line.endswith(": write it there")


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("objective.beta", "objective.terms.NAME.beta of term: jsd"),
        ("train.beta", "TRL's beta 0 is term: forward_kl and 1 is reverse_kl"),
        ("objective.schedule", "makes a term's weight change"),
        ("objective.alpha", "objective.terms.NAME.weight"),
        ("objective.terms.kd.alpha", "objective.terms.NAME.weight"),
        ("train.lmbda", "the share of on-policy steps is read by method: onpolicy"),
        ("train.hub_token", "a token does not belong in a recipe"),
        ("train.options", "write the options directly under train"),
        ("train.warmup_ratio", "train.warmup_steps"),
    ],
)
def test_other_tools_keys_are_explained(path: str, said: str) -> None:
    line = only_problem(path, 1)
    assert line.startswith((f"x.yaml: {path}: is not a key of ", f"x.yaml: {path}: is not a knob of ")) and said in line


# ---------------------------------------------------------------- types, ranges, choices


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("data.datasets.0.max_rows", 3.7, "3.7 is not a whole number: give a whole number"),
        ("run.seed", 3.0, "3.0 is not a whole number: write 3"),
        ("run.seed", True, "true is not a whole number: give a whole number"),
        ("run.seed", None, "null is not a whole number: give a whole number"),
        ("student.lora", {"r": "abc"}, "'abc' is not a whole number: give a whole number"),
        ("objective.terms.kd.weight", "much", "'much' is not a number: give a number"),
        ("objective.terms.kd.weight", True, "true is not a number: give a number"),
        ("student.trust_remote_code", "yes", "'yes' is not true or false: give true or false"),
        ("student.revision", 12, "12 is not text: put it in quotes"),
        ("run.report_to", 3, "3 is neither text nor a list of texts"),
        ("teachers", {}, "{} is not a list: give a list"),
        ("objective.terms", [], "[] is not a mapping: give a mapping"),
        ("student", None, "null is not a mapping: give a mapping with the keys model_name_or_path, from_config"),
        ("objective.terms.kd", "forward_kl", "'forward_kl' is not a mapping: give a mapping with the keys term"),
        ("eval.tasks.0", "gsm8k", "'gsm8k' is not a mapping: give a mapping with the keys task"),
        ("data.datasets.0.path", "", "is empty: give local file or folder"),
        ("data.datasets", [], "is empty: give the training sources"),
        ("run.output_dir", MISSING, "is missing: give the run folder"),
        ("run", MISSING, "is missing: give a mapping with the keys name, output_dir"),
        ("train.method", MISSING, "is missing: give the trainer"),
        ("train.learning_rate", "fast", "'fast' is not a number: give a number"),
        ("train.learning_rate", None, "null is not a number: give a number, or leave the key out"),
        ("train.max_steps", 3.0, "3.0 is not a whole number: write 3"),
        ("train.max_steps", "10", "'10' is not a whole number: write it without quotes"),
        ("train.packing", 1, "1 is not true or false: give true or false"),
        ("train.include_for_metrics", "x", "'x' is not a list: give a list"),
        ("train.lr_scheduler_kwargs", 1, "1 is not a mapping or text: give a mapping or text"),
    ],
)
def test_wrong_type(path: str, value: Any, said: str) -> None:
    assert said in only_problem(path, value)


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("objective.terms.kd.weight", -1, "-1 is outside [0, inf): give a number inside it"),
        ("objective.terms.kd.weight", float("inf"), "is not finite: give a finite number"),
        ("objective.temperature.teacher", 0, "0 is outside (0, inf)"),
        ("student.lora", {"lora_dropout": 1.4}, "1.4 is outside [0, 1)"),
        ("run.seed", -1, "-1 is outside [0, 4294967296)"),
        ("run.world_size", 0, "0 is outside [1, inf)"),
        ("data.datasets.0.max_rows", 0, "0 is outside [1, inf)"),
        ("data.datasets.0.weight", 0, "0 is outside (0, inf)"),
        ("eval.tasks.0.levels", [0], "0 is outside [1, 4]"),
        ("eval.tasks.0.levels", [5], "5 is outside [1, 4]"),
        ("objective.terms.kd.mask.positions", [3, 3], "[3, 3] is not a range: give [from, to] with 0 <= from < to"),
        ("objective.terms.kd.mask.positions", [1], "[1] is not a range"),
        ("train.learning_rate", 0, "0 is outside (0, inf)"),
        ("train.per_device_train_batch_size", 0, "0 is outside [1, inf)"),
        ("train.gradient_accumulation_steps", 0, "0 is outside [1, inf)"),
        ("train.max_steps", 0, "0 is outside [1, inf) or -1"),
        ("train.max_length", 1, "1 is outside [2, inf)"),
        ("train.warmup_steps", -1, "-1 is outside [0, inf)"),
        ("train.max_grad_norm", -0.5, "-0.5 is outside [0, inf)"),
        ("train.early_stopping_patience", 0, "0 is outside [1, inf)"),
    ],
)
def test_out_of_range(path: str, value: Any, said: str) -> None:
    assert said in only_problem(path, value)
    if path.startswith("train."):
        assert said in only_problem(path, value, None)


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("student.dtype", "float31", "'float31' is not one of auto, float32, bfloat16, float16: did you mean float32?"),
        ("run.resume", False, "false is not one of never, auto: give one of them"),
        ("objective.terms.kd.term", "foward_kl", "did you mean forward_kl?"),
        ("train.method", "ofpolicy", "'ofpolicy' is not one of sft, offpolicy, onpolicy, rl: did you mean offpolicy?"),
        ("train.optim", "moun", "'moun' is not one of adamw_torch, muon: did you mean muon?"),
        ("train.eval_strategy", True, "true is not one of no, steps, epoch: give one of no, steps, epoch"),
    ],
)
def test_wrong_choice(path: str, value: Any, said: str) -> None:
    assert said in only_problem(path, value)


@pytest.mark.parametrize(
    ("path", "value", "word"),
    [
        ("train.method", "classification", "classification"),
        ("teachers.0.kind", "server", "server"),
        ("teachers.0.kind", "cache", "cache"),
        ("objective.terms.kd.term", "sinkhorn", "sinkhorn"),
    ],
)
def test_what_is_not_built_yet_says_so(path: str, value: Any, word: str) -> None:
    assert f"{path}: '{word}' is not built yet: give " in only_problem(path, value)


def test_every_problem_is_listed_and_none_speaks_of_the_validator() -> None:
    data = changed("run.seed", "x")
    data["student"]["dtype"] = 4
    data["teachers"][0]["nmae"] = "a"
    data["train"]["max_steps"] = "many"
    lines = problems(data)
    assert [line.split(": ")[1] for line in lines] == [
        "run.seed",
        "student.dtype",
        "teachers.0.nmae",
        "train.max_steps",
    ]
    assert not any(word in line for line in lines for word in ("Input should", "pydantic", "type=", "http"))


def test_keys_must_be_text() -> None:
    data = plain()
    data["run"][1] = 2
    data["objective"]["terms"][5] = {"term": "cross_entropy"}
    data["train"][7] = 0
    said = [line.split(": ", 2)[1:] for line in problems(data)]
    assert said == [
        ["run.1", "1 is not text: put the key in quotes"],
        ["objective.terms.5", "5 is not text: put the key in quotes"],
        ["train.7", "7 is not text: put the key in quotes"],
    ]


# ---------------------------------------------------------------- rules between keys


def with_two_teachers() -> dict[str, Any]:
    data = plain()
    data["teachers"] = [{"name": name, "model_name_or_path": f"org/{name}"} for name in ("big", "huge")]
    return data


def test_sft_allows_cross_entropy_only() -> None:
    line = only_problem("train.method", "sft")
    assert line.startswith("x.yaml: objective.terms.kd.term: forward_kl is not allowed with method: sft: use")


def test_offpolicy_needs_an_objective() -> None:
    keys = "temperature, logit_standardize, compiled, terms"
    assert f"objective: is missing: give a mapping with the keys {keys}" in only_problem("objective", MISSING)


def test_a_kl_needs_a_teacher() -> None:
    line = only_problem("teachers", [])
    assert line == "x.yaml: objective.terms.kd: forward_kl needs a teacher and there is none: add one to teachers"


def test_several_teachers_and_no_name_is_refused() -> None:
    data = with_two_teachers()
    assert problems(data) == [
        "x.yaml: objective.terms.kd.teacher: is missing and there are several teachers: give one of big, huge"
    ]
    data["objective"]["terms"]["kd"]["teacher"] = "huge"
    assert from_dict(data).objective.terms["kd"].teacher == "huge"


def test_a_term_names_a_teacher_that_exists() -> None:
    line = only_problem("objective.terms.kd.teacher", "teahcer")
    assert "kd.teacher: 'teahcer' is not one of teacher: did you mean teacher?" in line


def test_cross_entropy_takes_no_teacher() -> None:
    line = only_problem("objective.terms.ce.teacher", "teacher")
    assert "ce.teacher: 'teacher' is given, but cross_entropy reads no teacher: leave it out" in line


def test_teachers_have_different_names() -> None:
    data = with_two_teachers()
    data["teachers"][1]["name"] = "big"
    data["objective"]["terms"]["kd"]["teacher"] = "big"
    assert problems(data) == ["x.yaml: teachers.1.name: 'big' is the name of another teacher: give each its own"]


@pytest.mark.parametrize(
    ("student", "path", "said"),
    [
        ({}, "student", "neither model_name_or_path nor from_config is given: give one of them"),
        (
            {"model_name_or_path": "a", "from_config": {"model_type": "llama"}, "tokenizer_name_or_path": "t"},
            "student",
            "both model_name_or_path and from_config are given: give one of them",
        ),
        ({"from_config": {"model_type": "llama"}}, "student.tokenizer_name_or_path", "is missing"),
        ({"from_config": {}, "tokenizer_name_or_path": "t"}, "student.from_config.model_type", "is missing"),
        (
            {"model_name_or_path": "a", "quantization": {"load_in_4bit": True}},
            "student.quantization",
            "quantised weights cannot be trained: add student.lora",
        ),
        (
            {"model_name_or_path": "a", "lora": {}, "quantization": {}},
            "student.quantization",
            "neither of load_in_4bit and load_in_8bit is true",
        ),
    ],
)
def test_rules_of_the_student(student: dict[str, Any], path: str, said: str) -> None:
    assert only_problem("student", student).startswith(f"x.yaml: {path}: {said}")


def test_weighted_needs_every_weight() -> None:
    line = only_problem("data.datasets.0.weight", 2)
    assert line.startswith("x.yaml: data.datasets.1.weight: is missing: with sampling.kind: weighted every data set")


def test_a_weight_that_nothing_reads_is_refused() -> None:
    data = changed("data.sampling", {"kind": "uniform"})
    data["data"]["datasets"][0]["weight"] = 2
    data["eval"]["datasets"] = [{"path": "a.jsonl", "weight": 1}]
    lines = problems(data)
    assert [line.split(": ")[1] for line in lines] == ["eval.datasets.0.weight", "data.datasets.0.weight"]


def test_columns_are_ours_to_theirs() -> None:
    assert from_dict(changed("data.datasets.0.columns", {"text": "body"})).data.datasets[0].columns == {"text": "body"}
    assert "'prompts' is not one of messages, prompt, completion, text: did you mean prompt?" in only_problem(
        "data.datasets.0.columns", {"prompts": "question"}
    )


def test_a_masks_domains_exist_in_the_data() -> None:
    line = only_problem("objective.terms.kd.mask", {"domains": ["code", "mahts"]})
    assert "kd.mask.domains: 'mahts' is the domain of no entry in data.datasets: did you mean math?" in line


@pytest.mark.parametrize(("mask", "given"), [({}, "neither"), ({"domains": ["code"], "positions": [0, 1]}, "both")])
def test_a_mask_is_by_domain_or_by_position(mask: dict[str, Any], given: str) -> None:
    assert f"kd.mask: {given} of domains and positions is given: give one of them" in only_problem(
        "objective.terms.kd.mask", mask
    )


def test_all_weights_zero_is_refused() -> None:
    data = changed("objective.terms.kd.weight", 0)
    data["objective"]["terms"]["ce"]["weight"] = 0.0
    assert problems(data)[0].startswith("x.yaml: objective.terms: every weight is 0, so nothing is trained")


def test_names_are_fit_for_metrics_and_overrides() -> None:
    assert "'a.b' is not a name: use letters, digits, _ and - only" in only_problem("teachers.0.name", "a.b")
    assert "'a/b' is not a name" in only_problem("data.datasets.0.domain", "a/b")


def test_rewards_are_refused() -> None:
    assert "rewards: read by method: rl only, not by offpolicy: leave the section out" in only_problem(
        "rewards", [{"kind": "math"}]
    )


def test_sft_has_no_baseline_apart() -> None:
    data = changed("objective.terms", {"ce": {"term": "cross_entropy"}})
    data["train"]["method"] = "sft"
    data["eval"]["baseline"] = True
    assert problems(data) == ["x.yaml: eval.baseline: true, but method: sft is that baseline itself: leave it out"]
