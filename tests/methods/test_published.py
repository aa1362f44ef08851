import argparse
import pickle

import pytest
import torch

import l2c
from l2c.errors import ConfigError, ScheduleError


@pytest.mark.parametrize(
    ("name", "computed", "total", "kinds"),
    [
        ("DDIM50_router.pt", 736, 1400, (371, 365)),
        ("DDIM20_router.pt", 312, 560, (157, 155)),
        ("dpm50_router.pth", 88, 1392, None),
        ("dpm20_router.pth", 189, 522, None),
    ],
)
def test_published_routers_keep_the_published_number_of_layers(shared, name, computed, total, kinds):
    cached = l2c.import_router(shared / "routers" / name).summary()["cached"]
    assert (cached["computed"], cached["total"]) == (computed, total)
    if kinds is not None:
        assert tuple(cached["kinds"][kind]["computed"] for kind in ("attention", "mlp")) == kinds


def test_published_costs(shared):
    dit = l2c.import_router(shared / "routers/DDIM50_router.pt").cost
    assert dit.full_linear_macs / 1e12 == pytest.approx(5.72, abs=0.005)
    assert dit.linear_macs / 1e12 == pytest.approx(4.36, abs=0.005)
    uvit = l2c.import_router(shared / "routers/dpm50_router.pth").cost
    assert uvit.full_macs / 1e12 == pytest.approx(6.66, abs=0.005)
    assert uvit.macs / 1e12 == pytest.approx(3.88, abs=0.005)


def test_dit_rows_run_from_the_smallest_timestep(shared):
    """Row 48 is the second evaluation of DDIM-50, row 0 the last; evaluations 0, 2, 4, ... are full."""
    path = shared / "routers/DDIM50_router.pt"
    with torch.serialization.safe_globals([argparse.Namespace]):
        rows = torch.load(path, map_location="cpu", weights_only=True)["routers"]
    schedule = l2c.import_router(path)
    assert schedule.compute[0::2].all()
    assert torch.equal(schedule.compute[1], rows["48.prob"].sigmoid() > 0.1)
    assert torch.equal(schedule.compute[49], rows["0.prob"].sigmoid() > 0.1)
    assert schedule.contract.run.timesteps[:2] == (999.0, 979.0)


def test_uvit_rows_decide_the_first_evaluation_of_an_outer_step(shared):
    path = shared / "routers/dpm50_router.pth"
    rows = torch.load(path, map_location="cpu", weights_only=True)
    schedule = l2c.import_router(path)
    assert schedule.compute[1::2].all()
    assert schedule.compute[0].all()
    assert torch.equal(schedule.compute[2], rows["1.prob"].sigmoid() > 0.9)
    assert torch.equal(schedule.compute[48], rows["24.prob"].sigmoid() > 0.9)
    assert {source for (e, _), terms in schedule.plan.items() for source, _ in terms if e == 4} == {3}


def test_threshold_can_be_chosen(shared):
    path = shared / "routers/DDIM50_router.pt"
    assert l2c.import_router(path, threshold=0.9).cost.fraction < l2c.import_router(path).cost.fraction
    with pytest.raises(ConfigError, match="the threshold must be at most 1, got 1.5"):
        l2c.import_router(path, threshold=1.5)


def test_another_model_is_refused(shared):
    with pytest.raises(ScheduleError, match="56 layers per row but dit-l-2-256 has 48"):
        l2c.import_router(shared / "routers/DDIM50_router.pt", model="dit-l-2")


class Malicious:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return (open, (str(self.target), "w"))


def test_a_pickle_that_would_execute_code_is_not_loaded(tmp_path):
    target = tmp_path / "executed"
    torch.save({"routers": Malicious(target)}, tmp_path / "router.pt")
    with pytest.raises(ScheduleError, match="would run code"):
        l2c.import_router(tmp_path / "router.pt")
    (tmp_path / "plain.pt").write_bytes(pickle.dumps(Malicious(target), protocol=2))
    with pytest.raises(ScheduleError, match="would run code"):
        l2c.import_router(tmp_path / "plain.pt")
    assert not target.exists()


def test_files_that_are_not_routers_are_one_sentence(tmp_path):
    with pytest.raises(ScheduleError, match="there is no router file"):
        l2c.import_router(tmp_path / "none.pt")
    (tmp_path / "cut.pt").write_bytes(b"PK\x03\x04 and then nothing")
    with pytest.raises(ScheduleError, match="truncated or damaged"):
        l2c.import_router(tmp_path / "cut.pt")
    torch.save({"weight": torch.zeros(3)}, tmp_path / "model.pt")
    with pytest.raises(ScheduleError, match="has no complete rows"):
        l2c.import_router(tmp_path / "model.pt")
    torch.save({f"{i}.prob": torch.zeros(12) for i in range(4)}, tmp_path / "small.pt")
    with pytest.raises(ScheduleError, match="does not say which U-ViT"):
        l2c.import_router(tmp_path / "small.pt")
