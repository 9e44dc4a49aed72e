"""A program, judged by tests in the sandbox."""

from __future__ import annotations

import ast
import math
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from llmkd.rewards import sandbox

MOST_TESTS = 64
"""Tests that ``partial`` runs one by one."""
PATIENCE = 5
"""Timeouts that all tests of a program together may take; what was not run by then has failed."""
KEYS = {
    "tests": ("tests", "test_list", "test"),
    "setup": ("setup", "test_setup_code"),
    "entry_point": ("entry_point",),
}
"""What a reference may hold, by the names that data sets have for it (MBPP: test_list; HumanEval: test)."""
# Possessive: a line that is a fence but for its end must not be tried from every letter of it.
_FENCE = re.compile(r"[ \t]{0,3}(`{3,}+|~{3,}+)[ \t]*+([\w+-]*+)[^`\n]*+")


@dataclass(frozen=True)
class Tests:
    """statements: the tests; setup: what is put behind the program, in its process; entry_point: the function asked
    for, needed where it has the name of a builtin."""

    statements: tuple[str, ...]
    setup: str = ""
    entry_point: str | None = None


def code(
    prompt: Any, completion: str, reference: Any, *, timeout: float = 10.0, memory: int = 1024, partial: bool = False
) -> float:
    """1.0 where the completion's last fenced Python block passes all tests, else 0.0 (with ``partial``: the share).

    The block is the last one that is fenced by three backticks (or tildes), closed, and marked ``python``, ``py``,
    ``python3`` or not at all; a completion without one is wrong.  It runs in the sandbox alone (``sandbox`` says what
    a pass proves), for ``timeout`` seconds and with ``memory`` MB a process.  partial: each test apart, at the same
    limits, so that a failure costs only its own share; give it only where a wrong program is worth something.

    reference: the tests as a text (assert statements) or a list of such, or a mapping with ``tests`` and, if needed,
    ``entry_point`` and ``setup``; the names that MBPP and HumanEval have for these are read too.

    Raises: ValueError where the reference holds no tests, or they are not Python; RuntimeError where the machine
    refuses even limits.
    """
    tests = _tests(reference)
    if partial and len(tests.statements) > MOST_TESTS:
        raise ValueError(f"code: {len(tests.statements)} tests, and partial runs at most {MOST_TESTS} one by one")
    program = last_block(completion)
    if program is None:
        return 0.0
    limits = sandbox.Limits(seconds=timeout, cpu_seconds=math.ceil(timeout), memory_mb=memory)
    program = f"{program}\n{tests.setup}".encode(errors="replace").decode()  # a lone surrogate cannot be sent

    def passes(statements: str) -> bool:
        return sandbox.run(program, statements, limits, entry_point=tests.entry_point).passed

    if passes("\n".join(tests.statements)):
        return 1.0
    if not partial or len(tests.statements) == 1:
        return 0.0
    end = time.monotonic() + PATIENCE * timeout
    return sum(time.monotonic() < end and passes(test) for test in tests.statements) / len(tests.statements)


def last_block(text: str) -> str | None:
    """What the last closed fence of Python holds, None where there is none."""
    found, fence = None, None
    inside: list[str] = []
    for line in text.replace("\r\n", "\n").split("\n"):
        mark = _FENCE.fullmatch(line)
        if fence is None:
            if mark:
                fence, inside = mark, []
        elif mark and not mark.group(2) and mark.group(1).startswith(fence.group(1)):
            if fence.group(2).lower() in ("", "python", "py", "python3"):
                found = "\n".join(inside)
            fence = None
        else:
            inside.append(line)
    return found


def _tests(reference: Any) -> Tests:
    held = reference if isinstance(reference, Mapping) else {"tests": reference}
    values = {ours: next((held[key] for key in keys if held.get(key)), None) for ours, keys in KEYS.items()}
    tests = values["tests"]
    if isinstance(tests, str):
        statements = _statements(_called(tests, values["entry_point"]))
    elif isinstance(tests, list) and all(isinstance(test, str) for test in tests):
        statements = tuple(tests)
    else:
        statements = ()
    if not any(statement.strip() for statement in statements):
        raise ValueError(f"code: the reference {reference!r:.80} holds no tests: give text, a list, or a mapping with "
                         "tests")  # fmt: skip
    return Tests(statements, values["setup"] or "", values["entry_point"])


def _called(tests: str, entry_point: str | None) -> str:
    """HumanEval's tests define ``check(candidate)``; where nobody calls it, the call is added."""
    if entry_point and "def check(" in tests and "\ncheck(" not in tests:
        return f"{tests}\ncheck({entry_point})"
    return tests


def _statements(tests: str) -> tuple[str, ...]:
    """The tests in pieces that run alone: each assert at the top with all that is no assert; else all in one."""
    try:
        body = ast.parse(tests).body
    except (SyntaxError, ValueError) as error:
        raise ValueError(f"code: the tests are not Python ({error}): mend the data they come from") from None
    asserts = [node for node in body if isinstance(node, ast.Assert)]
    others = [node for node in body if not isinstance(node, ast.Assert)]
    if not asserts or any(not isinstance(node, ast.Import | ast.ImportFrom) for node in others):
        return (tests,)
    head = "".join(ast.unparse(node) + "\n" for node in others)
    return tuple(head + (ast.get_source_segment(tests, node) or ast.unparse(node)) for node in asserts)
