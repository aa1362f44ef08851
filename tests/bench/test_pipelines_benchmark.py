from l2c.records import Record


def test_the_benchmark_times_both_ways_and_keeps_every_figure(load_benchmark, tmp_path, capsys):
    module = load_benchmark("pipelines")
    out = tmp_path / "record.json"
    arguments = ["--model", "flux-tiny", "--steps", "4", "--repetitions", "2", "--device", "cpu"]
    assert module.main([*arguments, "--dtype", "float32", "--out", str(out)]) == 0
    assert "times as fast at 5" in capsys.readouterr().out
    record = Record.load(out)
    assert {name: len(times) for name, times in record.timings.items()} == {"uncached": 2, "cached": 2}
    assert 0.5 < record.results["macs_fraction"] < 0.6
    assert set(module.SIZES) == {"flux-dev", "pixart", "flux-tiny"}
