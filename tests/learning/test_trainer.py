"""What every run of learning must survive, through both learners where they differ."""

from __future__ import annotations

import errno
import os
import signal
import threading
import time
from dataclasses import replace

import pytest
import torch

import l2c
from l2c import LearnSettings, RouterSettings
from l2c.errors import CheckpointError, ConfigError, NumericsError
from l2c.learning.interrupts import Interrupts
from l2c.learning.processes import Processes
from l2c.learning.session import Session
from l2c.sampling.draw import draw
from l2c.testing import tiny_dit

ROUTER = RouterSettings(iterations=4, batch_size=2, seed=5)
PREDICTOR = LearnSettings(iterations=4, batch_size=2, num_examples=8, reference_steps=6, seed=1)


def learn_published(model, **options):
    return l2c.learn(model, solver="ddim", steps=6, pattern="alternate", **options)


def learn_router(session=None, settings=ROUTER, **options):
    return learn_published(tiny_dit(), settings=settings, session=session, **options)


def learn_predictor(session=None, settings=PREDICTOR, **options):
    model = tiny_dit()
    mask = l2c.methods.interval(model, solver="dpmsolver++", steps=6)
    return l2c.repair(model, mask, settings=settings, session=session, **options)


def file_bytes(schedule, tmp_path):
    schedule.save(tmp_path / "schedule.safetensors")
    return (tmp_path / "schedule.safetensors").read_bytes()


both = pytest.mark.parametrize("learner", [learn_router, learn_predictor])


@pytest.fixture
def session(tmp_path):
    """A session that saves after every iteration."""
    return Session(checkpoint=tmp_path / "c" / "checkpoint", save_every_s=0)


class Stop(Exception):  # noqa: N818
    """Ends learning like an error of the program."""


def stop_at(stage, iteration, error=Stop):
    def stop(progress):
        if (progress.stage, progress.iteration) == (stage, iteration):
            raise error

    return stop


@both
@pytest.mark.parametrize("iteration", [1, 3])
def test_a_run_that_failed_goes_on_and_ends_with_the_same_bytes(learner, iteration, session, tmp_path):
    expected = file_bytes(learner(), tmp_path)
    with pytest.raises(Stop):
        learner(session, on_progress=stop_at("learning", iteration))
    seen = []
    resumed = learner(session, on_progress=seen.append)
    assert file_bytes(resumed, tmp_path) == expected
    assert [p.iteration for p in seen] == list(range(iteration + 1, 5))


def test_fine_step_solutions_are_computed_once(session, tmp_path):
    expected = file_bytes(learn_predictor(), tmp_path)
    with pytest.raises(Stop):
        learn_predictor(session, on_progress=stop_at("fine-step solutions", 4))
    seen = []
    assert file_bytes(learn_predictor(session, on_progress=seen.append), tmp_path) == expected
    assert [(p.stage, p.iteration) for p in seen][:3] == [
        ("fine-step solutions", 8), ("fine-step solutions for validation", 1), ("learning", 1),
    ]  # fmt: skip


@both
def test_a_finished_run_gives_its_result_again_at_once(learner, session, tmp_path):
    seen = []
    first = file_bytes(learner(session), tmp_path)
    assert file_bytes(learner(session, on_progress=seen.append), tmp_path) == first
    assert seen == []


@both
def test_a_run_that_was_interrupted_is_marked_and_goes_on(learner, session, tmp_path):
    interrupted = learner(session, on_progress=stop_at("learning", 2, KeyboardInterrupt))
    assert interrupted.provenance["interrupted"] is True
    assert file_bytes(learner(session), tmp_path) == file_bytes(learner(), tmp_path)


@both
def test_the_time_limit_ends_with_what_there_is(learner, session):
    settings = replace(ROUTER if learner is learn_router else PREDICTOR, iterations=10_000)
    began, seen = time.monotonic(), []
    schedule = learner(replace(session, time_limit_s=1.0), settings=settings, on_progress=seen.append)
    assert time.monotonic() - began < 5
    assert schedule.provenance["interrupted"] is False
    done = schedule.provenance["iterations"]
    assert 0 < done < 10_000
    assert seen[-1].iteration == done
    assert all(0 <= p.left_s <= 1.0 for p in seen if p.stage == "learning")
    again = learner(replace(session, time_limit_s=1e-9), settings=settings)  # one more is always done
    assert again.provenance["iterations"] == done + 1


