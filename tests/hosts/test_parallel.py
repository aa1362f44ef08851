"""Pipelines that several processes hold: split by context, or their weights sharded; nothing hangs."""

import os
import sys
import traceback
from pathlib import Path

import pytest
import torch

import l2c
from l2c.schedule.schedule import CacheSchedule
from l2c.testing import tiny_call, tiny_pipeline

pytestmark = [
    pytest.mark.skipif(os.name != "posix", reason="forks"),
    pytest.mark.filterwarnings("ignore:.*experimental"),
]

ROOT = Path(__file__).resolve().parents[2]
NAME = "flux"
"""The sequences and heads of its tiny model can be shared by two."""
QUICK = l2c.LearnSettings(
    iterations=2, batch_size=2, num_examples=4, reference_steps=6, trials=1, trial_examples=1
)
LIMIT_S = 900
"""When processes are taken to hang; alone on two cores they take well under a minute."""


def tiny_words():
    """A call whose text can be shared by two, too."""
    text = torch.randn(1, 6, 16, generator=torch.Generator().manual_seed(0))
    return {**tiny_call(NAME), "prompt_embeds": text, "negative_prompt_embeds": text / 2}


def call():
    given = tiny_words()
    return {key: value for key, value in given.items() if key not in ("generator", "output_type")}


def split_by_context(pipe, context=2, data=1):
    from diffusers import ContextParallelConfig
    from torch.distributed.device_mesh import init_device_mesh

    names = ("data", "ring", "ulysses")
    mesh = init_device_mesh("cpu", (data, 1, context), mesh_dim_names=names)
    pipe.transformer.enable_parallelism(config=ContextParallelConfig(ulysses_degree=context, mesh=mesh))


def shard_weights(pipe):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (2,))
    for block in [*pipe.transformer.transformer_blocks, *pipe.transformer.single_transformer_blocks]:
        fully_shard(block, mesh=mesh)
    fully_shard(pipe.transformer, mesh=mesh)


def learn(pipe, **options):
    given = {"budget": 0.6, "settings": QUICK, **call(), **options}
    return l2c.learn(pipe, **given)


def repair(pipe, schedule):
    return l2c.repair(pipe, schedule, settings=QUICK, **call())


def _context(rank, folder):
    pipe = tiny_pipeline(NAME)
    split_by_context(pipe)
    torch.save(pipe(**tiny_words()).images, folder / f"bare-{rank}.pt")
    learn(pipe).save(folder / f"{rank}.safetensors")
    schedule = CacheSchedule.load(folder / "alone.safetensors")
    repair(pipe, schedule).save(folder / f"repaired-{rank}.safetensors")
    with l2c.enable_cache(pipe, schedule):
        torch.save(pipe(**tiny_words()).images, folder / f"cached-{rank}.pt")


def _context_with_solver(rank, folder):
    pipe = tiny_pipeline(NAME)
    split_by_context(pipe)
    options = {"budget": None, "solver": "auto", "evaluations": 3, "per_computed": 1}
    learn(pipe, **options).save(folder / f"{rank}.safetensors")


def _two_groups(rank, folder):
    pipe = tiny_pipeline(NAME)
    split_by_context(pipe, data=2)
    learn(pipe).save(folder / f"{rank}.safetensors")
    schedule = CacheSchedule.load(folder / "alone.safetensors")
    repair(pipe, schedule).save(folder / f"repaired-{rank}.safetensors")


def _sharded(rank, folder):
    pipe = tiny_pipeline(NAME)
    schedule = learn_alone_then_share(pipe)
    with l2c.enable_cache(pipe, schedule):
        torch.save(pipe(**tiny_words()).images, folder / f"cached-{rank}.pt")
    learn(pipe).save(folder / f"{rank}.safetensors")


def learn_alone_then_share(pipe):
    schedule = l2c.methods.interval(pipe, **call())
    shard_weights(pipe)
    return schedule


def _other_settings(rank, folder):
    pipe = tiny_pipeline(NAME)
    told(lambda: learn(pipe, true_cfg_scale=2.0 + rank), folder, rank)


def _half_split(rank, folder):
    """Only one of the two says that they make a run together."""
    pipe = tiny_pipeline(NAME)
    split_by_context(pipe)
    if rank:
        pipe.transformer._parallel_config = None
    from l2c.hosts.parallel import context_of
    from l2c.learning.processes import Processes

    told(
        lambda: Processes(torch.device("cpu"), None, context_of({"transformer": pipe.transformer})),
        folder,
        rank,
    )


def _router(rank, folder):
    pipe = tiny_pipeline(NAME)
    split_by_context(pipe)
    told(lambda: l2c.learn(pipe, pattern="alternate", **call()), folder, rank)


def told(action, folder, rank):
    try:
        action()
    except l2c.L2CError as error:
        (folder / f"{rank}.txt").write_text(str(error))


