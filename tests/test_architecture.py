"""What holds across files: imports point one way, the package loads lightly, what is public says what it is."""

import ast
import importlib
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import l2c

ROOT = Path(l2c.__file__).parent

ALLOWED: dict[str, set[str]] = {
    # part: the parts of l2c that it may import, anywhere in it, for type checking and inside functions too
    "errors": set(),
    "documents": {"errors"},
    "files": {"errors"},
    "allocator": set(),
    "devices": {"errors"},
    "processes": {"errors", "devices"},
    "bootstrap": {"errors"},
    "records": {"errors", "documents", "files", "l2c"},
    "scenes": {"errors"},
    "models": {"errors", "documents", "files"},
    "layers": {"errors", "documents", "models"},
    "schedule": {"errors", "documents", "files", "layers", "report", "l2c"},
    "cache": {"errors", "layers", "schedule"},
    "engine": {"errors", "models", "layers", "schedule", "cache"},
    "sampling": {"errors", "documents", "models", "layers", "schedule", "cache", "engine"},
    "digest": set(),
    "hosts": {
        "errors", "documents", "digest", "scenes", "models", "layers", "schedule", "cache", "engine", "sampling",
    },
    "learning": {
        "errors", "documents", "digest", "files", "models", "layers", "schedule", "cache", "sampling", "hosts",
    },
    "methods": {"errors", "documents", "models", "layers", "schedule", "cache", "sampling", "hosts", "learning"},
    "evaluation": {
        "errors", "documents", "files", "scenes", "models", "layers", "schedule", "cache", "sampling", "hosts",
        "learning",
    },
    "bench": {
        "errors", "documents", "records", "models", "layers", "schedule", "cache", "engine", "sampling", "hosts",
    },
    "sets": {
        "errors", "documents", "files", "processes", "records", "layers", "schedule", "cache", "sampling", "bench",
        "report",
    },
    "testing": {"models", "layers", "schedule", "cache", "hosts", "methods"},
    "report": {"errors", "documents", "files", "records", "bootstrap"},
    "compare": {
        "errors", "documents", "files", "records", "bootstrap", "scenes", "models", "layers", "schedule", "cache",
        "sampling", "methods", "hosts", "learning", "evaluation", "bench", "report", "testing",
    },
    "demo": {
        "errors", "files", "records", "models", "layers", "schedule", "cache", "sampling", "methods", "learning",
        "evaluation", "bench", "report",
    },
    "pipeline_demo": {
        "errors", "files", "records", "scenes", "schedule", "hosts", "learning", "evaluation", "bench", "report",
        "demo",
    },
    "__main__": {"cli"},
    "cli": {
        "errors", "documents", "files", "allocator", "devices", "processes", "records", "scenes", "models", "layers",
        "schedule", "cache", "engine", "sampling", "methods", "learning", "evaluation", "bench", "report", "compare",
        "demo", "pipeline_demo", "hosts", "sets", "l2c",
    },
}  # fmt: skip
"""`l2c` stands for the package itself, which offers the parts by name and loads them on first use."""

MODULES = sorted(ROOT.rglob("*.py"))


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def part_of(path: Path) -> str:
    """`cache` for `cache/store.py`, `errors` for `errors.py`, `l2c` for the package's own file."""
    first = path.relative_to(ROOT).parts[0]
    return "l2c" if first == "__init__.py" else first.removesuffix(".py")


def imported_parts(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Line and part of every import of l2c in a file."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: imports are absolute"
            base = node.module or ""
            names = [f"l2c.{a.name}" if a.name in ALLOWED else "l2c" for a in node.names]
            names = names if base == "l2c" else [base]
        else:
            continue
        for name in names:
            package, _, rest = name.partition(".")
            if package == "l2c":
                yield node.lineno, rest.partition(".")[0] or "l2c"


def test_every_part_has_its_place():
    assert {part_of(path) for path in MODULES} == {"l2c", *ALLOWED}
    tuple(TopologicalSorter(ALLOWED).static_order())  # raises if the table has a cycle


def test_files_import_each_other_in_no_circle():
    names = {path: ".".join(("l2c", *path.relative_to(ROOT).with_suffix("").parts)) for path in MODULES}
    files = {name.removesuffix(".__init__"): path for path, name in names.items()}
    imports: dict[str, set[str]] = {}
    for name, path in files.items():
        found: set[str] = set()
        for node in ast.walk(parse(path)):
            if isinstance(node, ast.ImportFrom):
                whole = [f"{node.module}.{alias.name}" for alias in node.names]
                found |= {one if one in files else str(node.module) for one in whole}
        imports[name] = {one for one in found if one in files and one not in (name, "l2c")}
    tuple(TopologicalSorter(imports).static_order())  # raises if there is a circle


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_one_way(path):
    part = part_of(path)
    if part == "l2c":
        return
    wrong = [
        f"line {line} imports l2c.{other}"
        for line, other in imported_parts(parse(path))
        if other not in ALLOWED[part] | {part}
    ]
    assert not wrong, f"l2c.{part} may import {sorted(ALLOWED[part]) or 'nothing of ours'}; {wrong}"


def names_order(name: str) -> tuple[int, str]:
    """Constants, then classes, then functions and modules, each in alphabetical order."""
    return (0 if name.isupper() else 1 if name[0].isupper() else 2, name)


@pytest.mark.parametrize(
    "path", [p for p in MODULES if p.name == "__init__.py"], ids=lambda path: str(path.relative_to(ROOT))
)
def test_packages_offer_what_they_import_in_order(path):
    tree = parse(path)
    imported = [
        alias.asname or alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("l2c")
        for alias in node.names
    ]
    public = [name for name in imported if not name.startswith("_")]
    package = importlib.import_module(".".join(("l2c", *path.relative_to(ROOT).parts[:-1])))
    offered = getattr(package, "__all__", [])
    assert list(offered) == sorted(public, key=names_order)
    assert all(getattr(package, name) is not None for name in offered)


def test_l2c_finds_every_name_where_it_says():
    assert sorted(l2c._HOMES) == sorted(l2c.__all__)
    assert set(l2c.__all__) <= set(dir(l2c))
    with pytest.raises(AttributeError, match="module 'l2c' has no attribute 'enable'"):
        _ = l2c.enable


def test_importing_l2c_stays_light():
    code = "import sys, l2c; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = {name.partition(".")[0] for name in done.stdout.split()}
    assert not loaded & {
        "PIL",
        "diffusers",
        "huggingface_hub",
        "matplotlib",
        "numpy",
        "pydantic",
        "rich",
        "torch",
        "typer",
    }


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_what_is_public_says_what_it_is(path):
    undocumented = list(public_without_docstring(parse(path), path.stem))
    assert not undocumented


def public_without_docstring(node: ast.Module | ast.ClassDef, name: str) -> Iterator[str]:
    """Modules, classes, functions and methods without a docstring, by dotted name; private ones may go without."""
    if not ast.get_docstring(node):
        yield name
    for child in node.body:
        if isinstance(child, ast.ClassDef) and not child.name.startswith("_"):
            yield from public_without_docstring(child, f"{name}.{child.name}")
        elif isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef) and not child.name.startswith("_"):
            overload = any(isinstance(d, ast.Name) and d.id == "overload" for d in child.decorator_list)
            if not overload and not ast.get_docstring(child):
                yield f"{name}.{child.name}"
