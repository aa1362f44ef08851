"""Damages and forges every kind of file that l2c reads, reads it, and counts what should never happen.

    python benchmarks/fuzz.py --mutations 5000 --out results/fuzz.json

Each mutation changes a good file: bytes flipped, cut, repeated or inserted; or, in its JSON or pickle, one value taken
away or replaced by one of another type, out of range, deep or endless. What was made of it is then read as a command
reads it. Right is a result, or one of l2c's own sentences. Counted are tracebacks, readings longer than 5 s or over
1 GB more memory, and text of a file beside the folder in what came out. The same seed makes the same mutations.
"""

from __future__ import annotations

import argparse
import copy
import io
import json
import random
import resource
import shutil
import signal
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import safe_open

import l2c
from l2c.cli.main import run
from l2c.compare.config import CompareConfig, preset_names
from l2c.compare.plan import plan
from l2c.documents import read_document
from l2c.errors import ConfigError, L2CError
from l2c.hosts.pipeline.conditions import read_prompts
from l2c.learning.checkpoint import Checkpoint
from l2c.models import load_model, save_model
from l2c.records import Record, describe_device
from l2c.report.compare_page import compare_page
from l2c.report.comparison_folder import read_comparison
from l2c.schedule.cost import CostTable
from l2c.testing import tiny_dit

MOST_S, MOST_BYTES = 5.0, 10**9
SECRET = "what no page may show"
STORED = Path(__file__).resolve().parents[1] / "results" / "compare-embedded-dit"
VARIANTS = ("ddim-50--full", "ddim-50--deepcache--b0.2")
VALUES: tuple[Any, ...] = (
    None, True, -1, 0, 1, 3, 10**9, 2**63, 10**30, 0.5, -1e308, float("nan"), float("inf"), "", "text", "[/x]",
    "\x1b[2J",    "../../secret.txt", "/dev/zero", "a\0b", [], {}, [None], ["a", 1], [[]], {"": None}, [0.0] * 50_000,
)  # fmt: skip


class TooLongError(Exception):
    """A reading took longer than it may."""


@dataclass(frozen=True)
class Kind:
    """A kind of file: a good one, and how a command reads it.

    Attributes:
        good: Its bytes.
        suffix: Of its name.
        read: Reads a file and does with it what a command does; returns what is shown.
        parts: Takes a good file apart into plain data and back, where values in it can be changed.
    """

    good: bytes
    suffix: str
    read: Callable[[Path], object]
    parts: tuple[Callable[[bytes], Any], Callable[[Any], bytes]] | None = None


def _json_parts() -> tuple[Callable[[bytes], Any], Callable[[Any], bytes]]:
    return json.loads, lambda data: json.dumps(data).encode()


def _pickle_parts() -> tuple[Callable[[bytes], Any], Callable[[Any], bytes]]:
    def pack(data: Any) -> bytes:
        buffer = io.BytesIO()
        torch.save(data, buffer)
        return buffer.getvalue()

    return lambda good: torch.load(io.BytesIO(good), weights_only=True), pack


def _header_parts(folder: Path) -> tuple[Callable[[bytes], Any], Callable[[Any], bytes]]:
    """Metadata of a safetensors file as data; its tensors stay."""
    path = folder / "parts.safetensors"

    def take(good: bytes) -> Any:
        path.write_bytes(good)
        with safe_open(path, framework="pt") as file:
            return {key: json.loads(text) for key, text in file.metadata().items()}

    def pack(data: Any) -> bytes:
        texts = data if isinstance(data, dict) else {"l2c.cache-schedule": data}
        return safetensors.torch.save(
            safetensors.torch.load_file(path), {str(key): json.dumps(value) for key, value in texts.items()}
        )

    return take, pack


