"""Schedules in folders and on a hub, through huggingface_hub; nothing that is loaded is ever executed."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from l2c.documents import existing
from l2c.errors import L2CError, OutputError, ScheduleError
from l2c.files import atomic_write

SCHEDULE_FILE = "schedule.safetensors"
HEAT_MAP_FILE = "schedule.png"
CARD_FILE = "README.md"


def save_folder(
    summary: dict[str, Any], save: Callable[[Path], None], folder: str | Path, repo_id: str = ""
) -> Path:
    """Writes a schedule, its heat map and its card into a folder.

    Args:
        summary: Of the schedule.
        save: Writes the schedule to a file.
        folder: Where to write; it is made if it is not there.
        repo_id: Name on the hub, for the card.

    Raises:
        OutputError: If a file cannot be written.
    """
    from l2c.report.card import schedule_card
    from l2c.report.figures import heat_map

    folder = Path(folder)
    card = schedule_card(
        summary, {"schedule": SCHEDULE_FILE, "heat_map": HEAT_MAP_FILE}, repo_id or folder.name
    )
    advice = "choose another folder"
    atomic_write(folder / HEAT_MAP_FILE, heat_map(summary), advice)
    atomic_write(folder / CARD_FILE, card.encode(), advice)
    save(folder / SCHEDULE_FILE)
    return folder


def push(
    summary: dict[str, Any],
    save: Callable[[Path], None],
    repo_id: str,
    message: str,
    private: bool | None,
    token: str | bool | None,
    pr: bool,
) -> str:
    """Uploads a schedule with its card in one commit; makes the repository if it is not there.

    Returns:
        Address of the commit.

    Raises:
        OutputError: If the hub refuses or cannot be reached.
    """
    from huggingface_hub import HfApi

    api = HfApi(token=token)
    with tempfile.TemporaryDirectory() as folder:
        save_folder(summary, save, folder, repo_id)
        advice = "check the name, and log in with: hf auth login"
        with _told_by_hub(OutputError, f"cannot upload the schedule to {repo_id}: {{said}}; {advice}"):
            api.create_repo(repo_id, private=private, exist_ok=True)
            commit = api.upload_folder(
                repo_id=repo_id, folder_path=folder, commit_message=message, create_pr=pr
            )
    return str(commit.commit_url)


def fetch(name: str | Path, revision: str | None, token: str | bool | None, local_files_only: bool) -> Path:
    """Path of the schedule file of a folder or a repository on the hub, downloaded if it must be.

    Raises:
        ScheduleError: If there is none, or the hub cannot be reached.
    """
    path = Path(name)
    if path.is_file():
        return path
    if path.is_dir():
        advice = "schedule.save_pretrained writes one"
        return existing(path / SCHEDULE_FILE, "schedule file", advice, ScheduleError)
    if path.suffix == ".safetensors":  # of a file, not of a repository: no need to ask the hub for it
        existing(path, "schedule file", "l2c learn --out makes one", ScheduleError)
    from huggingface_hub import hf_hub_download

    options: dict[str, Any] = {"revision": revision, "token": token, "local_files_only": local_files_only}
    missing = f"there is no folder {name}, and no {SCHEDULE_FILE} could be had from a repository of that name: {{said}}"
    with _told_by_hub(ScheduleError, missing):
        return Path(hf_hub_download(str(name), SCHEDULE_FILE, **options))


@contextmanager
def _told_by_hub(kind: type[L2CError], sentence: str) -> Iterator[None]:
    """Tells what a hub or the network says in a sentence of ours; faults of the program stay what they are."""
    try:
        yield
    except Exception as error:
        if (said := hub_problem(error)) is None:
            raise
        raise kind(sentence.replace("{said}", said)) from error


def hub_problem(error: Exception) -> str | None:
    """The first line of what a hub, the network or the file system says; None for faults of the program."""
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    known = (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError)
    names = {cls.__module__.partition(".")[0] for cls in type(error).__mro__}
    if not isinstance(error, known) and not names & {"httpx", "httpx2", "httpcore", "requests"}:
        return None
    return " ".join(str(error).split("\n\n")[0].split()).rstrip(".") or type(error).__name__