def test_time_that_is_up_before_learning_is_a_sentence(session):
    with pytest.raises(
        ConfigError, match="time is up after 4 of 8 fine-step solutions, before learning began"
    ):
        learn_predictor(replace(session, time_limit_s=1e-9))
    seen = []
    learn_predictor(session, on_progress=seen.append)
    assert seen[0].iteration == 8


def test_other_settings_are_refused_until_restarted(session, tmp_path):
    with pytest.raises(Stop):
        learn_router(session, on_progress=stop_at("learning", 2))
    other = replace(ROUTER, batch_size=4, lambda_=1.0)
    with pytest.raises(
        ConfigError, match=r"batch_size was 2 and is now 4, lambda was 1e-05 and is now 1.0; .*--restart"
    ):
        learn_router(session, settings=other)
    with pytest.raises(ConfigError, match=r'what is learned was "router" and is now "predictor"'):
        learn_predictor(session)
    with pytest.raises(ConfigError, match="weights was"):
        learn_published(tiny_dit(seed=1), settings=ROUTER, session=session)
    restarted = learn_router(replace(session, restart=True), settings=other)
    assert file_bytes(restarted, tmp_path) == file_bytes(learn_router(settings=other), tmp_path)


@pytest.mark.parametrize("content", [b"", b"weights", "pickle"])
@pytest.mark.parametrize("restart", [False, True])
def test_a_file_that_is_no_checkpoint_is_left_alone(session, content, restart):
    path = session.checkpoint
    path.parent.mkdir()
    if content == "pickle":
        torch.save({"model": torch.ones(3)}, path)
    else:
        path.write_bytes(content)
    before = path.read_bytes()
    with pytest.raises(CheckpointError, match="damaged or no checkpoint of learning"):
        learn_router(replace(session, restart=restart))
    assert path.read_bytes() == before


def test_what_a_killed_write_left_is_removed(session):
    session.checkpoint.parent.mkdir()
    leftover = session.checkpoint.with_name(".checkpoint.abc.l2c-partial")
    leftover.write_bytes(b"half")
    learn_router(session)
    assert list(session.checkpoint.parent.iterdir()) == [session.checkpoint]


def test_a_full_disk_does_not_end_learning(session, tmp_path, monkeypatch):
    expected = file_bytes(learn_router(), tmp_path)

    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.warns(UserWarning, match="No space left on device; learning goes on") as caught:
            schedule = learn_router(session)
    assert sum(warning.category is UserWarning for warning in caught) == 1
    assert file_bytes(schedule, tmp_path) == expected
    assert list(session.checkpoint.parent.iterdir()) == []


def test_a_disk_that_fills_up_keeps_the_last_checkpoint(session, monkeypatch):
    fsync, writes = os.fsync, 0

    def full_after_two(handle):
        nonlocal writes
        writes += 1
        if writes > 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(handle)

    monkeypatch.setattr(os, "fsync", full_after_two)
    with pytest.warns(UserWarning, match="learning goes on"):
        learn_router(session)
    assert torch.load(session.checkpoint, weights_only=True)["state"]["iteration"] == 2


def test_nan_keeps_what_was_learned_before(session):
    model = tiny_dit()

    def spoil(progress):
        if progress.iteration == 2:
            model.blocks[0].attn.proj.weight.fill_(float("nan"))

    with pytest.raises(NumericsError, match="the loss is nan at iteration 3; check the weights"):
        learn_published(model, settings=ROUTER, session=session, on_progress=spoil)
    assert torch.load(session.checkpoint, weights_only=True)["state"]["iteration"] == 2


def test_nothing_learned_leaves_no_checkpoint(session):
    model = tiny_dit()
    model.blocks[0].attn.proj.weight.fill_(float("nan"))
    with pytest.raises(NumericsError):
        learn_published(model, settings=ROUTER, session=session)
    assert not session.checkpoint.exists()


