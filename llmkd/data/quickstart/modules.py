"""The committed list of standard-library modules (`modules.json`), and how the running Python differs from it."""

import hashlib
import json
import platform
import sysconfig
from functools import lru_cache
from pathlib import Path
from typing import Any

LIST = Path(__file__).with_name("modules.json")
TOPICS = "pydoc_data.topics"  # the language reference: read as data, never as code

# Packages taken whole; every single-file module of the library's top folder is taken too.
PACKAGES = (
    "asyncio", "collections", "concurrent", "ctypes", "curses", "dbm", "email", "html", "http", "idlelib", "importlib",
    "json", "lib2to3", "logging", "multiprocessing", "re", "sqlite3", "tkinter", "tomllib", "unittest", "urllib",
    "venv", "wsgiref", "xml", "xmlrpc", "zoneinfo",
)  # fmt: skip
SKIPPED_FOLDERS = {"test", "tests", "idle_test", "__pycache__"}
SKIPPED_PREFIXES = ("_sysconfigdata", "__")  # generated for one machine; toys such as __hello__
SKIPPED_FILES = {
    "antigravity.py", "this.py",  # jokes
    "entities.py", "keysyms.py", "sre_constants.py", "sre_compile.py", "sre_parse.py",  # tables; shims
}  # fmt: skip
MIN_BYTES = 400


def stdlib() -> Path:
    """Return the folder of the running Python's standard library."""
    return Path(sysconfig.get_paths()["stdlib"])


@lru_cache(maxsize=1)
def listed() -> dict[str, Any]:
    """Return the committed list: {"python": version, "modules": {name: {"path", "sha256"}}}."""
    return json.loads(LIST.read_text(encoding="utf-8"))


def read_source(relative: str) -> bytes | None:
    """Return a library file's bytes, or None where this Python has no such file."""
    try:
        return (stdlib() / relative).read_bytes()
    except OSError:
        return None


def version_note() -> str | None:
    """Return None if the running library is the listed one byte for byte, else one sentence on how it differs."""
    listing = listed()
    modules, running = listing["modules"], platform.python_version()
    sources = {name: read_source(entry["path"]) for name, entry in modules.items()}
    missing = [name for name, source in sources.items() if source is None]
    different = [
        name
        for name, source in sources.items()
        if source is not None and hashlib.sha256(source).hexdigest() != modules[name]["sha256"]
    ]
    if running == listing["python"] and not missing and not different:
        return None
    return (
        f"The embedded corpus was listed from Python {listing['python']}, this is Python {running}: of {len(modules)} "
        f"modules {len(different)} differ and {len(missing)} are missing, so its bits per byte are near the committed "
        "numbers, not equal to them."
    )


def relist() -> dict[str, Any]:
    """Return the list that the running Python gives (what `modules.json` holds)."""
    root = stdlib()
    paths = list(root.glob("*.py"))
    for package in PACKAGES:
        paths += (root / package).rglob("*.py")
    modules = {}
    for path in sorted(paths):
        relative = path.relative_to(root)
        if _wanted(path, relative):
            name = ".".join(relative.with_suffix("").parts).removesuffix(".__init__")
            modules[name] = _entry(path, relative)
    topics = Path("pydoc_data", "topics.py")
    modules[TOPICS] = _entry(root / topics, topics)
    return {"python": platform.python_version(), "modules": modules}


def write_list() -> None:
    """Write `modules.json` from the running Python, one module a line."""
    listing = relist()
    lines = [f"  {json.dumps(name)}: {json.dumps(entry)}" for name, entry in listing["modules"].items()]
    text = f'{{"python": {json.dumps(listing["python"])}, "modules": {{\n' + ",\n".join(lines) + "\n}}\n"
    LIST.write_text(text, encoding="utf-8")


def _entry(path: Path, relative: Path) -> dict[str, str]:
    return {"path": relative.as_posix(), "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}


def _wanted(path: Path, relative: Path) -> bool:
    if SKIPPED_FOLDERS & set(relative.parts) or path.name in SKIPPED_FILES:
        return False
    if path.name.startswith(SKIPPED_PREFIXES) and path.name not in ("__init__.py", "__main__.py"):
        return False
    return path.stat().st_size >= MIN_BYTES
