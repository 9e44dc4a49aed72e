"""The table of rewards, and a recipe's entry made into a function that is ready to call.

What each kind takes is data of the recipe's (``llmkd.config.reward_kinds``); here each name meets its function.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from llmkd.config.reward_kinds import KINDS, REWARD_KINDS, RewardDeclared, RewardKind, knob_problems, unknown_knob
from llmkd.config.rewards_section import Reward
from llmkd.config.values import closest

Function = Callable[..., Any]


@dataclass(frozen=True)
class Entry:
    """One row: the declared part, and the function, whose module has its name and is imported when asked for."""

    name: RewardKind
    declared: RewardDeclared

    @property
    def function(self) -> Function:
        return getattr(importlib.import_module(f"llmkd.rewards.{self.name}"), self.name)


REWARDS: dict[RewardKind, Entry] = {name: Entry(name, REWARD_KINDS[name]) for name in KINDS}


@dataclass(frozen=True)
class Loaded:
    """A reward with its knobs bound. Called with a prompt, a completion and a reference it gives the function's value.

    tokens: whether the function is given the completion's number of tokens, ``needed`` where it cannot do without.
    """

    name: str
    function: Function
    knobs: Mapping[str, Any] = field(default_factory=dict)
    column: str | None = "answer"
    weight: float = 1.0
    correct: bool = False
    on_error: Literal["mask", "stop"] = "mask"
    tokens: Literal["no", "taken", "needed"] = "no"

    def __call__(self, prompt: Any, completion: str, reference: Any, *, tokens: int | None = None) -> Any:
        given = {} if self.tokens == "no" or tokens is None else {"tokens": tokens}
        return self.function(prompt, completion, reference, **self.knobs, **given)


def load(section: Reward | Mapping[str, Any]) -> Loaded:
    """The reward that an entry of the recipe's ``rewards`` stands for.

    A function of the user's own is called with (prompt, completion, reference), the knobs as keywords and, if it has a
    parameter ``tokens``, the completion's number of tokens.

    Raises: ValueError for an unknown kind, a function that is not there or takes something else, a knob that it does
    not take, and a package that it needs and that is missing.
    """
    if isinstance(section, Mapping):
        section = _section(section)
    if (section.kind is None) == (section.path is None):
        raise ValueError(f"rewards: {section.label or 'an entry'}: give one of kind and path")
    where = f"rewards: {section.label}"
    if section.kind is not None:
        function = _of_kind(section.kind, section.knobs, where)
    else:
        function = _of_path(section.path or "", where)
    tokens = _checked(function, section.knobs, where)
    return Loaded(section.label, function, section.knobs, section.column, section.weight, section.correct,
                  section.on_error, tokens)  # fmt: skip


def _section(values: Mapping[str, Any]) -> Reward:
    kind = values.get("kind")
    if kind is not None and kind not in KINDS:
        near = closest(kind, KINDS)
        advice = f"did you mean {near}?" if near else f"there are {', '.join(KINDS)}; your own goes under path"
        raise ValueError(f"rewards: there is no kind {kind!r}: {advice}")
    return Reward.model_validate(dict(values))


def _of_kind(kind: RewardKind, knobs: Mapping[str, Any], where: str) -> Function:
    for knob, sentence in knob_problems(kind, knobs):
        raise ValueError(f"{where}{'.' * bool(knob)}{knob}: {sentence}")
    if kind == "math":
        from llmkd.rewards.math import require

        require()
    if kind == "format" and "pattern" in knobs:
        from llmkd.rewards.format import check_pattern

        check_pattern(knobs["pattern"])
    return REWARDS[kind].function


def _of_path(path: str, where: str) -> Function:
    """The function of ``package.module.function`` or ``path/to/file.py:function``."""
    file, colon, name = path.rpartition(":")
    if colon:
        module = _file_module(Path(file), where)
    else:
        place, _, name = path.rpartition(".")
        if not place:
            raise ValueError(f"{where}: path {path!r} names no module: write package.module.function")
        module = _imported(place, where)
    found = getattr(module, name, None)
    if found is None:
        functions = [key for key, value in vars(module).items() if inspect.isfunction(value) and key[0] != "_"]
        near = closest(name, functions)
        advice = f"did you mean {near}?" if near else f"it has {', '.join(functions) or 'none'}"
        raise ValueError(f"{where}: path {path!r}: there is no function {name!r}: {advice}")
    if not callable(found):
        raise ValueError(f"{where}: path {path!r} is {type(found).__name__}, which cannot be called: name a function")
    return found


def _imported(place: str, where: str) -> ModuleType:
    try:
        return importlib.import_module(place)
    except ModuleNotFoundError as error:
        raise ValueError(f"{where}: the module {place} cannot be imported ({error}): install it, or put its folder on "
                         "PYTHONPATH, or give path/to/file.py:function") from None  # fmt: skip
    except Exception as error:
        raise ValueError(f"{where}: the module {place} fails when imported: {_said(error)}: mend it") from error


def _file_module(file: Path, where: str) -> ModuleType:
    """The module of a file, made once a process under a name of its own, by which pickle finds its functions."""
    if not file.is_file():
        raise ValueError(f"{where}: there is no file {file}: give a path from where the command is run")
    name = "llmkd_reward_file_" + "".join(c if c.isalnum() else "_" for c in str(file.resolve()))
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise ValueError(f"{where}: {file} is not a Python file: give one whose name ends in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise ValueError(f"{where}: {file} fails when imported: {_said(error)}: mend it") from error
    return module


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def _checked(function: Function, knobs: Mapping[str, Any], where: str) -> Literal["no", "taken", "needed"]:
    """Whether the function takes tokens; ValueError where it does not take three things and the knobs."""
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):  # some functions written in C have no signature to read
        return "no"
    kind = inspect.Parameter
    shape = f"{where}: {getattr(function, '__name__', function)}({', '.join(map(str, parameters))})"
    placed = [p for p in parameters if p.kind in (kind.POSITIONAL_ONLY, kind.POSITIONAL_OR_KEYWORD)][:3]
    if len(placed) < 3 and not any(p.kind is kind.VAR_POSITIONAL for p in parameters):
        raise ValueError(f"{shape} must take three things, (prompt, completion, reference): change it")
    settings = {p.name: p for p in parameters
                if p not in placed and p.kind in (kind.POSITIONAL_OR_KEYWORD, kind.KEYWORD_ONLY)}  # fmt: skip
    names = [name for name in settings if name != "tokens"]
    for knob in knobs:
        if knob not in names and not any(p.kind is kind.VAR_KEYWORD for p in parameters):
            raise ValueError(f"{where}.{knob}: {unknown_knob(where.partition(' ')[2], knob, dict.fromkeys(names))}")
    missing = [name for name in names if settings[name].default is kind.empty and name not in knobs]
    missing += [p.name for p in parameters if p.kind is kind.POSITIONAL_ONLY and p not in placed
                and p.default is kind.empty]  # fmt: skip
    if missing:
        raise ValueError(f"{shape} takes more than three things: give {', '.join(missing)} beside path, or a default")
    if "tokens" not in settings:
        return "no"
    return "needed" if settings["tokens"].default is kind.empty or "max_tokens" in knobs else "taken"