def kinds(folder: Path) -> dict[str, Kind]:
    """Every kind of file, with good ones made in a folder."""
    model = tiny_dit()
    schedule = l2c.methods.taylorseer(model, steps=6, every=2)
    names = ("s.safetensors", "f.safetensors", "m.safetensors", "c.json", "checkpoint")
    paths = {name: folder / name for name in names}
    schedule.save(paths["s.safetensors"])
    l2c.ScheduleFamily([schedule, l2c.methods.interval(model, steps=6, every=3)]).save(paths["f.safetensors"])
    save_model(model, paths["m.safetensors"])
    costs = CostTable.macs(schedule.layers).to_json()
    Record("profile", {"guidance": None}, results={"costs": costs}, device=describe_device("cpu")).save(
        paths["c.json"]
    )
    checkpoint = Checkpoint(paths["checkpoint"], {"seed": 0}, 0.0)
    learned = {"parameters": [torch.ones(20)], "optimizer": {"state": {}}}
    state = {"kept": {"a": torch.ones(3)}, "stage": "", "iteration": 3, "learned": learned, "aside": {}}
    checkpoint.save(state)
    rows = {f"{index}.prob": torch.zeros(56) for index in range(50)}
    router = _pickle_parts()[1]({"routers": rows, "args": None})
    weights = _pickle_parts()[1](model.state_dict())
    compared = folder / "compared"
    for part in ("records", "pictures", "timing"):
        (compared / part).mkdir(parents=True)
    for name in VARIANTS:
        shutil.copy(STORED / "records" / f"{name}.json", compared / "records")
    (folder / "secret.txt").write_text(SECRET)

    def command(*words: str) -> Callable[[Path], object]:
        def read(path: Path) -> object:
            out, err = io.StringIO(), io.StringIO()
            with redirect_stdout(out), redirect_stderr(err):
                code = run([word.format(path=path) for word in words])
            shown = out.getvalue() + err.getvalue()
            if code and SECRET not in shown:
                raise L2CError(shown)
            return shown

        return read

    def resume(path: Path) -> object:
        return Checkpoint(path, {"seed": 0}, 0.0).load()

    def read_costs(path: Path) -> object:
        found = Record.load(path).results.get("costs")
        return CostTable.from_json(found)

    def compare(path: Path) -> object:
        shutil.copy(path, compared / "records" / f"{VARIANTS[1]}.json")
        data = read_comparison(compared)
        return compare_page(data), *data.problems

    def configured(path: Path) -> object:
        return [variant.id for variant in plan(CompareConfig.load(path))]

    def configured_json(path: Path) -> object:
        return plan(CompareConfig.from_plain(read_document(path, dict[str, Any], ConfigError)))

    preset = (Path(l2c.__file__).parent / "compare" / "presets" / "smoke.toml").read_bytes()
    plain = json.dumps(_plain_preset()).encode()
    record = (STORED / "records" / f"{VARIANTS[1]}.json").read_bytes()
    header = _header_parts(folder)
    return {
        "schedule": Kind(paths["s.safetensors"].read_bytes(), ".safetensors", command("inspect", "{path}"), header),
        "schedule as JSON": Kind(
            paths["s.safetensors"].read_bytes(), ".safetensors", command("inspect", "{path}", "--json"), header
        ),
        "family": Kind(paths["f.safetensors"].read_bytes(), ".safetensors", command("inspect", "{path}"), header),
        "model": Kind(paths["m.safetensors"].read_bytes(), ".safetensors", load_model, header),
        "weights": Kind(weights, ".pt", load_model, _pickle_parts()),
        "router": Kind(
            router, ".pt", lambda path: l2c.import_router(path, model="dit-xl-2-256"), _pickle_parts()
        ),
        "record": Kind(record, ".json", compare, _json_parts()),
        "costs": Kind(paths["c.json"].read_bytes(), ".json", read_costs, _json_parts()),
        "comparison": Kind(preset, ".toml", configured),
        "comparison as JSON": Kind(plain, ".json", configured_json, _json_parts()),
        "checkpoint": Kind(
            paths["checkpoint"].read_bytes(), "", resume, _pickle_parts()
        ),
        "prompts": Kind(b"a cat\nein Hund\n", ".txt", read_prompts),
    }  # fmt: skip


