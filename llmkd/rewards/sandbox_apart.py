"""Inside the sandbox: the code under test in one process, its tests in another.

The process of the tests never runs the code.  It sends a call and its arguments through a pipe, and what comes back is
plain data, rebuilt there: a number that equals everything, a redefined ``assert``, a patched builtin or a look into
the caller's frames stay in the process of the code, where there is no test to fool or to read.  Started by
``sandbox_inside``, by path: standard library only, nothing of this package but ``sandbox_talk``.
"""

from __future__ import annotations

import builtins
import operator
import os
import resource
import sys
import types
from collections import deque
from collections.abc import Callable, Iterator
from importlib import import_module
from signal import SIGXCPU
from typing import Any

from sandbox_talk import pack, read_message, unpack, write_message  # by the name that sandbox_inside gives it

CHANGEABLE = (list, dict, set, deque)
OPERATIONS: dict[str, Callable[..., Any]] = {
    "call": lambda function, *args, **named: function(*args, **named),
    "attribute": getattr, "set_attribute": setattr, "item": operator.getitem, "set_item": operator.setitem,
    "length": len, "text": str, "items": list, "equal": operator.eq,
}  # fmt: skip


class Ended(BaseException):
    """The process of the code is gone or talks nonsense; no ``except Exception`` of a test swallows it."""


# -- the process of the code -------------------------------------------------------------------------------------------


class Served:
    """Answers for the names of one module, over a pair of pipes."""

    def __init__(self, incoming: int, outgoing: int) -> None:
        self.incoming, self.outgoing = incoming, outgoing
        self.module = types.ModuleType("solution")
        self.objects: list[Any] = []

    def run(self, code: str) -> None:
        sys.modules["solution"] = self.module
        try:
            compiled = compile(code, "<code>", "exec", dont_inherit=True)
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:  # ValueError: a null byte
            self.reply("syntax", [type(error).__name__], str(error))
            return
        try:
            exec(compiled, self.module.__dict__)
        except BaseException as error:
            self.fail(error)
            return
        self.reply("value", None, None)
        while True:
            self.answer(*read_message(self.incoming))

    def answer(self, operation: str, target: Any, args: Any, named: Any) -> None:
        try:
            if operation == "name":
                self.name(target)
                return
            if operation == "run":
                exec(compile(target, "<tests>", "exec", dont_inherit=True), self.module.__dict__)
                self.reply("value", None, None)
                return
            args = [unpack(value, self.special) for value in args]
            named = {name: unpack(value, self.special) for name, value in named.items()}
            before = self.changeable(args)
            value = pack(OPERATIONS[operation](self.objects[target], *args, **named), self.keep)
            after = self.changeable(args)
            self.reply("value", value, after if after != before else None)
        except BaseException as error:  # SystemExit too: the code must not end its process by an exception
            self.fail(error)

    def name(self, name: str) -> None:
        found = self.module.__dict__.get(name, self)
        if found is self:
            self.reply("absent", None, None)
        elif isinstance(found, types.ModuleType):
            self.reply("module", found.__name__, None)
        else:
            self.reply("value", pack(found, self.keep), None)

    def changeable(self, args: list[Any]) -> list[Any]:
        return [pack(value, self.keep) if isinstance(value, CHANGEABLE) else None for value in args]

    def keep(self, value: Any) -> list[Any]:
        for number, held in enumerate(self.objects):
            if held is value:
                return ["remote", number]
        self.objects.append(value)
        return ["remote", len(self.objects) - 1]

    def special(self, tag: str, held: Any) -> Any:
        if tag == "remote":
            return self.objects[held]

        def call_back(*args: Any, **named: Any) -> Any:
            packed = [pack(value, self.keep) for value in args]
            self.reply("callback", held, [packed, {name: pack(value, self.keep) for name, value in named.items()}])
            kind, value = read_message(self.incoming)
            if kind == "error":
                raise RuntimeError(value)
            return unpack(value, self.special)

        return call_back

    def fail(self, error: BaseException) -> None:
        if isinstance(error, MemoryError):  # room to say so: the soft limit lies below the hard one
            resource.setrlimit(resource.RLIMIT_AS, resource.getrlimit(resource.RLIMIT_AS)[1:] * 2)
        lines = [at.tb_lineno for at in _frames(error) if at.tb_frame.f_code.co_filename == "<code>"]
        said = [str(error), f"line {lines[-1]} of the code" if lines else ""]
        self.reply("error", [kind.__name__ for kind in type(error).__mro__], said)

    def reply(self, kind: str, value: Any, more: Any) -> None:
        write_message(self.outgoing, [kind, value, more])


