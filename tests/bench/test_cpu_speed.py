"""A schedule that leaves half of the work leaves about half of the time; see results/ for exact figures."""

from pathlib import Path

import pytest

from l2c.records import Record

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # PyTorch's own, in its compiler

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def cpu_speed(load_benchmark):
    return load_benchmark("cpu_speed")


REUSING = ("interval", "interval, compiled", "blocks")


@pytest.mark.slow
def test_half_the_work_takes_less_time(cpu_speed):
    """Fastest of several interleaved repetitions; on a busy machine, of as many again."""
    for _ in range(4):
        results = cpu_speed.measure(images=1, steps=10, repetitions=5).results
        assert results["everything_is_bit_equal"]
        fastest = {name: row["min_s"] for name, row in results["variants"].items()}
        gains = {name: fastest["none"] / seconds for name, seconds in fastest.items()}
        if gains["everything"] > 0.8 and min(gains[name] for name in REUSING) > 1.25:
            return
    raise AssertionError(f"half of the work takes too long, as parts of the whole: {gains}")


def test_cpu_speed_writes_what_it_measured(cpu_speed, tmp_path, capsys):
    out = tmp_path / "speed.json"
    assert cpu_speed.main(["--out", str(out), "--images", "1", "--steps", "2", "--repetitions", "1"]) == 0
    record = Record.load(out)
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