def _plain_preset() -> dict[str, Any]:
    from l2c.compare.config import to_plain

    assert "smoke" in preset_names()
    return to_plain(CompareConfig.preset("smoke"))


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where there are values in plain data."""
    for key, part in (
        value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    ):
        yield (*path, key)
        yield from places(part, (*path, key))


def forge(data: Any, draw: random.Random) -> Any:
    """Plain data with one or two values changed or taken away, or a tensor of another shape or kind."""
    data = copy.deepcopy(data)
    for _ in range(draw.choice((1, 1, 2))):
        if not (found := list(places(data))):
            break
        *above, last = draw.choice(found)
        inner = data
        for key in above:
            inner = inner[key]
        if draw.random() < 0.2:
            del inner[last]
        elif isinstance(inner[last], torch.Tensor):
            inner[last] = draw.choice(TENSORS)(inner[last])
        else:
            inner[last] = _deep(3000) if draw.random() < 0.03 else copy.deepcopy(draw.choice(VALUES))
    return data


TENSORS: tuple[Callable[[torch.Tensor], Any], ...] = (
    lambda t: torch.zeros(1).expand(10**9),
    lambda t: torch.full_like(t, torch.nan) if t.is_floating_point() else t,
    lambda t: t.to(torch.int64),
    lambda t: t.to(torch.complex64),
    lambda t: t.to("meta"),
    lambda t: t[:0],
    lambda t: t.flatten()[:1],
    lambda t: t.unsqueeze(0),
    lambda t: torch.sparse_coo_tensor(size=(10**9,)),
    lambda t: "no tensor",
    lambda t: None,
)


def _deep(levels: int) -> Any:
    value: Any = 0
    for _ in range(min(levels, 400)):  # as deep as json and pickle can write
        value = [value]
    return value


def damage(good: bytes, draw: random.Random) -> bytes:
    """Bytes flipped, cut, inserted, repeated or set to zero."""
    changed, place = (
        bytearray(good),
        draw.randrange(len(good) if draw.random() < 0.5 else min(len(good), 2000)),
    )
    kind = draw.randrange(5)
    if kind == 0:
        for _ in range(draw.randint(1, 8)):
            changed[draw.randrange(len(changed))] ^= 1 << draw.randrange(8)
    elif kind == 1:
        del changed[place:]
    elif kind == 2:
        changed[place:place] = draw.randbytes(draw.randint(1, 40))
    elif kind == 3:
        changed[place:place] = changed[max(0, place - 50) : place]
    else:
        changed[place : place + 8] = bytes(8)
    return bytes(changed)


@contextmanager
def at_most(seconds: float) -> Iterator[None]:
    """Ends what takes longer."""

    def end(*_: object) -> None:
        raise TooLongError

    before = signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def fuzz(
    mutations: int, seed: int = 0, only: tuple[str, ...] = (), limit_s: float = MOST_S, minutes: float = 1e9
) -> dict[str, Any]:
    """Reads so many damaged and forged files; returns what was counted, in plain data.

    Args:
        mutations: How many files.
        seed: Of what is drawn.
        only: Kinds of files; all by default.
        limit_s: Processor seconds that a reading may take.
        minutes: After which no further file is begun.
    """
    draw, counts = random.Random(seed), Counter[str]()
    by_kind: dict[str, Counter[str]] = {}
    faults: list[dict[str, str]] = []
    longest_s, began = 0.0, time.perf_counter()
    with tempfile.TemporaryDirectory() as name, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        folder = Path(name)
        every = {kind: one for kind, one in kinds(folder).items() if not only or kind in only}
        for one in every.values():
            path = folder / f"good{one.suffix}"
            path.write_bytes(one.good)
            one.read(path)  # what is imported once takes its time here
        memory = _peak_bytes()
        for number in range(mutations):
            if time.perf_counter() - began > 60 * minutes:
                break
            kind = list(every)[number % len(every)]
            one = every[kind]
            forged = one.parts is not None and draw.random() < 0.7
            try:
                data = one.parts[1](forge(one.parts[0](one.good), draw)) if forged and one.parts else None
            except (TypeError, ValueError, OverflowError, RuntimeError, NotImplementedError, RecursionError):
                data = None  # what cannot be written need not be read
            path = folder / f"mutated{one.suffix}"
            path.write_bytes(damage(one.good, draw) if data is None else data)
            started, outcome, what = time.process_time(), "read", ""
            try:
                with at_most(10 * limit_s):
                    if SECRET in str(one.read(path)):
                        outcome = "leak"
            except L2CError:
                outcome = "refused"
            except TooLongError:
                outcome = "hang"
            except Exception:
                outcome, what = "traceback", traceback.format_exc()
            taken = time.process_time() - started
            longest_s = max(longest_s, taken)
            if taken > limit_s:
                outcome = "hang"
            if _peak_bytes() > memory + MOST_BYTES:
                outcome, memory = "memory", _peak_bytes()
            counts[outcome] += 1
            by_kind.setdefault(kind, Counter())[outcome] += 1
            if outcome not in ("read", "refused"):
                faults.append(
                    {"kind": kind, "number": str(number), "outcome": outcome, "traceback": what[-1500:]}
                )
    return {
        "mutations": sum(counts.values()),
        "seed": seed,
        **{name: counts[name] for name in ("read", "refused", "traceback", "hang", "memory", "leak")},
        "by_kind": {kind: dict(found) for kind, found in by_kind.items()},
        "longest_s": round(longest_s, 2),
        "seconds": round(time.perf_counter() - began, 1),
        "faults": faults,
    }


def _peak_bytes() -> int:
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def main() -> int:
    """Fuzzes and writes the figures; 1 if there was a fault."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--mutations", type=int, default=5000)
    parser.add_argument("--minutes", type=float, default=1e9, help="end by then, with what there is")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kind", action="append", default=[], help="of files; all by default")
    parser.add_argument("--out", type=Path, help="a record of the figures (.json)")
    options = parser.parse_args()
    found = fuzz(options.mutations, options.seed, tuple(options.kind), minutes=options.minutes)
    faults = found.pop("faults")
    if options.out is not None:
        config = {"mutations": options.mutations, "kinds": options.kind}
        record = Record(
            "fuzz",
            config,
            (options.seed,),
            results={**found, "faults": faults[:20]},
            device=describe_device("cpu"),
        )
        record.save(options.out)
    print(json.dumps(found, indent=2))
    for fault in faults[:10]:
        print(fault["kind"], fault["number"], fault["outcome"], fault["traceback"], sep="\n")
    return 1 if faults else 0


if __name__ == "__main__":
    raise SystemExit(main())
