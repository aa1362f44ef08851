"""What the documents say is there is there, and what they show runs."""

import ast
import doctest
import re
from pathlib import Path

import pytest

import l2c
from l2c.layers.diffusers import TRANSFORMERS
from l2c.records import Record

ROOT = Path(__file__).resolve().parents[1]
SOURCE = Path(l2c.__file__).parent
DOCUMENTS = [
    "README.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "SECURITY.md",
    "docs/architecture.md",
    "docs/compare.md",
    "docs/engine.md",
    "docs/interchange.md",
    "docs/large-models.md",
    "docs/learning.md",
    "docs/method.md",
    "docs/pipelines.md",
    "docs/profile.md",
    "docs/reliability.md",
    "docs/releasing.md",
]

FOREIGN = {
    "AdamW",
    "AutoencoderKL",
    "DDIMScheduler",
    "DiTTransformer2DModel",
    "MACs",
    "max_steps",
    "cache_context",
    "enable_sequential_cpu_offload",
    "compile_repeated_blocks",
    "proj_out",
    "clip_sample",
    "enable_parallelism",
    "fully_shard",
    "true_cfg_scale",
    "guidance_scale_2",
    "disable_corrector",
    "IPNDMScheduler",
    "full_evaluations",
    "solver_weights",
    "v_prediction",
    "calibrator_config",
    "flow_prediction",
    "use_flow_sigmas",
    "FluxModularPipeline",
    "SkipLayerGuidance",
    *TRANSFORMERS,
}
"""Names in the documents that are not of l2c."""


def prose_and_spans(document: str) -> tuple[str, list[str]]:
    """Text without code blocks, and the code spans in it."""
    text = re.sub(r"^```.*?^```$", "", (ROOT / document).read_text(encoding="utf-8"), flags=re.M | re.S)
    return text, re.findall(r"`([^`]+)`", text)


def defined_names() -> set[str]:
    """Every class, function, argument, attribute and constant in the source."""
    names: set[str] = set()
    for path in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef | ast.FunctionDef):
                names.add(node.name)
            elif isinstance(node, ast.arg):
                names.add(node.arg)
            elif isinstance(node, ast.Name):
                names.add(node.id)
            elif isinstance(node, ast.Attribute):
                names.add(node.attr)
    return names


@pytest.mark.parametrize("document", DOCUMENTS)
def test_names_in_the_documents_exist(document):
    _, spans = prose_and_spans(document)
    defined = defined_names() | FOREIGN
    missing = [
        span
        for span in spans
        if re.fullmatch(r"[\w.]+(\(.*\))?", span)
        for name in [span.partition("(")[0]]
        if re.search(r"[a-z][A-Z]|^l2c\.|^[a-z]+_[a-z_]+$", name)  # CamelCase, l2c.name, snake_case
        and not name.endswith((".py", ".md", ".json"))
        for last in name.split(".")[-1:]
        if last not in defined and not (SOURCE / last).is_dir() and not (SOURCE / f"{last}.py").is_file()
    ]
    assert not missing


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_and_files_in_the_documents_exist(document):
    text, spans = prose_and_spans(document)
    home = (ROOT / document).parent
    links = [
        link.partition("#")[0] for link in re.findall(r"\]\(([^)]+)\)", text) if not link.startswith("http")
    ]
    assert [link for link in links if link and not (home / link).exists()] == []
    paths = [
        span for span in spans if re.fullmatch(r"(src|tests|docs|examples|benchmarks|results)/[\w./-]+", span)
    ]
    assert [path for path in paths if not (ROOT / path).exists()] == []


def test_readme_example_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = doctest.testfile(str(ROOT / "README.md"), module_relative=False)
    assert result.attempted > 5
    assert result.failed == 0


def test_readme_has_one_line_for_the_demo_and_one_for_the_tests():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for marker, ending in (("demo", "l2c demo"), ("test", "pytest -q -n 2")):
        (block,) = re.findall(rf"^<!-- {marker} -->\n```bash\n(.*?)\n```$", text, flags=re.M | re.S)
        assert len(block.splitlines()) == 1
        assert block.endswith(ending)


def test_readme_shows_the_figures_of_the_recorded_demo():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for row in Record.load(ROOT / "results" / "demo.json").results["variants"]:
        figures = (
            f"| {row['title']} | {row['median_s']:.2f} s ({row['min_s']:.2f} - {row['max_s']:.2f}) "
            f"| {row['speedup']:.2f} x | {row['macs'] / 1e9:.1f} G | {row['fraction']:.0%} |"
        )
        assert figures in text
        assert f"{row['error']:.4f} |" in text


def test_the_documents_show_the_recorded_quality(load_benchmark):
    report = load_benchmark("quality_report")
    points = Record.load(ROOT / "results" / "quality.json").results["points"]
    for table, document in (
        (report.summary(points), "README.md"),
        (report.tables(points), "docs/learning.md"),
    ):
        assert len(table.splitlines()) > 8
        assert table in (ROOT / document).read_text(encoding="utf-8")


def test_pipelines_page_lists_every_family():
    text = (ROOT / "docs" / "pipelines.md").read_text(encoding="utf-8")
    assert [name for name in TRANSFORMERS if f"| `{name}` |" not in text] == []
