"""The parts of README.md that are copies of something else. `python tests/readme_blocks.py` brings them up to date."""

import re
from collections.abc import Callable
from pathlib import Path

from llmkd import methods, terms

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"


def quickstart() -> str:
    text = (ROOT / "recipes" / "quickstart.yaml").read_text(encoding="utf-8")
    return f"```yaml\n{text.strip()}\n```\n"


BLOCKS: dict[str, Callable[[], str]] = {
    "methods": methods.markdown,
    "recipe": quickstart,
    "terms": terms.markdown,
}


def block(text: str, name: str) -> str:
    """What stands between the markers of a name."""
    found = re.search(rf"<!-- {name} -->\n(.*?)<!-- /{name} -->", text, re.DOTALL)
    assert found, f"README.md: no markers <!-- {name} --> and <!-- /{name} -->"
    return found.group(1)


def refreshed(text: str) -> str:
    """The README with every copy made anew."""
    for name, make in BLOCKS.items():
        pattern = rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)"
        text = re.sub(pattern, lambda m, body=make(): m[1] + body + m[2], text, flags=re.DOTALL)
    return text


if __name__ == "__main__":
    README.write_text(refreshed(README.read_text(encoding="utf-8")), encoding="utf-8")
