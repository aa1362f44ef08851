"""`l2c bench`: what it times, shows and records, and what it refuses; and TF32, which is never taken silently."""

from __future__ import annotations

import json
import re
from pathlib import Path
from statistics import median

import pytest
import torch

import l2c
from l2c.bench import schedules as bench_schedules
from l2c.bench.latency import Latency, SpeedUp, measure_latency
from l2c.bench.schedules import EVERYTHING
from l2c.devices import resolve_dtype
from l2c.errors import ConfigError
from l2c.records import Record
from l2c.testing import tiny_dit, tiny_uvit

QUICK = ("--batch-sizes", "1,2", "--repetitions", 3)


@pytest.fixture
def family(tmp_path):
    """Schedules for six evaluations by DDIM, of half of the layers and of a third."""
    path = tmp_path / "family.safetensors"
    schedules = [l2c.methods.interval(tiny_dit(), solver="ddim", steps=6, every=every) for every in (2, 3)]
    l2c.ScheduleFamily(schedules).save(path)
    return path


def test_bench_times_schedules_against_everything_computed(invoke, tmp_path, checkpoint, schedule, family):
    out = tmp_path / "deep" / "times.json"
    schedules = ("-s", schedule, "-s", family, "--budget", 0.6)
    finished = invoke("bench", checkpoint, *schedules, *QUICK, "--engines", "auto,eager", "--out", out)
    assert finished.code == 0, finished.err
    for words in (
        "dpmsolver++, 4 evaluations, logsnr spacing, guidance 1.5; 1 picture at a time, engine eager",
        "ddim, 6 evaluations, linspace spacing, guidance 1.5; 2 pictures at a time, engine eager",
        "everything computed",
        "100.0%",
        "speed-up",
    ):
        assert words in finished.out
    assert f"wrote {out}" in finished.err
    record = Record.load(out)
    assert list(out.parent.iterdir()) == [out]
    rows = record.results["rows"]
    # two runs, two batch sizes, one engine (auto is eager here), with and without the schedule
    assert len(rows) == len(record.timings) == 8
    assert [row["schedule"] for row in rows] == [EVERYTHING, "interval", EVERYTHING, "family"] * 2
    assert [row["images"] for row in rows] == [1] * 4 + [2] * 4
    assert record.config["engines"] == ["eager"]
    assert record.results["out_of_memory"] == []
    for baseline, row in zip(rows[::2], rows[1::2], strict=True):
        ratios = [slow / fast for slow, fast in zip(baseline["seconds"], row["seconds"], strict=True)]
        speed_up = {"median": median(ratios), "least": min(ratios), "most": max(ratios)}
        assert len(ratios) == 3
        assert row["speed_up"] == pytest.approx(speed_up)
        assert row["share_of_mac_ratio"] == pytest.approx(median(ratios) * row["macs_fraction"])
        assert row["floor_s"] == pytest.approx(baseline["floor_s"] * row["macs_fraction"])
        assert baseline["macs_fraction"] == 1 > row["macs_fraction"]
        assert (row["run"], row["engine"]) == (baseline["run"], baseline["engine"])
        assert row["peak_bytes"] == 0 < row["store_bytes"]  # no device memory on CPUs
        assert row["seconds"] in record.timings.values()


def test_bench_without_a_schedule_as_json(invoke, other_checkpoint):
    options = ("--solver", "euler", "--steps", 3, "--guidance", 1, "--batch-sizes", 3, "--repetitions", 1)
    finished = invoke("bench", other_checkpoint, *options, "--json")
    assert finished.code == 0, finished.err
    found = json.loads(finished.out)
    assert found["file"] is None
    assert found["command"] == "bench"
    (row,) = found["results"]["rows"]
    assert (row["schedule"], row["images"], len(row["seconds"])) == (EVERYTHING, 3, 1)
    assert row["run"] == "euler, 3 evaluations, linspace spacing, without guidance"
    assert row["first_s"] > 0
    assert row["pictures_per_s"] == pytest.approx(3 / row["seconds"][0])


def test_bench_of_a_size_with_random_weights_takes_a_schedule_of_other_weights(invoke, monkeypatch):
    monkeypatch.setattr(bench_schedules, "measure_latency", one_second)
    options = ("--random-weights", "-s", "dit-mini-cifar10-ddim-20", "-s", "dit-mini-cifar10-auto-10")
    finished = invoke("bench", "DiT-mini/cifar10", *options, "--budget", 0.5, *QUICK)
    assert finished.code == 0, finished.err
    assert "DiT-mini/cifar10, random weights, float32, on cpu" in finished.out
    assert "ddim, 20 evaluations" in finished.out
    assert "the solver of dit-mini-cifar10-auto-10, " in finished.out
    assert finished.err == ""  # no warning: that the weights differ was asked for