def _frames(error: BaseException) -> Iterator[types.TracebackType]:
    at = error.__traceback__
    while at:
        yield at
        at = at.tb_next


# -- the process of the tests ------------------------------------------------------------------------------------------


class Remote:
    """Something of the code's that is not plain data.  What it is asked for comes back as plain data; it never equals
    any, and has no order and no arithmetic: those would be the word of the code under test."""

    def __init__(self, code: Code, number: int) -> None:
        self.__dict__["_code"], self.__dict__["_number"] = code, number

    def __call__(self, *args: Any, **named: Any) -> Any:
        return self._code.ask("call", self._number, args, named)

    def __getattr__(self, name: str) -> Any:
        return self._code.ask("attribute", self._number, (name,))

    def __setattr__(self, name: str, value: Any) -> None:
        self._code.ask("set_attribute", self._number, (name, value))

    def __getitem__(self, key: Any) -> Any:
        return self._code.ask("item", self._number, (key,))

    def __setitem__(self, key: Any, value: Any) -> None:
        self._code.ask("set_item", self._number, (key, value))

    def __len__(self) -> int:
        return self._code.ask("length", self._number)

    def __bool__(self) -> bool:
        return True

    def __str__(self) -> str:
        return str(self._code.ask("text", self._number))

    def __iter__(self) -> Iterator[Any]:
        return iter(self._code.ask("items", self._number))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Remote):
            return False
        return self._number == other._number or self._code.ask("equal", self._number, (other,)) is True

    def __hash__(self) -> int:
        return hash(self._number)


class Code:
    """The process of the code, seen from the process of the tests."""

    def __init__(self, incoming: int, outgoing: int, entry_point: str | None) -> None:
        self.incoming, self.outgoing, self.entry_point = incoming, outgoing, entry_point
        self.callbacks: list[Callable[..., Any]] = []
        self.ended = ""

    def receive(self) -> list[Any]:
        """One reply; Ended where there is none or where it is none."""
        try:
            kind, value, more = read_message(self.incoming)
            assert isinstance(kind, str)
            return [kind, value, more]
        except EOFError:
            self.ended = "the process of the code ended"
        except (ValueError, TypeError, AssertionError, RecursionError) as error:
            self.ended = f"the process of the code sent what is no answer ({error})"
        raise Ended(self.ended)

    def send(self, message: Any) -> None:
        try:
            write_message(self.outgoing, message)
        except BrokenPipeError:
            self.ended = self.ended or "the process of the code ended"
            raise Ended(self.ended) from None

    def ask(self, operation: str, target: Any, args: tuple[Any, ...] = (), named: dict[str, Any] | None = None) -> Any:
        self.send([operation, target, [pack(value, self.lend) for value in args],
                   {name: pack(value, self.lend) for name, value in (named or {}).items()}])  # fmt: skip
        kind, value, more = self.receive()
        while kind == "callback":
            self.call_back(value, *more)
            kind, value, more = self.receive()
        if kind == "error":
            raise _raised(value, more)
        try:
            for argument, changed in zip(args, more or (), strict=False):
                _overwrite(argument, None if changed is None else unpack(changed, self.special))
            return unpack(value, self.special)
        except (ValueError, TypeError, ArithmeticError, RecursionError) as error:
            self.ended = f"the process of the code sent what is no answer ({error})"
            raise Ended(self.ended) from None

    def name(self, name: str) -> dict[str, Any]:
        """``{name: value}`` if the code has it, else nothing.  A module is imported here, and one of the standard
        library is what its name says: ``math`` is not what the code made of it."""
        self.send(["name", name, [], {}])
        kind, value, _ = self.receive()
        if kind == "absent":
            return {}
        if kind == "module" or (name in sys.stdlib_module_names and name != self.entry_point):
            return {name: import_module(name if name in sys.stdlib_module_names else str(value))}
        return {name: unpack(value, self.special)}

    def call_back(self, number: int, args: Any, named: Any) -> None:
        try:
            function = self.callbacks[number]
            found = function(*(unpack(value, self.special) for value in args),
                             **{name: unpack(value, self.special) for name, value in named.items()})  # fmt: skip
            self.send(["value", pack(found, self.lend)])
        except Exception as error:
            self.send(["error", f"{type(error).__name__}: {error}"])

    def lend(self, value: Any) -> list[Any]:
        if isinstance(value, Remote):
            return ["remote", value._number]
        if not callable(value):
            raise TypeError(f"{type(value).__name__} of the tests cannot go to the process of the code: use together")
        self.callbacks.append(value)
        return ["callback", len(self.callbacks) - 1]

    def special(self, tag: str, held: Any) -> Any:
        if tag != "remote" or not isinstance(held, int):
            raise ValueError(f"an unknown kind of value: {tag!r}")
        return Remote(self, held)


