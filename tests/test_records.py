import json

import pytest

import l2c
from l2c.errors import DataError, OutputError
from l2c.records import Record, describe_device


def test_a_record_comes_back_as_it_was(tmp_path):
    record = Record(
        "sample", {"steps": 20}, (3, 4), {"sample_s": [1.5]}, {"files": ["a.png"]}, describe_device("cpu")
    )
    record.save(tmp_path / "record.json")
    assert Record.load(tmp_path / "record.json") == record
    data = json.loads((tmp_path / "record.json").read_text())
    assert data["format"] == "l2c.run-record"
    assert data["versions"]["l2c"] == l2c.__version__
    assert "torch" in data["versions"]
    assert data["device"]["threads"] >= 1


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": "another"}', '{"format": "l2c.run-record"}'])
def test_what_is_no_record_is_refused(tmp_path, text):
    path = tmp_path / "record.json"
    path.write_text(text)
    with pytest.raises(DataError, match="not a record"):
        Record.load(path)


def test_a_record_that_cannot_be_written_is_an_output_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError):
        Record("sample", {}).save(tmp_path / "file" / "record.json")
