"""The import rules of llmkd, read from its syntax trees, and proof that the reader finds what breaks them.

Direction: `LEVELS`, lower ones only; siblings of level 1 never import each other. TRL only in trainers, build and
trl_compat, and what TRL calls private or experimental in trl_compat alone. objectives: torch, llmkd.types, llmkd.terms
and the standard library. terms: the standard library alone. Optional packages only inside functions.
"""

import ast
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# A part is the second word of a module's name: llmkd.data.render is of the part `data`. `""` is llmkd/__init__.py.
LEVELS = [
    {"", "terms", "types", "config", "backbone", "trl_compat"},
    {"objectives", "teachers", "data", "rewards", "trainers"},
    {"build", "build_onpolicy", "build_rewards", "build_rl", "build_rollouts", "export", "modelling", "run"},
    {"checks", "generation", "evaluation"},
    {"cli", "job", "methods", "train"},
]
LEVEL = {part: level for level, parts in enumerate(LEVELS) for part in parts}
SIBLINGS = LEVELS[1]
TRL_PARTS = {"trainers", "build", "trl_compat"}
WITHOUT_TRL = SIBLINGS - TRL_PARTS  # trl_compat brings TRL with it: to the trainers and to what stands above them
OPTIONAL = {
    "vllm", "deepspeed", "ray", "lm_eval", "optuna", "sacrebleu", "sklearn", "math_verify", "vl_convert",
    "bitsandbytes",
}  # fmt: skip
OBJECTIVES_MAY = {"torch", "triton"} | set(sys.stdlib_module_names)
OBJECTIVES_SEE = {"objectives", "types", "terms"}


@dataclass(frozen=True)
class Import:
    module: str  # absolute, e.g. llmkd.types or trl.experimental.gkd
    name: str | None  # what `from module import name` names
    line: int
    lazy: bool  # inside a function, or for the type checker only

    @property
    def top(self) -> str:
        return self.module.split(".")[0]

    @property
    def part(self) -> str:
        """The part of llmkd it reaches: `from llmkd import config` reaches config, as `import llmkd.config` does."""
        words = self.module.split(".")[1:] or [self.name or ""]
        return words[0] if words[0] in LEVEL or len(self.module.split(".")) > 1 else ""


def for_type_checker(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def imports_below(node: ast.AST, package: list[str], lazy: bool = False) -> list[Import]:
    """All imports under `node`, relative ones resolved against `package`, the words of the package's name."""
    found = []
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            found += [Import(alias.name, None, child.lineno, lazy) for alias in child.names]
        elif isinstance(child, ast.ImportFrom):
            base = package[: len(package) - child.level + 1] if child.level else []
            module = ".".join([*base, *([child.module] if child.module else [])])
            found += [Import(module, alias.name, child.lineno, lazy) for alias in child.names]
        else:
            inside = isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)) or for_type_checker(child)
            found += imports_below(child, package, lazy or inside)
    return found


def broken_rule(part: str, item: Import) -> str | None:
    """The rule that this import in a module of `part` breaks, or None."""
    if item.top in OPTIONAL and not item.lazy:
        return f"{item.top} is optional: import it inside the function that uses it"
    if item.top == "trl":
        return broken_trl_rule(part, item)
    if item.top != "llmkd":
        may = {"objectives": OBJECTIVES_MAY, "terms": sys.stdlib_module_names}.get(part)
        return f"{part} may not import {item.top}" if may is not None and item.top not in may else None
    other = item.part
    if other not in LEVEL:
        return f"{item.module} is of no known part: place `{other}` in LEVELS of tests/test_imports.py"
    if (part == "objectives" and other not in OBJECTIVES_SEE) or (part == "terms" and other != "terms"):
        return f"{part} may not import {other}"
    if other == "trl_compat" and part in WITHOUT_TRL:
        return f"{part} may not import trl_compat"
    if part in SIBLINGS and other in SIBLINGS and other != part:
        return f"{part} may not import its sibling {other}"
    if LEVEL[other] > LEVEL[part]:
        return f"{part} may not import {other}, which is above it"
    return None


def broken_trl_rule(part: str, item: Import) -> str | None:
    if part not in TRL_PARTS:
        return f"{part} may not import trl"
    words = [*item.module.split("."), item.name or ""]
    private = "experimental" in words or any(word.startswith("_") for word in words)
    return "private parts of trl are imported in trl_compat alone" if private and part != "trl_compat" else None


