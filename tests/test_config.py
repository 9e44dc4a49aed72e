"""The recipe: what a file, a dict and overrides may say, and how it is read."""

import copy
from pathlib import Path

import pytest

from llmkd.config import Mask, Recipe, RecipeError, TrainField, from_dict, help_text, load

from config_recipe import FIELDS, MISSING, RECIPE, changed, plain


@pytest.fixture
def recipe_file(tmp_path: Path) -> Path:
    path = tmp_path / "small.yaml"
    path.write_text(RECIPE)
    return path


# ---------------------------------------------------------------- what is accepted


def test_file_and_dict_give_the_same_recipe(recipe_file: Path) -> None:
    from_file = load(recipe_file, train_fields=FIELDS)
    named = plain()
    named["run"]["name"] = "small"
    assert from_file == from_dict(named, train_fields=FIELDS)


def test_name_defaults_to_the_stem_of_the_file(recipe_file: Path) -> None:
    assert load(recipe_file).run.name == "small"
    assert load(recipe_file, ["run.name=other"]).run.name == "other"


def test_defaults() -> None:
    recipe = from_dict(plain())
    assert (recipe.run.report_to, recipe.run.resume, recipe.run.hub) == ("none", "never", None)
    assert (recipe.student.dtype, recipe.student.lora, recipe.student.merged_export) == ("float32", None, True)
    assert (recipe.teachers[0].name, recipe.teachers[0].template) == ("teacher", "student")
    assert recipe.data.sampling.kind == "proportional"
    assert recipe.objective.terms["kd"].weight == 1.0
    assert recipe.objective.terms["kd"].mask == Mask(positions=[0, 10])
    assert (recipe.eval.samples, recipe.eval.baseline, recipe.eval.fidelity) == (0, False, True)


@pytest.mark.parametrize("fields", [FIELDS, None])
def test_round_trip(fields: dict[str, TrainField] | None) -> None:
    data = plain()
    data["student"] |= {"lora": {"r": 4, "target_modules": ["q_proj"]}, "quantization": {"load_in_4bit": True}}
    data["run"]["hub"] = {"model_id": "me/x"}
    data["data"]["datasets"][0]["weight"], data["data"]["datasets"][1]["weight"] = 1, 2.5
    data["train"]["lr_scheduler_kwargs"] = {"min_lr": 1e-6}
    recipe = from_dict(data, train_fields=fields)
    assert recipe.to_dict()["train"] == data["train"]
    assert from_dict(recipe.to_dict(), train_fields=fields) == recipe


def test_validating_leaves_the_given_dict_alone() -> None:
    data = plain()
    before = copy.deepcopy(data)
    recipe = from_dict(data)
    recipe.to_dict()["train"]["max_steps"] = 0
    assert data == before and recipe.train.options["max_steps"] == 10


def test_sft_may_leave_the_objective_out() -> None:
    data = changed("objective", MISSING)
    data["train"]["method"] = "sft"
    terms = from_dict(data).objective.terms
    assert [(term.term, term.weight) for term in terms.values()] == [("cross_entropy", 1.0)]


def test_any_weight_and_no_kind_means_weighted() -> None:
    data = plain()
    for source in data["data"]["datasets"]:
        source["weight"] = 2
    assert from_dict(data).data.sampling.kind == "weighted"


def test_two_data_sets_may_share_a_domain() -> None:
    assert from_dict(changed("data.datasets.1.domain", "code")).data.datasets[1].domain == "code"


@pytest.mark.parametrize("spelling", ["5e-7", "5E-7", "5.0e-7", "'5e-7'", "0.0000005", ".5e-6"])
@pytest.mark.parametrize("fields", [FIELDS, None])
def test_numbers_with_an_exponent_are_numbers(
    recipe_file: Path, spelling: str, fields: dict[str, TrainField] | None
) -> None:
    overrides = [f"train.learning_rate={spelling}", f"objective.terms.kd.weight={spelling}"]
    recipe = load(recipe_file, overrides, train_fields=fields)
    assert recipe.train.options["learning_rate"] == 5e-7
    assert recipe.objective.terms["kd"].weight == 5e-7


def test_exponents_are_numbers_inside_free_mappings(recipe_file: Path) -> None:
    overrides = ["student={from_config: {model_type: llama, rope_theta: 1e6}, tokenizer_name_or_path: t}"]
    assert load(recipe_file, overrides).student.from_config == {"model_type": "llama", "rope_theta": 1e6}


def test_text_that_only_looks_like_a_date_stays_text(recipe_file: Path) -> None:
    assert load(recipe_file, ["run.name=2024-01-02"]).run.name == "2024-01-02"


def test_an_int_stands_for_a_float_and_no_for_a_choice(recipe_file: Path) -> None:
    recipe = load(recipe_file, ["train.logging_steps=10", "train.eval_strategy=no"], train_fields=FIELDS)
    assert recipe.train.options["logging_steps"] == 10
    assert recipe.train.options["eval_strategy"] == "no"


def test_without_fields_unknown_options_pass(recipe_file: Path) -> None:
    assert load(recipe_file, ["train.some_new_field=[1]"]).train.options["some_new_field"] == [1]


def test_a_recipe_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        from_dict(plain()).run.seed = 1  # type: ignore[misc]