def one_second(sampler, schedules, engines, images, repetitions, on_run):
    """Every run takes as many seconds as there are pictures, times its share of the MACs."""
    fractions = {name: 1.0 if s is None else s.cost.fraction for name, s in schedules.items()}
    return [
        Latency(name, engine, images, fraction, 9.0, (images * fraction,) * repetitions, None, 10**9, 10**8)
        for name, fraction in fractions.items()
        for engine in engines
    ]


def test_a_batch_that_does_not_fit_is_said_and_left_out(invoke, monkeypatch, checkpoint, schedule):
    def limited(sampler, schedules, engines, images, repetitions, on_run):
        if images > 2:
            try:
                raise torch.OutOfMemoryError("CUDA out of memory")
            except RuntimeError as error:
                raise RuntimeError("capture failed") from error
        return measure_latency(sampler, schedules, engines, images, repetitions, on_run=on_run)

    monkeypatch.setattr(bench_schedules, "measure_latency", limited)
    options = (checkpoint, "-s", schedule, "--repetitions", 1)
    finished = invoke("bench", *options, "--batch-sizes", "64,2")
    assert finished.code == 0, finished.err
    assert "l2c: warning: out of memory with 64 pictures at a time" in finished.err
    assert "2 pictures at a time, engine eager" in finished.out
    assert "Out of memory: 64 pictures at a time" in finished.out
    finished = invoke("bench", *options, "--batch-sizes", "64")
    assert finished.code == 1
    assert "out of memory at every batch size (64); use smaller --batch-sizes" in finished.err
    assert finished.out == ""


def test_other_faults_are_not_taken_for_a_lack_of_memory():
    assert bench_schedules.is_out_of_memory(MemoryError())
    assert bench_schedules.is_out_of_memory(
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")
    )
    assert not bench_schedules.is_out_of_memory(RuntimeError("shapes do not fit"))


def test_memory_on_a_device_is_shown_with_the_stores_share(invoke, monkeypatch, checkpoint, schedule):
    monkeypatch.setattr(bench_schedules, "measure_latency", one_second)
    finished = invoke("bench", checkpoint, "-s", schedule, "--batch-sizes", 2)
    (line,) = [line.split() for line in finished.out.splitlines() if line.startswith("interval")]
    fraction = l2c.CacheSchedule.load(schedule).cost.fraction
    assert line[:3] == ["interval", f"{fraction:.1%}", "9.00"]
    assert line[5:9] == [f"{1 / fraction:.2f}", "100%", "1.00", "10.0%"]


def test_speed_up_is_of_runs_of_the_same_round():
    slow = Latency("a", "eager", 1, 1.0, 1.0, (2.0, 4.0, 9.0), None, 0, 0)
    fast = Latency("b", "eager", 1, 0.5, 1.0, (1.0, 4.0, 3.0), None, 0, 0)
    assert SpeedUp.of(fast, slow) == SpeedUp(median=2.0, least=1.0, most=3.0)


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (("--batch-sizes", "0,2"), 2, ("--batch-sizes.0 must be at least 1, got 0",)),
        (("--batch-sizes", "few"), 2, ("--batch-sizes takes whole numbers",)),
        (("--engines", "eager,steam"), 2, ("unknown engine 'steam'",)),
        (("--engines", "graph"), 2, ("CUDA graphs need a CUDA device", "engine='compile'")),
        (("--budget", 0.5), 2, ("a budget chooses from families",)),
        (("-s", "SCHEDULE", "--budget", 0.5), 2, ("a budget chooses from families",)),
        (("-s", "SCHEDULE", "-s", "SCHEDULE"), 2, ("a schedule is named twice",)),
        (("-s", "none.safetensors"), 1, ("there is no schedule file none.safetensors",)),
        (("-s", "SCHEDULE", "--steps", 7), 1, ("schedule covers 4 evaluations", "makes 7")),
        (("-s", "dit-mini-cifar10-ddim-20"), 1, ("is a family of schedules", "--budget")),
        (("-s", "dit-mini-cifar10-ddim-20", "--budget", 0.5), 1, ("24 layers",)),
        (("-s", "OTHER"), 1, ("the schedule was learned on other weights", "--any-weights")),
        (("--random-weights",), 2, ("there is no model called",)),
        (("--out", "times.txt"), 2, ("--out writes a .json file",)),
        (("--repetitions", 0), 2, ("--repetitions",)),
        (("--dtype", "tf32"), 2, ("TF32 is a number format of NVIDIA devices", "--dtype float32")),
        (("--dtype", "int8"), 2, ("unknown number format 'int8'", "bfloat16, float16, tf32")),
    ],
)
def test_wrong_usage(invoke, checkpoint, schedule, other_weights, options, code, words):
    files = {"SCHEDULE": schedule, "OTHER": other_weights}
    finished = invoke("bench", checkpoint, *(files.get(option, option) for option in options))
    assert finished.code == code
    assert finished.out == ""
    assert len(finished.err.splitlines()) == 1
    assert all(word in finished.err for word in words), finished.err


