import pytest

from l2c.cache.clock import Clock
from l2c.errors import CacheStateError


def test_evaluations_come_in_order_and_once():
    clock = Clock(3)
    with pytest.raises(CacheStateError, match="no run is in progress"):
        clock.tick(0)
    clock.start()
    assert not clock.entered
    clock.tick(0)
    clock.tick(1)
    for wrong in (1, 0, 3):
        with pytest.raises(CacheStateError, match=f"evaluation {wrong} follows evaluation 1"):
            clock.tick(wrong)
    clock.tick(2)
    with pytest.raises(CacheStateError, match="evaluation 3 follows"):
        clock.tick(3)


def test_a_branch_ends_with_its_block_also_after_an_exception():
    clock = Clock(1)

    def fail():
        with clock.in_branch("cond"):
            assert clock.branch == "cond"
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert clock.branch == "all"
