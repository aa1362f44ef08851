"""Nothing that a file claims is allocated before it is held against the file's length; nothing endless is read."""

import os
import zipfile

import pytest
import torch

import l2c
from l2c.cli.main import run
from l2c.documents import read_file
from l2c.errors import CheckpointError, ConfigError, DataError, ScheduleError
from l2c.hosts.pipeline.conditions import read_prompts
from l2c.models import load_model
from l2c.records import Record
from l2c.testing import tiny_dit

HUGE = 10**9


def saved(path, content):
    torch.save(content, path)
    return path


def router(rows):
    return {f"{index}.prob": row for index, row in enumerate(rows)}


ROWS = {
    "expanded": lambda: torch.zeros(1).expand(HUGE),
    "expanded rows": lambda: torch.zeros(1, 1).expand(HUGE, 58),
    "meta": lambda: torch.zeros(HUGE, device="meta"),
    "sparse": lambda: torch.sparse_coo_tensor(
        torch.tensor([[0]]), torch.tensor([1.0]), (HUGE,), check_invariants=True
    ),
    "quantised": lambda: torch.quantize_per_tensor(torch.zeros(58), 0.1, 0, torch.qint8),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ROWS)
def test_tensors_larger_than_their_file_are_refused(tmp_path, kind):
    path = saved(tmp_path / "router.pt", router([ROWS[kind](), ROWS[kind]()]))
    with pytest.raises(ScheduleError, match=r"router.pt (has \d+ bytes, but a tensor|holds )"):
        l2c.import_router(path, model="uvit-h-2-256")


def test_many_names_for_the_same_numbers_are_refused(tmp_path):
    row = torch.zeros(3000)
    with pytest.raises(ScheduleError, match="but a tensor in it"):
        l2c.import_router(
            saved(tmp_path / "r.pt", router([row[:] for _ in range(900)])), model="uvit-h-2-256"
        )


def test_contents_that_hold_themselves_are_refused(tmp_path):
    content: dict = {}
    content["model"] = content
    with pytest.raises(CheckpointError, match="without named tensors"):
        load_model(saved(tmp_path / "m.pt", content))


@pytest.mark.parametrize(
    "name", ["pos_embed", "y_embedder.embedding_table.weight", "blocks.0.mlp.fc1.weight"]
)
def test_an_expanded_table_of_a_model_is_refused(tmp_path, name):
    state = tiny_dit().state_dict()
    state[name] = (
        torch.zeros(1).expand(1, 4_000_000, 9604) if name == "pos_embed" else torch.zeros(1).expand(HUGE, 32)
    )
    with pytest.raises(CheckpointError, match=r"m.pt has \d+ bytes, but a tensor in it"):
        load_model(saved(tmp_path / "m.pt", state))


def test_a_packed_archive_is_refused_before_it_is_unpacked(tmp_path):
    path = saved(tmp_path / "plain.pt", {"x_embedder.proj.weight": torch.zeros(1_000_000)})
    with (
        zipfile.ZipFile(path) as plain,
        zipfile.ZipFile(tmp_path / "m.pth", "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for item in plain.infolist():
            packed.writestr(item.filename, plain.read(item))
    with pytest.raises(CheckpointError, match=r"m.pth unpacks to \d+ bytes; save it with torch.save"):
        load_model(tmp_path / "m.pth")


def test_a_block_of_a_huge_number_is_a_gap(tmp_path):
    for number in (10**9, 999_999):
        state = {**tiny_dit().state_dict(), f"blocks.{number}.attn.proj.bias": torch.zeros(32)}
        with pytest.raises(CheckpointError, match="lacks blocks|also holds"):
            load_model(saved(tmp_path / "m.pt", state))


@pytest.mark.parametrize("dtype", [torch.int64, torch.complex64, torch.bool])
def test_weights_of_other_kinds_of_numbers_are_refused(tmp_path, dtype):
    state = {name: tensor.to(dtype) for name, tensor in tiny_dit().state_dict().items()}
    with pytest.raises(CheckpointError, match="expected floating-point weights"):
        load_model(saved(tmp_path / "m.pt", state))


def test_what_has_no_end_is_no_file(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in ("/dev/zero", tmp_path / "pipe"):
        with pytest.raises(ConfigError, match="is no text file with prompts"):
            read_prompts(path)
        with pytest.raises(DataError, match="cannot be read: it is no ordinary file"):
            Record.load(path)
        for read in (l2c.CacheSchedule.load, l2c.import_router):
            with pytest.raises(ScheduleError, match="there is no"):
                read(path)
        with pytest.raises(CheckpointError, match="there is no file of weights"):
            load_model(path)


def test_a_file_may_have_a_length_and_no_more(tmp_path):
    (tmp_path / "long").write_bytes(b"12345")
    assert read_file(tmp_path / "long", 5) == b"12345"
    with pytest.raises(OSError, match="it has 5 bytes, more than 4"):
        read_file(tmp_path / "long", 4)


def test_counts_of_pictures_have_an_end(capsys):
    assert run(["sample", "--num", "1000000000"]) == 2
    assert run(["sample", "--labels", "0-99999999999999999999999"]) == 2
    assert run(["sample", "--labels", "0-999999999"]) == 2
    assert run(["sample", "--seed", str(2**64)]) == 2
    assert run(["sample", "--seeds", str(2**64)]) == 2
    assert "Traceback" not in capsys.readouterr().err


def test_a_schedule_of_more_evaluations_than_any_run_is_refused():
    from l2c.schedule.schedule import CacheSchedule

    small = l2c.methods.interval(tiny_dit(), steps=4)
    _, header = small.pack()
    header["contract"]["run"].update(timesteps=[0.0] * 100_000, log_snrs=[0.0] * 100_000)
    with pytest.raises(ScheduleError, match="at most 4000 items"):
        CacheSchedule.unpack({"compute": torch.ones(100_000, 6, dtype=torch.uint8)}, header, "it")