@pytest.fixture
def other_weights(tmp_path):
    """A schedule that was learned on another tiny DiT."""
    path = tmp_path / "other.safetensors"
    settings = l2c.RouterSettings(iterations=1, batch_size=1)
    l2c.learn(tiny_dit(seed=1), pattern="alternate", solver="ddim", steps=2, settings=settings).save(path)
    return path


@pytest.mark.filterwarnings("default:the schedule was learned")
def test_other_weights_can_be_allowed(invoke, checkpoint, other_weights):
    options = ("--any-weights", "--batch-sizes", 1, "--repetitions", 1)
    finished = invoke("bench", checkpoint, "-s", other_weights, *options)
    assert finished.code == 0, finished.err
    assert finished.err.count("the schedule was learned on other weights") == 1
    assert "ddim, 2 evaluations" in finished.out


def test_a_published_size_without_a_checkpoint_says_what_to_do(invoke):
    finished = invoke("bench", "uvit-h-2-256", "--batch-sizes", 1)
    assert finished.code == 1
    assert "no public download of uvit-h-2-256 is known" in finished.err
    assert "add --random-weights" in finished.err


def test_a_schedule_of_another_family_is_refused_with_random_weights_too(invoke, tmp_path):
    path = tmp_path / "uvit.safetensors"
    l2c.methods.interval(tiny_uvit(), solver="ddim", steps=2).save(path)
    finished = invoke("bench", "dit-mini-cifar10", "--random-weights", "-s", path)
    assert finished.code == 1
    assert "24 layers" in finished.err


@pytest.fixture
def settings_of_products():
    """Restores how products of float32 are made."""
    precision, convolutions = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    yield
    torch.set_float32_matmul_precision(precision)
    torch.backends.cudnn.allow_tf32 = convolutions


def test_only_tf32_uses_tf32(monkeypatch, settings_of_products):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    for name, dtype, precision in (
        ("tf32", torch.float32, "high"),
        ("float32", torch.float32, "highest"),
        ("tf32", torch.float32, "high"),
        ("bfloat16", torch.bfloat16, "highest"),
    ):
        assert resolve_dtype(name, "cuda") == dtype
        assert torch.get_float32_matmul_precision() == precision
        assert torch.backends.cudnn.allow_tf32 == (precision == "high")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla T4")
    with pytest.raises(ConfigError, match=r"Tesla T4 \(compute capability 7.5\) has no TF32"):
        resolve_dtype("tf32", "cuda")
    with pytest.raises(ConfigError, match="choose one of float32, bfloat16, float16"):
        resolve_dtype("tf32")


@pytest.mark.parametrize("command", ["sample", "profile"])
def test_other_commands_refuse_tf32_without_a_device_that_has_it(invoke, tmp_path, checkpoint, command):
    out = tmp_path / "out.json"
    finished = invoke(command, checkpoint, "--device", "cpu", "--dtype", "tf32", "--out", out)
    assert finished.code == 2
    assert "TF32 is a number format of NVIDIA devices, and the device is cpu" in finished.err
    assert not out.exists()


def test_nothing_else_in_the_package_switches_tf32():
    root = Path(l2c.__file__).parent
    switches = re.compile(r"allow_tf32|fp32_precision|set_float32_matmul_precision|TF32_OVERRIDE")
    found = [
        path.relative_to(root) for path in root.rglob("*.py") if switches.search(path.read_text("utf-8"))
    ]
    assert found == [Path("devices.py")]
