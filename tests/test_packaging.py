"""What is said about releases in one place is what is said in the others, and the wheel holds what it should."""

import importlib.util
import os
import re
import subprocess
import sys
import zipfile
from itertools import chain
from pathlib import Path

import pytest

import l2c
from l2c.cli.main import main

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src" / "l2c"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def test_changes_begin_with_this_version():
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    headings = re.findall(r"^## \[(.+?)\] - (unreleased|\d{4}-\d\d-\d\d)$", text, flags=re.M)
    assert headings[0][0] == l2c.__version__


def test_oldest_releases_are_those_that_the_project_allows():
    requirements = list(chain(PROJECT["dependencies"], *PROJECT["optional-dependencies"].values()))
    allowed = dict(
        re.fullmatch(r"([\w-]+)>=([\w.]+)(?:[,;].*)?", r).groups() for r in requirements if ">=" in r
    )
    lines = (ROOT / ".ci" / "oldest.txt").read_text(encoding="utf-8").splitlines()
    oldest = dict(line.partition(" #")[0].split("==") for line in lines if not line.startswith("#"))
    assert {"torch", "diffusers"} <= set(oldest)
    for name, version in oldest.items():
        assert version in (allowed[name], f"{allowed[name]}.0"), name


def test_workflow_runs_every_python_that_the_project_names():
    text = (ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8")
    (line,) = re.findall(r"^ +python: \[(.+)\]$", text, flags=re.M)
    named = [c.rpartition(" ")[2] for c in PROJECT["classifiers"] if re.search(r":: 3\.\d+$", c)]
    assert [version.strip('" ') for version in line.split(",")] == named
    assert PROJECT["requires-python"] == f">={named[0]}"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    missing = [name for name in ("build", "hatchling") if not importlib.util.find_spec(name)]
    if missing:
        pytest.skip(f"{', '.join(missing)} not installed; the extra `dev` has what builds packages")
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True
    )  # the wheel is made from the sdist
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = folder.glob("*.whl")
    assert [p.name for p in folder.glob("*.tar.gz")] == [f"l2c-{l2c.__version__}.tar.gz"]
    return path


@pytest.mark.slow
def test_wheel_holds_the_package_and_nothing_else(wheel):
    assert wheel.name == f"l2c-{l2c.__version__}-py3-none-any.whl"
    info = f"l2c-{l2c.__version__}.dist-info"
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        metadata = archive.read(f"{info}/METADATA").decode()
        entry_points = archive.read(f"{info}/entry_points.txt").decode()
    source = {
        f"l2c/{path.relative_to(SOURCE).as_posix()}"
        for path in SOURCE.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert {name for name in names if not name.startswith(f"{info}/")} == source
    assert {
        "l2c/py.typed",
        "l2c/assets/dit-mini-cifar10.safetensors",
        "l2c/compare/presets/smoke.toml",
    } <= names
    assert f"{info}/licenses/LICENSE" in names
    assert f"\nVersion: {l2c.__version__}\n" in metadata
    assert f"\nRequires-Python: {PROJECT['requires-python']}\n" in metadata
    assert entry_points.strip().splitlines() == ["[console_scripts]", "l2c = l2c.__main__:main"]
    assert callable(main)
    assert wheel.stat().st_size < 100e6  # what the package index takes


@pytest.mark.slow
def test_wheel_runs_where_it_is_installed(wheel, tmp_path):
    target = tmp_path / "installed"
    install = ["-m", "pip", "install", "-q", "--no-deps", "--no-index", "--target", str(target), str(wheel)]
    subprocess.run([sys.executable, *install], check=True, cwd=tmp_path)

    def run(*arguments):
        environment = {**os.environ, "PYTHONPATH": str(target)}
        command = [sys.executable, *arguments]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert Path(run("-c", "import l2c; print(l2c.__file__)").strip()).is_relative_to(target)
    assert run("-m", "l2c", "--version") == f"l2c {l2c.__version__}\n"
    assert run("-m", "l2c", "compare", "--preset", "smoke", "--show")
    assert "dit" in run("-m", "l2c", "inspect", "dit-mini-cifar10-ddim-20").lower()