def _raised(names: Any, said: Any) -> Exception:
    """The nearest builtin exception to the one the code raised, so that a test can expect it."""
    message, place = (str(part) for part in said)
    kinds = [(name, getattr(builtins, name, None)) for name in names if isinstance(name, str)]
    # UnicodeError's children need five arguments; their parent, a ValueError, says the same.
    kinds = [(n, k) for n, k in kinds if isinstance(k, type) and issubclass(k, Exception)]
    kinds = [(n, k) for n, k in kinds if not issubclass(k, UnicodeError)]
    name, kind = kinds[0] if kinds else ("RuntimeError", RuntimeError)
    error = kind(message if name == names[0] else f"{names[0]}: {message}")
    error.add_note(place)
    return error


def _overwrite(argument: Any, changed: Any) -> None:
    """What a call did to an argument of the test's, done to the test's own."""
    if changed is None or type(argument) is not type(changed):
        return
    argument.clear()
    (argument.update if isinstance(argument, (dict, set)) else argument.extend)(changed)


def names_in(code: types.CodeType) -> set[str]:
    inner = [constant for constant in code.co_consts if isinstance(constant, types.CodeType)]
    return set(code.co_names).union(*(names_in(constant) for constant in inner))


def judge(code: Code, tests: str, together: bool) -> tuple[str, str]:
    """Status and message.  The first reply says how the code itself ran; the tests follow only then."""
    try:
        kind, value, more = code.receive()
        if kind != "value":
            said = more if kind == "syntax" else ", ".join(part for part in more if part)
            return _status(str(value[0]), "syntax" if kind == "syntax" else "failed"), f"{value[0]}: {said}"
        if together:
            code.ask("run", tests)
        else:
            _run_tests(code, tests)
    except Ended:
        pass
    except BaseException as error:
        lines = [at.tb_lineno for at in _frames(error) if at.tb_frame.f_code.co_filename == "<tests>"]
        line = tests.splitlines()[lines[-1] - 1].strip() if lines else ""
        text = str(error.args[0] if isinstance(error, KeyError) and error.args else error)
        parts = [f"{type(error).__name__}: {text}" if text else type(error).__name__]
        parts += [note for note in getattr(error, "__notes__", []) if note] + ([f"at: {line}"] if line else [])
        return _status(type(error).__name__, "failed"), ", ".join(parts)
    # Also where a bare `except:` of the tests swallowed it.
    return ("crashed", code.ended) if code.ended else ("passed", "")


def _run_tests(code: Code, tests: str) -> None:
    compiled = compile(tests, "<tests>", "exec", dont_inherit=True)
    space: dict[str, Any] = {"__name__": "tests"}
    for name in sorted(names_in(compiled)):
        if not hasattr(builtins, name) or name == code.entry_point:
            space |= code.name(name)
    exec(compiled, space)


def _status(exception: str, other: str) -> str:
    return "memory" if exception == "MemoryError" else other


def ending(message: str, waited: int, cpu_seconds: float, limit: float) -> tuple[str, str]:
    """Status and message for a process of the code that ended before the tests were through."""
    if cpu_seconds >= limit or (os.WIFSIGNALED(waited) and os.WTERMSIG(waited) == SIGXCPU):
        return "timeout", f"{limit:g} s of CPU time are used up"
    if os.WIFSIGNALED(waited):
        return "crashed", f"{message} by signal {os.WTERMSIG(waited)}"
    return "crashed", f"{message} with exit code {os.WEXITSTATUS(waited)} before the tests were through"
