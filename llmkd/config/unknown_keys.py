"""What to say about a key that is not one of its section's: where it belongs, or what was probably meant."""

from collections.abc import Collection

from llmkd.config.schema import places
from llmkd.config.values import closest

# Fields of TRL's configs that another section owns, and other tools' spellings: key -> where it is written here.
MOVED: dict[str, str] = {
    "output_dir": "run.output_dir",
    "run_name": "run.name",
    "seed": "run.seed",
    "report_to": "run.report_to",
    "resume_from_checkpoint": "run.resume",
    "push_to_hub": "run.hub",
    "hub_model_id": "run.hub.model_id",
    "hub_private_repo": "run.hub.private",
    "hub_strategy": "run.hub.push",
    "hub_always_push": "run.hub.push",
    "hub_revision": "run.hub",
    "model_init_kwargs": "student (dtype, attn_implementation, revision)",
    "trust_remote_code": "student.trust_remote_code or teachers.N.trust_remote_code",
    "chat_template_path": "student.chat_template",
    "torch_dtype": "student.dtype or teachers.N.dtype",
    "model_revision": "student.revision",
    "model": "student.model_name_or_path",
    "student_model_name_or_path": "student.model_name_or_path",
    "tokenizer": "student.tokenizer_name_or_path",
    "use_peft": "student.lora",
    "peft_config": "student.lora",
    "lora_r": "student.lora.r",
    "lora_target_modules": "student.lora.target_modules",
    "lora_modules_to_save": "student.lora.modules_to_save",
    "teacher": "teachers",
    "teacher_model": "teachers.N.model_name_or_path",
    "teacher_model_name_or_path": "teachers.N.model_name_or_path",
    "teacher_model_revision": "teachers.N.revision",
    "teacher_model_init_kwargs": "teachers.N (dtype, attn_implementation, revision)",
    "dataset": "data.datasets",
    "dataset_name": "data.datasets.N.path",
    "dataset_config": "data.datasets.N.name",
    "dataset_train_split": "data.datasets.N.split",
    "dataset_test_split": "eval.datasets.N.split",
    "dataset_streaming": "data.datasets.N.streaming",
    "dataset_text_field": "data.datasets.N.columns",
    "dataset_kwargs": "data.datasets.N.columns",
    "eval_dataset": "eval.datasets",
    "temperature": "objective.temperature",
    "loss_type": "objective.terms",
    "loss": "objective.terms.NAME.term",
    "divergence": "objective.terms.NAME.term",
    "batch_size": "train.per_device_train_batch_size",
    "lr": "train.learning_rate",
    "epochs": "train.num_train_epochs",
    "max_seq_length": "train.max_length",
    "max_seq_len": "train.max_length",
}

_TWO_WEIGHTS = "each term has its own objective.terms.NAME.weight; alpha*CE + (1-alpha)*KD is written as two terms"

# Keys with no place of their own here: key -> what to do instead.
EXPLAINED: dict[str, str] = {
    "beta": "TRL's beta 0 is term: forward_kl and 1 is reverse_kl; between, objective.terms.NAME.beta of term: jsd",
    "alpha": _TWO_WEIGHTS,
    "kd_ratio": _TWO_WEIGHTS,
    "kd_weight": _TWO_WEIGHTS,
    "lmbda": "the share of on-policy steps is read by method: onpolicy",
    "lmbda_schedule": "how the share of on-policy steps rises is read by method: onpolicy",
    "replay_capacity": "how many of the student's completions are kept is read by method: onpolicy",
    "pairs": "the data's completions beside the student's own are read by method: onpolicy",
    "teacher_mixture": "the teacher's share in what completions are drawn from is read by method: onpolicy",
    "schedule": "weight: {schedule: linear, from: 1.0, to: 0.1} makes a term's weight change",
    "hub_token": "a token does not belong in a recipe: log in with `hf auth login`",
    "options": "write the options directly under train",
    "warmup_ratio": "give train.warmup_steps, where a number below 1 is a share of all steps",
}


def owner(key: str) -> str | None:
    """The place outside `train` that owns one of the trainer's own fields, None where `train` keeps it."""
    place = MOVED.get(key)
    return None if place is None or place.startswith("train.") else place


def unknown_key(
    section: str,
    key: str,
    siblings: Collection[str],
    train_names: Collection[str] | None,
    *,
    guess: bool = True,
) -> str | None:
    """The sentence for a key that its section does not have.

    `section` is the dotted path of the section ("" at the top), `siblings` its keys, `train_names` the fields that
    `train` may hold. With guess=False only what is certain is said, and None where nothing is.
    """
    where = f"is not a key of {section or 'a recipe'}"
    if key in EXPLAINED:
        return f"{where}: {EXPLAINED[key]}"
    if key in MOVED:
        return f"belongs to {MOVED[key]}: write it there"
    if key in places():
        return f"belongs to {' or '.join(places()[key])}: write it there"
    if train_names and key in train_names:
        return f"belongs to train.{key}: write it there"
    if not guess:
        return None
    near = closest(key, siblings)
    if near:
        return f"{where}: did you mean {near}?"
    elsewhere = closest(key, train_names or ())
    if elsewhere:
        return f"{where}: did you mean train.{elsewhere}?"
    return f"{where}: {_allowed(siblings)}"


def _allowed(siblings: Collection[str]) -> str:
    names = sorted(siblings)
    if len(names) > 20:
        return f"it has {len(names)} keys, listed by --help, and none is like it"
    return f"allowed are {', '.join(names)}"
