"""Files that are damaged, forged or cut off in the writing: none is believed, and no run is lost through them."""

from __future__ import annotations

import os
import random
import resource
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, redirect_stdout
from functools import partial
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from rich.console import Console
from rich.progress import track

import setpoint
import setpoint.reporting.plots
from setpoint.cli import main
from setpoint.deploy import ArchiveError, read_metadata
from setpoint.recipes.checkpoint import CheckpointError, read_checkpoint, write_checkpoint

sys.path.append(str(Path(__file__).parent.parent / "tests" / "deploy"))

from forging import Net, SlowError, deadline, mutate, readers  # isort: skip - the line above says where it is

COMMAND = ["train", "--epochs", "12", "--checkpoint-every", "7", "--width", "0.5"]
FLIPS, CUTS = 2000, 500
# Of one file, in seconds of the processor; and the memory that all may take beyond what is in use.
PATIENCE, ROOM = 1.0, 1 << 29
KILLS_A_RUN = 10

console = Console()


def run(long: bool) -> dict[str, Any]:
    """All counts of this section."""
    with tempfile.TemporaryDirectory() as folder, patch.dict(os.environ, XDG_CACHE_HOME=f"{folder}/cache"):
        place = Path(folder)
        # Before anything trains in this process: what is forked has threads of its own to start.
        killed = {"runs": killed_runs(place / "runs", 100 if long else 20)}
        killed["saves"] = killed_saves(place / "saves", 100 if long else 20)
        return {
            "killed": killed,
            "damaged": {"saved model": damaged_model(place), "checkpoint": damaged_checkpoint(place)},
            "forged": forged(place / "forged.safetensors", 5000 if long else 2000),
        }


# Damage


def damaged_model(place: Path) -> dict[str, Any]:
    """Bits flipped in, and bytes cut off, a file of `setpoint.save`."""
    path, model, about = place / "model.safetensors", Net(), {"about": "the model"}
    setpoint.save(model, path, metadata=about)
    expected = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    def same() -> bool:
        return equal(setpoint.load(path), expected) and read_metadata(path) == about

    return damaged(path, same, ArchiveError)


def damaged_checkpoint(place: Path) -> dict[str, Any]:
    """The same of a checkpoint of the command."""
    path, model = place / "checkpoint.pt", Net()
    optimizer = torch.optim.Adam(model.parameters())
    model.fc(torch.randn(3, 20)).sum().backward()
    optimizer.step()
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "position": [1, 2, 3]}
    write_checkpoint(path, state)
    expected = read_checkpoint(path)
    return damaged(path, lambda: equal(read_checkpoint(path), expected), CheckpointError)


def damaged(path: Path, same: Callable[[], bool], refusal: type[Exception]) -> dict[str, Any]:
    """How a file is taken after each change of a bit, and each cut."""
    whole, draw = path.read_bytes(), random.Random(0)

    def taken(contents: Iterable[bytes], what: str, count: int) -> dict[str, int]:
        counts = Counter({"tried": 0, "refused": 0, "loaded equal": 0, "loaded wrong": 0, "crashed": 0})
        for content in track(contents, f"{path.name}: {what}", count, console=console):
            path.write_bytes(content)
            counts["tried"] += 1
            try:
                counts["loaded equal" if same() else "loaded wrong"] += 1
            except refusal:
                counts["refused"] += 1
            except Exception:
                counts["crashed"] += 1
        return dict(counts)

    flips = (flipped(whole, draw.randrange(8 * len(whole))) for _ in range(FLIPS))
    cuts = (whole[: draw.randrange(len(whole))] for _ in range(CUTS))
    return {
        "bytes": len(whole),
        "bit flips": taken(flips, "bit flips", FLIPS),
        "truncations": taken(cuts, "truncations", CUTS),
    }


