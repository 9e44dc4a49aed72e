"""The embedded corpus: `code` and `prose` from the running Python's standard library, `math` from a generator.

Nothing is downloaded and nothing was written for it. A committed list of modules with hashes (`modules.json`) says
which sources were meant; `version_note` says how the running Python differs. Modules and topics are split by a hash of
their name, one in 20 held out; what stands in training is dropped from the held-out side, paragraph by paragraph.

`python -m llmkd.data.quickstart.corpus --relist` writes the list again from the running Python.
"""

import hashlib
import importlib
import re
import sys
from functools import lru_cache
from typing import Any, Literal

from llmkd.data.quickstart import cleaning, modules
from llmkd.data.quickstart.modules import version_note
from llmkd.data.tasks.arithmetic import LEVELS, problems

__all__ = ["DOMAINS", "SPLITS", "code_modules", "prose_documents", "rows", "version_note"]

Domain = Literal["code", "prose", "math"]
Split = Literal["train", "heldout"]

DOMAINS = ("code", "prose", "math")
SPLITS = ("train", "heldout")
HELDOUT_ONE_IN = 20
SPLIT_SALT = "heldout/"  # with it no one module makes up more than a tenth of the held-out code
MIN_DOCSTRING = 80
MATH_SEED = 2
MATH_ROWS = {"train": 60_000, "heldout": 400}


def rows(name: str, split: str) -> list[dict[str, Any]]:
    """Return the rows of a domain's split, in a fixed order.

    code, prose: {"text", "source"}, a document a row: split them into windows of the model's length.
    math: {"messages": [user, assistant], "answer", "level"}, the four levels in turn.
    Raises ValueError for an unknown domain or split.
    """
    _check("domain", name, DOMAINS)
    _check("split", split, SPLITS)
    if name == "math":
        return [_math_row(item) for item in problems(MATH_SEED, MATH_ROWS[split], LEVELS, split)]  # type: ignore[arg-type]
    documents = code_modules(split) if name == "code" else prose_documents(split)
    return [{"text": text, "source": source} for source, text in documents.items()]


def code_modules(split: str) -> dict[str, str]:
    """Return {module: its source without docstrings and repeats}; every value parses."""
    return _code()[split]


def prose_documents(split: str) -> dict[str, str]:
    """Return {module or topic: its docstrings or text}, repeated paragraphs dropped."""
    return _prose()[split]


def split_of(name: str) -> Split:
    """Return the split that a module's or topic's name hashes to."""
    digest = hashlib.blake2b(f"{SPLIT_SALT}{name}".encode(), digest_size=4).digest()
    return "heldout" if int.from_bytes(digest) % HELDOUT_ONE_IN == 0 else "train"


@lru_cache(maxsize=1)
def _sources() -> tuple[dict[str, str], dict[str, str]]:
    """Return ({module: code}, {module: docstrings}) of every listed module that this Python has and can read."""
    codes: dict[str, str] = {}
    docstrings: dict[str, str] = {}
    seen: set[str] = set()
    for name, entry in _train_first(modules.listed()["modules"]).items():
        source = None if name == modules.TOPICS else modules.read_source(entry["path"])
        parsed = cleaning.parse(source) if source is not None else None
        if parsed is not None:
            codes[name] = cleaning.code(parsed, seen)
            docstrings[name] = "\n\n".join(text for text in parsed.docstrings if len(text) >= MIN_DOCSTRING)
    return codes, docstrings


@lru_cache(maxsize=1)
def _code() -> dict[str, dict[str, str]]:
    split = _divide(_sources()[0])
    known = {part for text in split["train"].values() for part in cleaning.code_paragraphs(text)}
    split["heldout"] = {name: cleaning.drop_statements(text, known) for name, text in split["heldout"].items()}
    return {side: {name: text for name, text in texts.items() if text.strip()} for side, texts in split.items()}


@lru_cache(maxsize=1)
def _prose() -> dict[str, dict[str, str]]:
    documents = {f"topic {name}": _clean_topic(text) for name, text in sorted(_topics().items())}
    documents.update(_sources()[1])
    seen: set[str] = set()
    kept = {}
    for name, text in _train_first(documents).items():
        parts = [part for part in cleaning.paragraphs(text) if not _repeats(cleaning.normal(part), seen)]
        if parts:
            kept[name] = "\n\n".join(parts) + "\n"
    return _without_quotes(_divide(kept))


def _divide(documents: dict[str, str]) -> dict[str, dict[str, str]]:
    split: dict[str, dict[str, str]] = {"train": {}, "heldout": {}}
    for name, text in documents.items():
        split[split_of(name)][name] = text
    return split


def _without_quotes(split: dict[str, dict[str, str]]) -> dict[str, dict[str, str]]:
    """Drop the held-out paragraphs that stand inside a longer paragraph of training."""
    train = cleaning.normal("\n".join(split["train"].values()))
    heldout = {}
    for name, text in split["heldout"].items():
        parts = [part for part in cleaning.paragraphs(text) if cleaning.normal(part) not in train]
        if parts:
            heldout[name] = "\n\n".join(parts) + "\n"
    return {"train": split["train"], "heldout": heldout}


def _train_first(documents: dict[str, Any]) -> dict[str, Any]:
    """Order the documents with training before held-out, so that a repeat is dropped from the held-out side."""
    return dict(sorted(documents.items(), key=lambda pair: split_of(pair[0]) == "heldout"))


def _repeats(key: str, seen: set[str]) -> bool:
    if key in seen:
        return True
    seen.add(key)
    return False


def _topics() -> dict[str, str]:
    """Return the language reference that `help()` shows; empty where this Python ships without it."""
    try:
        return importlib.import_module(modules.TOPICS).topics
    except ImportError:
        return {}


def _clean_topic(text: str) -> str:
    """Return a topic without heading underlines (`====`), trailing spaces and runs of blank lines."""
    lines = [line.rstrip() for line in text.split("\n")]
    lines = [line for line in lines if not re.fullmatch(r"([=*~^-])\1{3,}", line.strip())]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip("\n")


def _math_row(item: dict[str, Any]) -> dict[str, Any]:
    messages = [
        {"role": "user", "content": item["question"]},
        {"role": "assistant", "content": item["solution"]},
    ]
    return {"messages": messages, "answer": item["answer"], "level": item["level"]}


def _check(what: str, given: str, allowed: tuple[str, ...]) -> None:
    if given not in allowed:
        raise ValueError(f"llmkd/quickstart: {what} {given!r} does not exist; choose from {', '.join(allowed)}")


if __name__ == "__main__":
    if sys.argv[1:] != ["--relist"]:
        sys.exit("usage: python -m llmkd.data.quickstart.corpus --relist")
    modules.write_list()
    print(f"wrote {modules.LIST}: {len(modules.listed()['modules'])} modules; note: {version_note()}")