def violations(root: Path) -> list[str]:
    """`path:line: rule` for every import below `root`/llmkd that breaks a rule."""
    found = []
    for path in sorted((root / "llmkd").rglob("*.py")):
        words = list(path.relative_to(root).with_suffix("").parts)
        module = words[:-1] if words[-1] == "__init__" else words
        part = module[1] if len(module) > 1 else ""
        where = path.relative_to(root).as_posix()
        if part not in LEVEL:
            found.append(f"{where}:1: `{part}` is of no known part: place it in LEVELS of tests/test_imports.py")
            continue
        for item in imports_below(ast.parse(path.read_text(encoding="utf-8")), words[:-1]):
            rule = broken_rule(part, item)
            if rule:
                found.append(f"{where}:{item.line}: {rule}")
    return found


def test_llmkd_keeps_the_rules() -> None:
    assert violations(ROOT) == []


def test_llmkd_is_read() -> None:
    """The test above looks at something: the package's own imports are found."""
    path = ROOT / "llmkd" / "teachers" / "local.py"
    found = imports_below(ast.parse(path.read_text(encoding="utf-8")), ["llmkd", "teachers"])
    assert "types" in {item.part for item in found if item.top == "llmkd"}


CLEAN = {
    "llmkd/__init__.py": "__version__ = '0'",
    "llmkd/terms.py": "import math\nfrom typing import Literal",
    "llmkd/types.py": "import torch\nfrom llmkd.terms import Reading",
    "llmkd/config/sections.py": "from llmkd.terms import TermName",
    "llmkd/trl_compat.py": "from trl.experimental.gkd import GKDTrainer\nfrom trl.trainer import _private",
    "llmkd/objectives/__init__.py": "from .kl import kl",
    "llmkd/objectives/kl.py": "from __future__ import annotations\nimport math, torch\nfrom ..types import Batch\n"
    "from llmkd.terms import class_of\nfrom llmkd import terms",
    "llmkd/trainers/offpolicy.py": "from trl import SFTTrainer\nfrom llmkd.trl_compat import x\nimport llmkd.types",
    "llmkd/build.py": "import llmkd\nfrom llmkd import __version__\nfrom llmkd.trainers import offpolicy\nimport trl",
    "llmkd/evaluation/tasks.py": "from llmkd.build import student\ndef run():\n    import lm_eval",
    "llmkd/generation/engine.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from vllm import LLM",
    "llmkd/cli.py": "def main():\n    from llmkd.evaluation import tasks",
}

FAULTS = {
    "upwards": ("llmkd/types.py", "from llmkd.config import Recipe\nimport llmkd.objectives.kl"),
    "upwards by from": ("llmkd/types.py", "from llmkd import trainers"),
    "upwards in a function": ("llmkd/run.py", "def f():\n    from llmkd.evaluation import tasks"),
    "upwards, relative": ("llmkd/data/rows.py", "from ..build import student"),
    "sibling": ("llmkd/teachers/local.py", "from llmkd.data import render"),
    "sibling, relative": ("llmkd/trainers/rl.py", "from .. import rewards"),
    "trl in data": ("llmkd/data/rows.py", "from trl import apply_chat_template"),
    "trl in evaluation": ("llmkd/evaluation/tasks.py", "def f():\n    import trl"),
    "trl_compat in teachers": ("llmkd/teachers/local.py", "from llmkd import trl_compat"),
    "experimental trl": ("llmkd/trainers/rl.py", "from trl.experimental.gkd import GKDTrainer"),
    "private trl": ("llmkd/build.py", "from trl.trainer.utils import _helper"),
    "objectives and transformers": ("llmkd/objectives/kl.py", "import transformers"),
    "objectives and config": ("llmkd/objectives/kl.py", "from llmkd.config import Term"),
    "objectives and config, relative": ("llmkd/objectives/kl.py", "from ..config import Term"),
    "terms and torch": ("llmkd/terms.py", "import torch"),
    "terms and types": ("llmkd/terms.py", "from llmkd.types import Signals"),
    "vllm at the top": ("llmkd/generation/engine.py", "from vllm import LLM"),
    "deepspeed in a class body": ("llmkd/trainers/rl.py", "class A:\n    import deepspeed"),
    "vllm in a try": ("llmkd/generation/engine.py", "try:\n    import vllm\nexcept ImportError:\n    vllm = None"),
    "unknown part": ("llmkd/utils.py", "import math"),
    "import of an unknown part": ("llmkd/cli.py", "from llmkd.helpers import f"),
}


def write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n", encoding="utf-8")


def test_checker_accepts_what_is_allowed(tmp_path: Path) -> None:
    write(tmp_path, CLEAN)
    assert violations(tmp_path) == []


@pytest.mark.parametrize("fault", FAULTS)
def test_checker_finds_a_planted_fault(tmp_path: Path, fault: str) -> None:
    name, text = FAULTS[fault]
    write(tmp_path, CLEAN | {name: text})
    found = violations(tmp_path)
    assert len(found) == 1
    assert found[0].startswith(f"{name}:")
