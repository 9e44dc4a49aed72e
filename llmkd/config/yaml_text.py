"""YAML to plain values, with duplicate keys refused and `5e-7` read as a number."""

import re
from typing import Any

import yaml

from llmkd.config.values import plain


class _Loader(yaml.SafeLoader):
    """YAML 1.1 as PyYAML reads it, but floats are those of YAML 1.2 and dates stay text."""

    yaml_implicit_resolvers = {  # noqa: RUF012
        first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


_EXPONENT = re.compile(r"[-+]?(\d[\d_]*(\.[\d_]*)?|\.\d[\d_]*)[eE][-+]?\d+$")
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _EXPONENT, list("-+.0123456789"))


class YamlProblem(ValueError):
    """Text that is not YAML; its str says in which line and why."""


def parse(text: str) -> Any:
    """The value that the text stands for, no part of it shared. Raises YamlProblem."""
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        _refuse_duplicates(node, set())
        return plain(_constructed(loader, node))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise YamlProblem(f"{where}not valid YAML: {error.problem or error.context}") from error
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise YamlProblem(f"line {line}: not valid YAML: {error.reason}") from error
    except RecursionError as error:
        raise YamlProblem("nested too deeply, or an anchor that contains itself: write it out") from error


def _constructed(loader: _Loader, node: yaml.Node) -> Any:
    try:
        return loader.construct_document(node)
    except (ValueError, KeyError, AttributeError) as error:  # what PyYAML lets through for `!!int abc`, `!!bool abc`
        raise YamlProblem(f"not valid YAML: a value does not fit its tag ({error})") from error


def _refuse_duplicates(node: yaml.Node, seen: set[int]) -> None:
    """Raise YamlProblem at a key given twice in one mapping (PyYAML keeps the last one without a word)."""
    if id(node) in seen or not isinstance(node, yaml.CollectionNode):
        return
    seen.add(id(node))
    first_lines: dict[str, int] = {}
    for entry in node.value:
        key, value = entry if isinstance(entry, tuple) else (None, entry)
        _refuse_duplicates(value, seen)
        if not isinstance(key, yaml.ScalarNode) or key.tag == "tag:yaml.org,2002:merge":
            continue
        line = key.start_mark.line + 1
        if key.value in first_lines:
            raise YamlProblem(
                f"line {line}: the key {key.value!r} is given twice, first in line {first_lines[key.value]}: keep one"
            )
        first_lines[key.value] = line
