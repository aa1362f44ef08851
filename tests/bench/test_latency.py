"""The latency benchmark, on tiny models on the CPU: every part runs, is recorded, and is shown."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import l2c
from l2c.bench.latency import device_floor, floor_s, measure_latency
from l2c.errors import ConfigError
from l2c.hosts.native import ModelHost
from l2c.records import Record

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def latency(load_benchmark):
    return load_benchmark("latency")


def test_every_part_is_recorded_and_shown(latency, tmp_path, capsys):
    out = tmp_path / "latency.json"
    options = ["--tiny", "--device", "cpu", "--repetitions", "2", "--out", str(out)]
    for part in ("tables", "throughput", "scaling"):
        assert latency.main([*options, "--part", part]) == 0
    assert latency.main([*options, "--show"]) == 0
    shown = capsys.readouterr().out
    assert "share of the MAC ratio" in shown
    assert "s + fraction of the MACs x" in shown
    record = Record.load(out)
    assert set(record.results) == {"tables", "throughput", "scaling"}
    assert out.with_suffix(".png").stat().st_size > 10_000
    rows = record.results["tables"]["rows"]
    scaled = record.results["scaling"]
    assert [row["tokens"] for row in scaled["tokens"]] == [16, 64]
    assert [row["macs_fraction"] for row in scaled["fraction"]] == sorted(
        (row["macs_fraction"] for row in scaled["fraction"]), reverse=True
    )
    assert {(row["images"], row["schedule"]) for row in rows} == {
        (images, name) for images in (1, 8) for name in ("everything", "published", "every 2nd, three terms")
    }


def test_the_document_shows_the_figures_of_the_record(load_benchmark):
    module = load_benchmark("latency")
    record = Record.load(ROOT / "results/latency-h100.json")
    for document in ("README.md", "docs/engine.md"):
        assert module.summary(dict(record.results)) in (ROOT / document).read_text(encoding="utf-8")
    assert module.straight_lines(dict(record.results)) in (ROOT / "docs/engine.md").read_text(
        encoding="utf-8"
    )


def test_the_document_shows_how_time_grows_on_cpus(load_benchmark):
    scaling = load_benchmark("scaling")
    line = scaling.Line(**Record.load(ROOT / "results/scaling-cpu.json").results["line"])
    assert f"{line}\n" in (ROOT / "docs/engine.md").read_text(encoding="utf-8")


def test_parts_that_need_the_routers_say_so(latency, tmp_path, capsys):
    with pytest.raises(SystemExit):
        latency.main(["--device", "cpu", "--out", str(tmp_path / "x.json")])
    assert "published router files" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["latency", "scaling"])
def test_a_benchmark_says_what_it_cannot_do(load_benchmark, name, tmp_path, capsys):
    main = load_benchmark(name).main
    for options, sentence in (
        (["--show", "--out", str(tmp_path / "none.json")], "cannot be read"),
        (["--show", "--out", str(ROOT / "results/demo.json")], f"that benchmarks/{name}.py has written"),
        (["--device", "cuda:99", "--out", str(tmp_path / "x.json")], "there is no device 'cuda:99' here"),
    ):
        assert main(options) == 1
        assert sentence in capsys.readouterr().err


def test_shares_of_known_times(latency):
    row = {"model": "m", "images": 8, "engine": "eager", "launch_us": 20.0, "first_s": 5.0, "median_s": 1.0}
    rows = [
        {**row, "schedule": "everything", "seconds": [1.0, 1.2], "macs_fraction": 1.0},
        {**row, "schedule": "published", "seconds": [0.8, 0.96], "macs_fraction": 0.75},
        {**row, "schedule": "every 2nd, three terms", "seconds": [0.55, 0.66], "macs_fraction": 0.5},
    ]
    found = latency.figures(rows, fast="eager")
    assert found["m, 8 pictures, share of the MAC ratio"] == pytest.approx(1.25 * 0.75)
    assert found["m, 8 pictures, reuse of every layer, share of a full evaluation"] == pytest.approx(0.1)
    assert found["m, 8 pictures, compile and capture, s"] == 4.0


def test_latency_of_variants_that_take_turns(tiny_dit):
    host = ModelHost.of(tiny_dit, "ddim", 6)
    schedules = {"all": None, "half": l2c.methods.interval(tiny_dit, solver="ddim", steps=6, every=2)}
    rows = measure_latency(host, schedules, ["auto", "eager"], images=3, repetitions=2)
    assert [(row.schedule, row.engine) for row in rows] == [("all", "eager"), ("half", "eager")]
    assert rows[0].store_bytes == 0 < rows[1].store_bytes
    assert all(len(row.seconds) == 2 and row.launch_us is None for row in rows)
    assert rows[1].to_json()["pictures_per_s"] == pytest.approx(3 / rows[1].median_s)
    with pytest.raises(ConfigError, match="at least 1, got 0"):
        measure_latency(host, {}, ["auto"])


def test_the_floor_follows_the_work(tiny_dit):
    host = ModelHost.of(tiny_dit, "ddim", 6)
    half = l2c.methods.interval(tiny_dit, solver="ddim", steps=6, every=2)
    full = floor_s(host, None, 4, 1e12)
    assert floor_s(host, half, 4, 1e12) == pytest.approx(full * half.cost.fraction)
    assert floor_s(host, None, 8, 1e12) == pytest.approx(2 * full)
    found = device_floor("cpu", torch.float32)
    assert found["matmul_flops"] > 1e8
    assert found["copy_bytes"] > 1e8


def test_a_line_through_points_and_how_far_they_are_off(load_benchmark):
    line = load_benchmark("scaling").Line.through
    exact = line([(1.0, 3.5), (0.5, 2.0), (0.1, 0.8)])
    assert (exact.slope, exact.fixed, exact.worst) == pytest.approx((3.0, 0.5, 0.0), abs=1e-9)
    # least squares by hand: 2.5 x + 0.5, which is off by half at 1 and at 2
    bent = line([(0.0, 1.0), (1.0, 2.0), (2.0, 6.0)])
    assert (bent.slope, bent.fixed) == pytest.approx((2.5, 0.5))
    assert bent.worst == pytest.approx(0.5)
