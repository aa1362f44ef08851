"""Makes the site's pages from the repository as it is: no document is written twice, and no list of names goes stale.

Documents outside of `docs/`, such as the README, become pages where `PAGES` says. Links in all documents are those of
the repository; what they point to becomes a page (documents, programs, folders) or is copied (everything else). The
reference is made from `l2c.__all__`, read from the source without importing it.
"""

import os
import posixpath
import re
from collections.abc import Mapping
from pathlib import Path

import griffe
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "src/l2c/assets/README.md": "embedded-models.md",
}
"""Documents outside of `docs/`, and the pages that they become."""

PROGRAMS = sorted((ROOT / "examples").glob("*.py"))

_FENCE = re.compile(r"^```.*?^```$", re.M | re.S)
_LINK = re.compile(r'(\]\(|<img src=")([^)"#\s]+)')


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Puts the reference, and what is made by itself, at the end of the navigation."""
    reference = [f"reference/{page}" for page in reference_pages()]
    examples = [page_of(path) for path in PROGRAMS]
    assert config.nav is not None
    config.nav += [{"Reference": reference}, {"Examples": examples}]
    config.watch += [str(ROOT / "src"), str(ROOT / "examples"), *(str(ROOT / name) for name in PAGES)]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds pages for documents, programs, folders and the reference, and the files that documents link to."""
    documents = [*(ROOT / name for name in PAGES), *sorted((ROOT / "docs").glob("*.md"))]
    linked = {target for document in documents for target in links(document)} - set(documents)
    pages = {page_of(document): relinked(document) for document in documents}
    for path in sorted({*linked, *PROGRAMS}):
        if path.is_dir():
            pages[page_of(path)] = listing(path)
        elif path.suffix == ".py":
            pages[page_of(path)] = program(path)
        else:
            files.append(File.generated(config, page_of(path), abs_src_path=str(path)))
    pages |= {f"reference/{page}": text for page, text in reference_pages().items()}
    for page, text in pages.items():
        existing = files.get_file_from_path(page)
        if existing is not None:
            files.remove(existing)
        files.append(File.generated(config, page, content=text))
    return files


def page_of(path: Path) -> str:
    """Where something of the repository is in the site, from the site's root."""
    name = path.relative_to(ROOT).as_posix()
    if name in PAGES:
        return PAGES[name]
    if path.is_dir():
        return f"{name}/index.md"
    return name.removesuffix(".py") + ".md" if path.suffix == ".py" else name.removeprefix("docs/")


def links(document: Path) -> set[Path]:
    """Files and folders of the repository that a document links to."""
    found = _LINK.findall(_FENCE.sub("", document.read_text(encoding="utf-8")))
    paths = {Path(os.path.normpath(document.parent / link)) for _, link in found if ":" not in link}
    return {path for path in paths if path.exists()}


def relinked(document: Path) -> str:
    """A document's text, with links to where things are in the site."""

    def relink(match: re.Match[str]) -> str:
        path = Path(os.path.normpath(document.parent / match[2]))
        if ":" in match[2] or not path.exists():
            return match[0]  # a link elsewhere, or a dead one, of which the build says so
        return match[1] + posixpath.relpath(page_of(path), posixpath.dirname(page_of(document)) or ".")

    text = document.read_text(encoding="utf-8")
    fences = _FENCE.findall(text)
    prose = [_LINK.sub(relink, part) for part in _FENCE.split(text)]
    return "".join(part + fence for part, fence in zip(prose, [*fences, ""], strict=True))


def program(path: Path) -> str:
    """A page that shows a program."""
    return f"# {path.name}\n\n```python\n{path.read_text(encoding='utf-8').rstrip()}\n```\n"


def listing(folder: Path) -> str:
    """A page that says what is in a folder."""
    names = sorted(path.name + "/" * path.is_dir() for path in folder.iterdir())
    return f"# {folder.relative_to(ROOT)}\n\n" + "".join(f"- `{name}`\n" for name in names)


def reference_pages() -> dict[str, str]:
    """The reference: a page of the names in `l2c.__all__`, and one for each module among them, with its own names."""
    package = griffe.load("l2c", search_paths=[ROOT / "src"])
    modules = {"l2c": package} | {name: m for name, m in offered(package).items() if m.is_module}
    homes: dict[str, str] = {}  # page of an object; what several modules offer is on the first one's
    for name, module in modules.items():
        for member in offered(module).values():
            homes.setdefault(member.path, f"{member.name if member.is_module else name}.md")
    return {f"{name}.md": page(module, f"{name}.md", homes) for name, module in modules.items()}


def offered(module: griffe.Object) -> dict[str, griffe.Object]:
    """What a module offers in its `__all__`, by name.

    A name is looked up where it is imported from, since the function `deepcache` is in a submodule of that name.

    Raises:
        PluginError: If it is not there.
    """
    package = module.package
    found = {}
    for name in map(str, module.exports or ()):
        home = module.imports.get(name, f"{module.path}.{name}")
        try:
            member = package[home.removeprefix(f"{package.path}.")]
        except KeyError:
            raise PluginError(f"{module.path} offers {name} as {home}, which is not there") from None
        found[name] = member.final_target if isinstance(member, griffe.Alias) else member
    return found


def page(module: griffe.Object, own: str, homes: Mapping[str, str]) -> str:
    """A table of what a module offers, each with its first sentence, and then all that has its place there.

    Args:
        module: The module.
        own: The file of this page.
        homes: The file of every object's page, by the object's path.
    """
    rows, entries = "", ""
    for name, member in offered(module).items():
        doc = member.docstring.value.strip().partition("\n")[0] if member.docstring else ""
        home = homes[member.path]
        place = home if member.is_module else f"{'' if home == own else home}#{member.path}"
        rows += f"| [`{name}`]({place}) | {doc} |\n"
        if home == own:
            title = f"{module.path}.{name}"
            entries += f"\n::: {member.path}\n    options:\n      heading: {title}\n      toc_label: {name}\n"
    doc = module.docstring.value if module.docstring else ""
    return f"# `{module.path}`\n\n{doc}\n\n| name | what it is |\n|---|---|\n{rows}{entries}"
