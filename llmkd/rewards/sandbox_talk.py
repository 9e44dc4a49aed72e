"""What the processes of the sandbox say to each other: messages through pipes, and plain data as JSON.

JSON, and only known kinds of data: whatever the process of the code sends, nothing of its own is built from it.
Standard library only, since ``sandbox_inside`` loads this file by its path.
"""

from __future__ import annotations

import builtins
import json
import os
from collections import deque
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from itertools import islice
from typing import Any

LARGEST_MESSAGE = 256 * 2**20
LONGEST_ITERATOR = 10**5
SEQUENCES = {"list": list, "tuple": tuple, "set": set, "frozenset": frozenset, "deque": deque}
FROM_TEXT = {"Decimal": Decimal, "Fraction": Fraction, "complex": complex, "bytes": bytes.fromhex}


def read_exactly(descriptor: int, count: int) -> bytes:
    parts = []
    while count:
        part = os.read(descriptor, min(count, 2**20))
        if not part:
            raise EOFError
        parts.append(part)
        count -= len(part)
    return b"".join(parts)


def read_message(descriptor: int) -> Any:
    size = int.from_bytes(read_exactly(descriptor, 8), "big")
    if size > LARGEST_MESSAGE:
        raise ValueError(f"a message of {size} bytes")
    return json.loads(read_exactly(descriptor, size))


def write_message(descriptor: int, value: Any) -> None:
    text = json.dumps(value).encode()
    rest = memoryview(len(text).to_bytes(8, "big") + text)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def pack(value: Any, other: Callable[[Any], Any]) -> Any:
    """Plain data as JSON; what is not plain as ``other`` says."""

    def packed(items: Any) -> list[Any]:
        return [pack(item, other) for item in items]

    if value is None or isinstance(value, bool):
        return value
    for kind in (str, float):
        if isinstance(value, kind):
            return kind(value)
    if isinstance(value, int):
        return int(value) if abs(value) < 2**53 else ["int", hex(value)]
    for name, kind in SEQUENCES.items():
        if isinstance(value, kind):
            return [name, packed(value)]
    if isinstance(value, dict):
        return ["dict", [packed(pair) for pair in value.items()]]
    if isinstance(value, (bytes, bytearray)):
        return ["bytes", value.hex()]
    if isinstance(value, (Decimal, Fraction, complex)):
        return [type(value).__name__, str(value)]
    if isinstance(value, range):
        return ["range", [value.start, value.stop, value.step]]
    if isinstance(value, (type({}.keys()), type({}.items()))):
        return ["frozenset", packed(value)]
    if hasattr(type(value), "__next__") or isinstance(value, type({}.values())):
        return ["iterator", packed(islice(value, LONGEST_ITERATOR))]
    if isinstance(value, type) and value.__module__ == "builtins":
        return ["type", value.__name__]
    if type(value).__module__ == "numpy" and getattr(value, "shape", None) == ():
        return pack(value.item(), other)
    return other(value)


def unpack(value: Any, other: Callable[[str, Any], Any]) -> Any:
    """The inverse.  Builds nothing but plain data and what ``other`` makes of the remaining tags."""
    if not isinstance(value, list):
        if isinstance(value, dict):
            raise ValueError("an untagged dict")
        return value
    tag, held = value
    if tag in SEQUENCES:
        return SEQUENCES[tag](unpack(item, other) for item in held)
    if tag == "dict":
        return {unpack(key, other): unpack(item, other) for key, item in held}
    if tag == "int":
        return int(held, 16)
    if tag in FROM_TEXT:
        return FROM_TEXT[tag](held)
    if tag == "range":
        return range(*held)
    if tag == "iterator":
        return iter([unpack(item, other) for item in held])
    if tag == "type" and isinstance(found := getattr(builtins, held, None), type):
        return found
    return other(tag, held)