# ---------------------------------------------------------------- overrides


def test_overrides_reach_lists_mappings_and_what_is_not_there_yet(recipe_file: Path) -> None:
    recipe = load(
        recipe_file,
        [
            "teachers.0.dtype=float16",
            "data.datasets.0.max_rows=10",
            "objective.terms.kd.weight=0.25",
            "student.lora.r=8",
            "objective.terms.kd.mask=",
            "run.report_to=[tensorboard, wandb]",
            "train.packing=true",
        ],
        train_fields=FIELDS,
    )
    assert recipe.teachers[0].dtype == "float16"
    assert recipe.data.datasets[0].max_rows == 10
    assert recipe.objective.terms["kd"].weight == 0.25
    assert recipe.student.lora is not None and recipe.student.lora.r == 8
    assert recipe.objective.terms["kd"].mask is None
    assert recipe.run.report_to == ["tensorboard", "wandb"]
    assert recipe.train.options["packing"] is True


def test_an_override_of_one_alias_leaves_the_other(recipe_file: Path) -> None:
    text = RECIPE.replace("- {path: code", "- &code {path: code").replace("{tasks", "{datasets: [*code], tasks")
    recipe_file.write_text(text)
    recipe = load(recipe_file, ["eval.datasets.0.split=test"])
    assert (recipe.eval.datasets[0].split, recipe.data.datasets[0].split) == ("test", "train")


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("train.max_steps", "is not an override: write section.key=value, without dashes"),
        ("--train.max_steps=3", "is not an override: write section.key=value, without dashes"),
        ("train..max_steps=3", "is not an override"),
        ("teachers.1.dtype=auto", "teachers is a list and has no entry 1: its entries are 0 to 0"),
        ("teachers.-1.dtype=auto", "teachers is a list and has no entry -1"),
        ("teachers.big.dtype=auto", "teachers is a list and has no entry big"),
        ("eval.datasets.0.path=x", "eval.datasets is not given, so it has no entry 0: give eval.datasets a whole list"),
        ("run.seed.x=1", "run.seed is 3, which has no key x"),
        ("run.name=[a", "the value '[a' cannot be read: line 1"),
    ],
)
def test_an_override_that_cannot_be_applied(recipe_file: Path, override: str, said: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load(recipe_file, [override])
    assert str(caught.value).startswith(f"{recipe_file}: override {override}: ") and said in str(caught.value)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("run.sede=1", "run.sede: is not a key of run: did you mean seed?"),
        ("objective.terms.kd.weight=-1", "objective.terms.kd.weight: -1 is outside [0, inf)"),
        ("train.output_dir=x", "train.output_dir: belongs to run.output_dir"),
        ("run.seed=", "run.seed: null is not a whole number"),
    ],
)
def test_overrides_get_the_errors_of_the_file(recipe_file: Path, override: str, said: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load(recipe_file, [override], train_fields=FIELDS)
    assert str(caught.value).startswith(f"{recipe_file}: {said}")


# ---------------------------------------------------------------- files


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "the recipe is empty: give the sections run, student"),
        ("# nothing\n", "the recipe is empty"),
        ("- a\n", '["a"] is not a mapping: give the sections run, student'),
        ("run:\n  seed: 1\n  name: a\n  seed: 2\n", "line 4: the key 'seed' is given twice, first in line 2: keep one"),
        ("a: 1\nrun: [1\nb: 2\n", "line 3, column 2: not valid YAML: "),
        ("run:\n\tseed: 1\n", "line 2, column 1: not valid YAML: "),
        ("run: !!python/name:os.system x\n", "line 1, column 6: not valid YAML: "),
        ("a: 1\nb: \x07\n", "line 2: not valid YAML: "),
        ("a: &a [*a]\n", "an anchor that contains itself"),
        ("run: {seed: !!int x}\n", "not valid YAML: a value does not fit its tag"),
    ],
)
def test_a_file_that_is_no_recipe(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(RecipeError) as caught:
        load(path)
    assert str(caught.value).startswith(f"{path}: {said}") or said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_utf8(tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_bytes(b"run:\n  name: \xff\n")
    with pytest.raises(RecipeError, match="line 2: not UTF-8 text: save the recipe as UTF-8"):
        load(path)


def test_a_missing_file_and_a_folder(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"none\.yaml: no such file: give the path of a recipe"):
        load(tmp_path / "none.yaml")
    with pytest.raises(RecipeError, match="a folder, not a file"):
        load(tmp_path)


def test_a_recipe_error_is_a_value_error() -> None:
    assert issubclass(RecipeError, ValueError)


# ---------------------------------------------------------------- help


def test_help_names_every_section_and_key() -> None:
    text = help_text(FIELDS)
    for section, field in Recipe.model_fields.items():
        assert f"\n{section}: {field.description}\n" in text
    for line in (
        "  student.dtype  (auto | float32 | bfloat16 | float16, default float32)  dtype of the weights",
        "  run.output_dir  (text, required)  the run folder",
        "  train.learning_rate  (number)",
        "  train.eval_strategy  (no | steps | epoch)",
    ):
        assert line in text.splitlines()
    assert "PydanticUndefined" not in text and "typing" not in text
