"""Schedules in folders, and on a hub: a local substitute for its HTTP interface, reached by huggingface_hub itself."""

import base64
import hashlib
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

import pytest
import torch

import l2c
from l2c.errors import OutputError, ScheduleError
from l2c.schedule.hub import CARD_FILE, HEAT_MAP_FILE, SCHEDULE_FILE
from l2c.testing import tiny_dit


@pytest.fixture(scope="module")
def schedule():
    return l2c.methods.interval(tiny_dit(), steps=6, predictor="taylor")


class Hub(BaseHTTPRequestHandler):
    """As much of the hub's interface as creating, committing to, and downloading from a repository needs."""

    repos: dict[str, dict[str, bytes]]
    log: list[str]

    def log_message(self, *_):
        pass

    def reply(self, status, data=b"", **headers):
        body = data if isinstance(data, bytes) else json.dumps(data).encode()
        self.send_response(status)
        length = headers.pop("length", len(body))
        for name, value in {"Content-Length": str(length), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_POST(self):
        path = urlsplit(self.path).path
        self.log.append(path)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Authorization") != "Bearer hf_test":
            return self.reply(401, {"error": "Invalid credentials"})
        if path == "/api/repos/create":
            given = json.loads(body)
            name = f"{given.get('organization') or 'user'}/{given['name']}"
            self.repos.setdefault(name, {})
            return self.reply(200, {"url": f"http://{self.headers['Host']}/{name}", "id": name})
        if path == "/api/validate-yaml":
            return self.reply(200, {"errors": [], "warnings": []})
        name = "/".join(path.split("/")[3:5])
        if "/preupload/" in path:
            files = [
                {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False, "oid": None}
                for file in json.loads(body)["files"]
            ]
            return self.reply(200, {"files": files})
        for line in body.splitlines():
            entry = json.loads(line)
            if entry["key"] == "file":
                content = base64.b64decode(entry["value"]["content"])
                self.repos[name][entry["value"]["path"]] = content
        url = f"http://{self.headers['Host']}/{name}/commit/{'1' * 40}"
        return self.reply(200, {"success": True, "commitOid": "1" * 40, "commitUrl": url, "hookOutput": ""})

    def do_GET(self):
        path = unquote(urlsplit(self.path).path)
        self.log.append(path)
        if path.startswith("/api/models/"):
            return self.reply(200, {"id": "/".join(path.split("/")[3:5]), "sha": "1" * 40, "siblings": []})
        owner, name, _, revision, file = path.lstrip("/").split("/", 4)
        files = self.repos.get(f"{owner}/{name}")
        if files is None:
            return self.reply(404, b"", X_Error_Code="RepoNotFound")
        if revision != "main":
            return self.reply(404, b"", X_Error_Code="RevisionNotFound")
        if file not in files:
            return self.reply(404, b"", X_Error_Code="EntryNotFound")
        etag = f'"{hashlib.sha256(files[file]).hexdigest()}"'
        return self.reply(200, files[file], ETag=etag, X_Repo_Commit="1" * 40)

    do_HEAD = do_GET  # noqa: N815


@pytest.fixture(scope="module")
def hub():
    handler = type("LocalHub", (Hub,), {"repos": {"user/empty": {}}, "log": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", handler
    server.shutdown()
    server.server_close()
    thread.join()


def in_new_process(code, endpoint, home, *arguments):
    """Runs code in a process of its own, since huggingface_hub reads its settings when it is imported."""
    settings = {
        "HF_ENDPOINT": endpoint,
        "HF_HOME": str(home),
        "HF_TOKEN": "hf_test",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_XET": "1",
        "NO_PROXY": "127.0.0.1",
    }
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, **settings}, check=False
    )


def test_a_folder_holds_the_schedule_its_heat_map_and_its_card(schedule, tmp_path):
    folder = schedule.save_pretrained(tmp_path / "made" / "here")
    assert {path.name for path in folder.iterdir()} == {SCHEDULE_FILE, HEAT_MAP_FILE, CARD_FILE}
    assert (folder / HEAT_MAP_FILE).read_bytes().startswith(b"\x89PNG")
    loaded = l2c.CacheSchedule.from_pretrained(folder)
    assert torch.equal(loaded.compute, schedule.compute)
    assert loaded.contract == schedule.contract
    assert torch.equal(l2c.CacheSchedule.from_pretrained(folder / SCHEDULE_FILE).compute, schedule.compute)
    card = (folder / CARD_FILE).read_text()
    assert card.startswith("---\nlibrary_name: l2c\n")
    for text in (
        "ddim, 6 steps, linspace spacing",
        "taylor-1",
        "G per image",
        f"]({HEAT_MAP_FILE})",
        '"every": 2',
    ):
        assert text in card
    assert "base_model" not in card


def test_a_card_names_the_model_and_the_recorded_error(schedule, tmp_path):
    from dataclasses import replace

    contract = replace(schedule.contract, model="org/model")
    provenance = {"drift": {"error": 0.0123, "runs": 2}, "error_after": 0.5, "note": "a | b"}
    folder = replace(schedule, contract=contract, provenance=provenance).save_pretrained(tmp_path)
    card = (folder / CARD_FILE).read_text()
    assert "base_model: org/model\n" in card
    assert "| Error | 0.0123, root mean square" in card
    assert "| Recorded error after | 0.5 |" in card


PUSH = """
import sys, l2c
from l2c.errors import OutputError
schedule = l2c.CacheSchedule.load(sys.argv[1])
print(schedule.push_to_hub("user/fast", commit_message="first"))
try:
    schedule.push_to_hub("user/fast", token="hf_wrong")
except OutputError as error:
    print(error)
"""

PULL = """
import sys, l2c
from l2c.errors import ScheduleError
l2c.CacheSchedule.from_pretrained("user/fast").save(sys.argv[1])
l2c.CacheSchedule.from_pretrained("user/fast", local_files_only=True).save(sys.argv[2])
for name in ("user/nowhere", "user/empty", "not a name"):
    try:
        l2c.CacheSchedule.from_pretrained(name)
    except ScheduleError as error:
        print(error)
"""


@pytest.mark.slow
def test_a_schedule_goes_to_the_hub_and_comes_back_and_what_fails_is_one_sentence(schedule, hub, tmp_path):
    endpoint, server = hub
    one, two, three = (tmp_path / f"{name}.safetensors" for name in ("one", "two", "three"))
    schedule.save(one)
    pushed = in_new_process(PUSH, endpoint, tmp_path / "home", one)
    assert pushed.returncode == 0, pushed.stderr
    address, refused = pushed.stdout.splitlines()
    assert address == f"{endpoint}/user/fast/commit/{'1' * 40}"
    assert refused.startswith("cannot upload the schedule to user/fast: ")
    assert "401" in refused
    assert refused.endswith("log in with: hf auth login")
    files = server.repos["user/fast"]
    assert set(files) >= {SCHEDULE_FILE, HEAT_MAP_FILE, CARD_FILE}
    assert files[SCHEDULE_FILE] == one.read_bytes()
    assert b'from_pretrained("user/fast")' in files[CARD_FILE]

    pulled = in_new_process(PULL, endpoint, tmp_path / "other", two, three)
    assert pulled.returncode == 0, pulled.stderr
    assert two.read_bytes() == three.read_bytes() == one.read_bytes()
    nowhere, empty, unnamed = pulled.stdout.splitlines()
    assert nowhere.startswith(
        "there is no folder user/nowhere, and no schedule.safetensors could be had from a"
    )
    assert "404" in nowhere
    assert "404" in empty
    assert "Repo id must" in unnamed


def test_a_folder_without_a_schedule_is_refused(tmp_path):
    with pytest.raises(
        ScheduleError,
        match=r"there is no schedule file .*schedule.safetensors; schedule.save_pretrained writes",
    ):
        l2c.CacheSchedule.from_pretrained(tmp_path)


def test_a_folder_that_cannot_be_written_is_refused(schedule, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot write .*; choose another folder"):
        schedule.save_pretrained(tmp_path / "file")


def test_loading_executes_nothing(tmp_path):
    """A pickle under the schedule's name is not unpickled."""
    import pickle

    class Bomb:
        def __reduce__(self):
            return (exec, ("raise SystemExit('executed')",))

    (tmp_path / SCHEDULE_FILE).write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(ScheduleError, match="is not a whole schedule file"):
        l2c.CacheSchedule.from_pretrained(tmp_path)


def test_a_file_that_is_missing_is_not_looked_for_on_the_hub(monkeypatch, tmp_path):
    def reached(*_, **__):
        raise AssertionError("the hub was asked")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", reached)
    with pytest.raises(ScheduleError, match=r"there is no schedule file .*none\.safetensors"):
        l2c.CacheSchedule.from_pretrained(tmp_path / "none.safetensors")