def _child(function, rank, count, port, folder):
    settings = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(count)}
    os.environ.update(settings, RANK=str(rank), LOCAL_RANK=str(rank), LOCAL_WORLD_SIZE=str(count))
    torch.set_num_threads(1)
    torch.accelerator.device_count = lambda: 1  # diffusers divides by it
    try:
        torch.distributed.init_process_group("gloo")
        function(rank, folder)
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()
    except BaseException:
        (folder / f"error-{rank}.txt").write_text(traceback.format_exc())
        os._exit(1)


def together(fork_server, function, folder, count=2):
    """Runs a function in processes that know each other, and kills them when they take too long."""
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = [
        fork_server.Process(target=_child, args=(function, rank, count, port, folder))
        for rank in range(count)
    ]
    sys.path.insert(0, str(ROOT))  # children import this file by its name, and look where their parent does
    try:
        for process in processes:
            process.start()
        for process in processes:
            process.join(LIMIT_S)
        said = "".join(path.read_text() for path in sorted(Path(folder).glob("error-*.txt")))
        assert [process.exitcode for process in processes] == [0] * count, said
    finally:
        sys.path.remove(str(ROOT))
        for process in processes:
            process.kill()
            process.join()


def all_of(folder, kind="", count=2):
    return [CacheSchedule.load(folder / f"{kind}{rank}.safetensors") for rank in range(count)]


def assert_alike(schedule, other, atol=0.0):
    assert torch.equal(schedule.compute, other.compute)
    ours, theirs = schedule.predictor.coefficients, other.predictor.coefficients
    torch.testing.assert_close(ours, theirs, atol=atol, rtol=0.0)


@pytest.mark.slow
def test_two_processes_that_share_a_sequence_learn_what_one_does(fork_server, tmp_path):
    pipe = tiny_pipeline(NAME)
    alone = learn(pipe)
    alone.save(tmp_path / "alone.safetensors")
    together(fork_server, _context, tmp_path)
    assert_alike(*all_of(tmp_path))
    repaired = all_of(tmp_path, "repaired-")
    assert_alike(*repaired)
    assert_alike(repaired[0], repair(pipe, alone), atol=1e-5)
    assert not torch.equal(repaired[0].predictor.coefficients, alone.predictor.coefficients)
    layers = repaired[0].layers
    assert all_of(tmp_path)[0].layers.layer_macs == layers.layer_macs
    bare = pipe(**tiny_words()).images
    torch.testing.assert_close(torch.load(tmp_path / "bare-0.pt"), bare, atol=1e-4, rtol=1e-4)
    with l2c.enable_cache(pipe, alone):
        expected = pipe(**tiny_words()).images
    for rank in range(2):
        torch.testing.assert_close(torch.load(tmp_path / f"cached-{rank}.pt"), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.slow
def test_a_solver_is_learned_by_two_processes_that_share_a_sequence_as_by_one(fork_server, tmp_path):
    together(fork_server, _context_with_solver, tmp_path)
    first, second = all_of(tmp_path)
    assert first.contract.run == second.contract.run
    alone = learn(tiny_pipeline(NAME), budget=None, solver="auto", evaluations=3, per_computed=1)
    ours, theirs = first.contract.run, alone.contract.run
    assert ours.log_snrs == pytest.approx(theirs.log_snrs, abs=1e-3)
    assert sum(ours.weights, ()) == pytest.approx(sum(theirs.weights, ()), abs=1e-3)


@pytest.mark.slow
def test_two_groups_of_two_processes_learn_what_one_process_does(fork_server, tmp_path):
    pipe = tiny_pipeline(NAME)
    alone = learn(pipe)
    alone.save(tmp_path / "alone.safetensors")
    together(fork_server, _two_groups, tmp_path, count=4)
    for kind in ("", "repaired-"):
        first, *others = all_of(tmp_path, kind, count=4)
        for other in others:
            assert_alike(first, other)
    assert_alike(first, repair(pipe, alone), atol=1e-5)


@pytest.mark.slow
def test_sharded_weights_are_enabled_and_learned_through(fork_server, tmp_path):
    together(fork_server, _sharded, tmp_path)
    first, second = all_of(tmp_path)
    assert_alike(first, second)
    pipe = tiny_pipeline(NAME)
    assert_alike(first, learn(pipe), atol=1e-3)
    with l2c.enable_cache(pipe, l2c.methods.interval(pipe, **call())):
        expected = pipe(**tiny_words()).images
    torch.testing.assert_close(torch.load(tmp_path / "cached-0.pt"), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("function", "told"),
    [
        (_other_settings, "process 1 learns with another call than process 0; start all processes"),
        (_half_split, "do not agree on which of them make a run together ((0, 1) and (1,))"),
        (_router, "the paper's router is not learned on a pipeline that is split by context"),
    ],
)
def test_processes_that_do_not_match_are_told_so_all_of_them(fork_server, tmp_path, function, told):
    together(fork_server, function, tmp_path)
    for rank in range(2):
        assert told in (tmp_path / f"{rank}.txt").read_text()
