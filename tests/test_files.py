from __future__ import annotations

import pytest

from l2c.errors import OutputError
from l2c.files import atomic_open, atomic_write, check_output_file, output_folder, remove_partial


def test_a_new_folder_goes_again_if_nothing_came_of_it(tmp_path):
    def fail() -> None:
        with output_folder(tmp_path / "new"):
            raise KeyError("failure")

    with pytest.raises(KeyError, match="failure"):
        fail()
    assert not (tmp_path / "new").exists()


def test_a_folder_with_something_in_it_stays(tmp_path):
    def fail() -> None:
        with output_folder(tmp_path / "new") as folder:
            atomic_write(folder / "result", b"1")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert (tmp_path / "new" / "result").read_bytes() == b"1"


def test_a_folder_under_a_file_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")

    def enter() -> None:
        with output_folder(tmp_path / "file" / "new"):
            pass

    with pytest.raises(OutputError, match="choose another --out"):
        enter()


def test_checking_a_file_leaves_nothing_behind(tmp_path):
    check_output_file(tmp_path / "deep" / "deeper" / "file")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", [".", "file/below"])
def test_a_file_that_cannot_be_written_is_found_out_before(tmp_path, name):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot write"):
        check_output_file(tmp_path / name)


def test_leftovers_of_killed_writes_are_removed_and_nothing_else(tmp_path):
    kept = [
        tmp_path / name for name in ("a[1].bin", ".a[1].bin.swp", ".a1.bin.x.l2c-partial", ".b.bin.x.partial")
    ]
    leftover = tmp_path / ".a[1].bin.abc123.l2c-partial"
    for path in (*kept, leftover):
        path.write_bytes(b"")
    remove_partial(tmp_path / "a[1].bin")
    assert sorted(tmp_path.iterdir()) == sorted(kept)


def test_what_another_process_is_writing_stays(tmp_path):
    killed = tmp_path / ".b.bin.x.l2c-partial"
    killed.write_bytes(b"")
    with atomic_open(tmp_path / "a.bin") as file:
        remove_partial(tmp_path)
        file.write(b"1")
    assert (tmp_path / "a.bin").read_bytes() == b"1"
    assert not killed.exists()