@pytest.mark.parametrize("options", [{"time_limit_s": 0.0}, {"time_limit_s": -1.0}, {"save_every_s": -1.0}])
def test_limits_that_make_no_sense(options):
    with pytest.raises(ConfigError, match="must be"):
        Session(**options)


@both
def test_bf16_changes_little(learner):
    settings = ROUTER if learner is learn_router else PREDICTOR
    exact, rough = learner(), learner(settings=replace(settings, bf16=True))
    if learner is learn_router:
        values = exact.scores[1::2], rough.scores[1::2]
    else:
        values = exact.predictor.coefficients, rough.predictor.coefficients
    assert not torch.equal(*values)
    torch.testing.assert_close(*values, atol=0.05, rtol=0.0)


def test_the_log_has_every_iteration_once(session, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logged = replace(session, log_dir=tmp_path / "log")
    with pytest.raises(Stop):
        learn_router(logged, on_progress=stop_at("learning", 2))
    learn_router(logged)
    events = EventAccumulator(str(tmp_path / "log" / "router")).Reload()
    assert sorted(events.Tags()["scalars"]) == ["error", "fraction", "loss"]
    assert [event.step for event in events.Scalars("loss")] == [1, 2, 3, 4]


def test_a_log_without_tensorboard_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("accelerate.utils.is_tensorboard_available", lambda: False)
    with pytest.raises(ConfigError, match=r"needs TensorBoard; install it with: pip install 'l2c\[log\]'"):
        learn_router(Session(log_dir=tmp_path / "log"))


def test_a_log_that_cannot_be_written_does_not_end_learning(tmp_path):
    pytest.importorskip("tensorboard")
    (tmp_path / "file").write_text("")
    with pytest.warns(UserWarning, match="cannot write the log"):
        schedule = learn_router(Session(log_dir=tmp_path / "file"))
    assert schedule.provenance["iterations"] == 4


def test_processes_share_a_batch_evenly_or_not_at_all():
    processes = Processes(torch.device("cpu"))
    assert processes.rows(3) == slice(0, 3)
    processes.count, processes.num_groups, processes.group = 3, 3, 1
    assert processes.rows(6) == slice(2, 4)
    with pytest.raises(ConfigError, match=r"4 cannot be shared evenly by 3 processes.*a multiple of 3"):
        processes.rows(4)


def test_processes_that_do_not_know_of_each_other_are_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="2 processes were started together but accelerate counts 1"):
        learn_router()


def test_drawn_numbers_depend_on_seed_and_purpose_alone():
    def first(*key):
        return torch.rand(3, generator=draw(*key)).tolist()

    assert first(0, 1) == first(0, 1)
    assert len({tuple(first(*key)) for key in [(0, 1), (1, 0), (0, 0), (1, 1), (0, "epoch", 1)]}) == 5


@pytest.fixture
def press():
    """Presses Ctrl-C, which is as Python sets it up, even where a shell's `&` has it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield lambda: os.kill(os.getpid(), signal.SIGINT)
    signal.signal(signal.SIGINT, before)


def test_ctrl_c_is_held_back_until_the_end_of_a_block(press):
    done = []

    def press_while_held(interrupts):
        with interrupts.held():
            press()
            done.append(True)

    with Interrupts() as interrupts, pytest.raises(KeyboardInterrupt):
        press_while_held(interrupts)
    assert done == [True]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_ctrl_c_is_noted_where_it_is_always_held_back(press):
    with Interrupts(hold=True) as interrupts:
        with interrupts.held():
            press()
        press()
        assert interrupts.asked


def test_ctrl_c_comes_through_otherwise(press):
    with Interrupts(), pytest.raises(KeyboardInterrupt):
        press()


def test_learning_outside_the_main_thread():
    schedules = []
    thread = threading.Thread(target=lambda: schedules.append(learn_router()))
    thread.start()
    thread.join()
    assert schedules[0].provenance["iterations"] == 4
