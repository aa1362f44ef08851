"""The benchmark of speed on a CPU, which is no test: how long something takes depends on what else runs."""

from pathlib import Path

import pytest

from l2c.records import Record

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # PyTorch's own, in its compiler

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def cpu_speed(load_benchmark):
    return load_benchmark("cpu_speed")


def test_cpu_speed_writes_what_it_measured(cpu_speed, tmp_path, capsys):
    out = tmp_path / "speed.json"
    assert cpu_speed.main(["--out", str(out), "--images", "1", "--steps", "2", "--repetitions", "1"]) == 0
    record = Record.load(out)
    assert record.results["everything_is_bit_equal"]
    eager = {"none", "everything", "interval", "three terms", "blocks"}
    compiled = {f"{name}, compiled" for name in eager - {"blocks"}}
    assert set(record.timings) == set(record.results["variants"]) == eager | compiled
    assert capsys.readouterr().out.strip() == cpu_speed.table(record.results)
    assert (
        cpu_speed.main(["--out", "/dev/null/no", "--images", "1", "--steps", "2", "--repetitions", "1"]) == 1
    )
    assert "cpu_speed: cannot write" in capsys.readouterr().err


def test_the_document_shows_the_figures_of_the_record(cpu_speed):
    record = Record.load(ROOT / "results" / "cpu-speed.json")
    assert cpu_speed.table(record.results) in (ROOT / "docs/engine.md").read_text(encoding="utf-8")