def flipped(content: bytes, place: int) -> bytes:
    damaged = bytearray(content)
    damaged[place // 8] ^= 1 << place % 8
    return bytes(damaged)


def equal(one: Any, other: Any) -> bool:
    """Whether two trees are the same, tensors bit for bit."""
    if isinstance(one, torch.Tensor):
        one, other = one.contiguous(), other.contiguous()
        return (
            one.dtype == other.dtype and one.shape == other.shape and one.numpy().tobytes() == other.numpy().tobytes()
        )
    if isinstance(one, dict):
        return list(one) == list(other) and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(equal(a, b) for a, b in zip(one, other))
    return bool(one == other)


# Lies


def forged(path: Path, count: int) -> dict[str, Any]:
    """Files with changes in their structure and right checksums, read in every way, with little memory."""
    setpoint.save(Net(), path, metadata={"a": "b"})
    valid = path.read_bytes()
    for read in readers(path).values():
        read()
    counts, slowest, before = Counter({"refused": 0, "read": 0, "crashed": 0, "slow": 0}), 0.0, peak()
    with limited(ROOM):
        for case in track(range(count), "forged files", console=console):
            path.write_bytes(mutate(valid, random.Random(case)))
            for read in readers(path).values():
                begun = time.process_time()
                counts[outcome(read)] += 1
                slowest = max(slowest, time.process_time() - begun)
                counts["slow"] += time.process_time() - begun > PATIENCE
    return {
        "files": count,
        **counts,
        "slowest, s": round(slowest, 3),
        "peak memory beyond, MB": (peak() - before) >> 10,
    }


def outcome(read: Callable[[], object]) -> str:
    try:
        with deadline(60):
            read()
    except ArchiveError:
        return "refused"
    except (Exception, SlowError):
        console.print_exception()
        return "crashed"
    return "read"


def peak() -> int:
    """The most memory that this process had, in kilobytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


@contextmanager
def limited(room: int) -> Iterator[None]:
    """Let this process have no more memory than it has now and this many bytes."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + room, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


# Kills


def killed_runs(place: Path, kills: int) -> dict[str, Any]:
    """`setpoint train`, killed at random times and resumed, several times a run; and the same run left alone."""
    place.mkdir()
    # The first trains the dense twin, which is in the cache from then on: the kills are to meet the sparse run.
    for name in ("first", "whole"):
        begun = time.perf_counter()
        if not finished(start(partial(train, place / name))):
            raise RuntimeError("a run that nobody killed has failed")
        lasts = time.perf_counter() - begun
    expected, draw = setpoint.load(place / "whole" / "model.safetensors"), random.Random(0)
    counts = Counter({"kills": 0, "runs": 0, "bit-identical": 0, "lost": 0})
    while counts["kills"] < kills:
        out = place / f"run{counts['runs']}"
        for _ in range(KILLS_A_RUN):
            counts["kills"] += killed(start(partial(train, out)), draw.uniform(0, 0.5 * lasts))
        done = finished(start(partial(train, out)))
        counts["runs"] += 1
        same = done and equal(setpoint.load(out / "model.safetensors"), expected)
        counts["bit-identical" if same else "lost"] += 1
        counts["files left over"] += len(list(out.glob(".*")))
        console.print(f"killed runs: {counts['kills']} of {kills} kills, {dict(counts)}")
    return dict(counts)


def train(out: Path) -> None:
    resume = ["--resume"] if (out / "config.yaml").exists() else []
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):
        main([*COMMAND, "--out", str(out), *resume])


def killed_saves(place: Path, kills: int) -> dict[str, Any]:
    """`setpoint.save` over an earlier file, killed at random times: what is there is one of the two."""
    place.mkdir()
    path, draw = place / "model.safetensors", random.Random(0)
    states = [{"x": torch.full((500_000,), float(n)) + torch.arange(500_000)} for n in range(2)]
    counts = Counter({"kills": 0, "whole": 0, "lost": 0, "in mid-write": 0})

    def save_on() -> None:
        while True:
            for state in states:
                setpoint.save(state, path)

    setpoint.save(states[0], path)
    for _ in track(range(kills), "killed saves", console=console):
        counts["kills"] += killed(start(save_on), draw.uniform(0.02, 0.5))
        counts["whole" if any(equal(setpoint.load(path), state) for state in states) else "lost"] += 1
        parts = list(place.glob(".*.part"))
        counts["in mid-write"] += bool(parts)
        for part in parts:
            part.unlink()
    return dict(counts)


def start(work: Callable[[], None]) -> BaseProcess:
    """A process of its own, which has all imported already."""
    process = get_context("fork").Process(target=work)
    process.start()
    return process


def killed(process: BaseProcess, after: float) -> bool:
    """Kill a process after so many seconds; False if it had ended before."""
    process.join(after)
    process.kill()
    process.join()
    return process.exitcode == -signal.SIGKILL


def finished(process: BaseProcess) -> bool:
    process.join()
    return process.exitcode == 0
