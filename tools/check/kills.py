"""What do SIGKILL and failing system calls leave behind? Packs, workers and trainers are killed.

Packs are killed at random times, lose one of their processes, and are killed or get EIO or ENOSPC
at each write, fsync and rename (needs strace). Right: no shard or index has its final name and
wrong contents, and the same pack, run again, gives the same bytes as one that was not disturbed.

Workers of a DataLoader and processes of a pack are killed while they work. Right: an error, or all
samples, if the worker had finished its part. Wrong: a hang, or silently fewer samples. The error
may be torch's, if it is raised by code of torch and Python alone, for the worker or for the
connection over which the memory of a tensor is requested.

Trainers with workers and threads are killed. Right: after the next trainer has ended, nothing of
the killed one is left in the temporary directory or in /dev/shm (a mount of its own; root).
The idea is that of crash-only software and of ALICE (OSDI 2014), which fails every call.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

from torch.utils.data import DataLoader

import campaign
import children
import shardio
import workers
from shardio.testing import digests, make_images

KILLS, WORKER_KILLS, TRAINER_KILLS = 200, 40, 20
CALLS = {"write": 40, "fsync": 20, "/^rename": 20}
"""System calls (/^rename: all kinds of rename), and how many the small pack makes at most."""
FAULTS = ("signal=KILL", "error=EIO", "error=ENOSPC")
MOST_SECONDS = 60.0  # for a small pack under strace
LOCK = ".shardio-pack"
FORKING = multiprocessing.get_context("fork")


class Packing:
    """Pack with its expected result and duration."""

    def __init__(self, folder: Path, *, images: int, shards: int, jobs: int) -> None:
        self.source = make_images(folder / "images", classes=4, per_class=images, size=60)
        self.shards, self.jobs = shards, jobs
        start = time.monotonic()
        self.run(folder / "whole")
        self.seconds = time.monotonic() - start
        self.expected = digests(folder / "whole")

    def run(self, out: Path) -> None:
        """Pack into a folder."""
        shardio.pack(self.source, out, shards=self.shards, jobs=self.jobs)

    def settle(self, trial: campaign.Trial, out: Path) -> None:
        """Check what an interruption left, run the pack again, and compare."""
        left = found_in(out)
        for name, digest in left.items():
            final = name.endswith((".tar", ".idx")) and not Path(name).name.startswith(".")
            if final and digest != self.expected[name]:
                raise campaign.Wrong("half a file under its final name", name)
        if left and LOCK not in left:
            if left != self.expected:
                raise campaign.Wrong("unlocked, and not whole", sorted(left))
            trial.right("had ended before")
            return
        children.in_child(lambda: self.run(out)).check()
        if not out.exists() or digests(out) != self.expected:
            raise campaign.Wrong("other bytes after a rerun")
        finished = sum(name.endswith(".tar") for name in left if "/" not in name)
        trial.right(f"finished, {'some' if finished else 'no'} shards taken up")


def found_in(out: Path) -> dict[str, str]:
    """Return the digests of the files in a folder, to which a killed pack's processes may write."""
    while out.exists():
        with suppress(FileNotFoundError):  # a temporary file got its name meanwhile
            return digests(out)
    return {}


def kill_pack(packing: Packing, trial: campaign.Trial) -> None:
    out = trial.folder / "out"
    process = FORKING.Process(target=packing.run, args=(out,))
    process.start()
    time.sleep(trial.random.random() * packing.seconds)
    process.kill()
    process.join()
    packing.settle(trial, out)


def kill_process_of_pack(packing: Packing, trial: campaign.Trial) -> None:
    out, moment = trial.folder / "out", trial.random.random()

    def pack() -> None:
        ticks = iter(range(1 << 30))

        def tick(_: int) -> None:
            if next(ticks) == round(moment * 3):
                os.kill(trial.random.choice(children_of(os.getpid())), signal.SIGKILL)

        shardio.pack(packing.source, out, shards=packing.shards, jobs=2, progress=lambda _: tick)

    ended = children.in_child(pack).check()
    if ended.error:
        trial.refused(ended.error)
    packing.settle(trial, out)


def children_of(process: int) -> list[int]:
    found = Path(f"/proc/{process}/task/{process}/children").read_text("ascii").split()
    return [*map(int, found)]


def fail_at_call(
    packing: Packing, fault: str, call: str, number: int, trial: campaign.Trial
) -> None:
    if shutil.which("strace") is None:
        raise campaign.SkipCase("strace is not installed")
    out = trial.folder / "out"
    words = ["strace", "-f", "-o", "/dev/null", "-e", f"inject={call}:{fault}:when={number}"]
    words += [sys.executable, "-m", "shardio", "pack", str(packing.source), str(out), "--json"]
    words += ["--shards", str(packing.shards), "--jobs", str(packing.jobs)]
    try:
        done = subprocess.run(  # noqa: S603  our own command
            words, capture_output=True, text=True, check=False, timeout=MOST_SECONDS
        )
    except subprocess.TimeoutExpired as error:
        raise campaign.Wrong("hang", error) from None
    if "Traceback" in done.stderr:
        raise campaign.Wrong("traceback", done.stderr)
    refused = fault.startswith("error") and out.exists() and done.returncode == 1
    if refused and done.stderr.count("\n") != 1:
        raise campaign.Wrong("more than one line for an error", done.stderr)
    packing.settle(trial, out)


def kill_worker(folder: Path, samples: int, threads: bool, trial: campaign.Trial) -> None:
    at, which = trial.random.randint(0, 6), trial.random.randint(0, 1)

    def train() -> int:
        dataset = shardio.ShardDataset(folder, batch_size=8)
        source = shardio.Loader(dataset, threads=2) if threads else dataset
        loader = DataLoader(source, batch_size=None, num_workers=2)
        got = 0
        try:
            for number, batch in enumerate(loader):
                if number == at:
                    os.kill(children_of(os.getpid())[which], signal.SIGKILL)
                got += int(batch["valid"].sum())
        except (EOFError, ConnectionError) as error:
            if not workers.is_of_torch(error):
                raise campaign.Wrong(f"raises {type(error).__name__}", error) from error
            return -1
        return got

    ended = children.in_child(train)
    if ended.value == -1 or workers.is_of_signal_handler(ended.error, ended.message):
        trial.refused("torch's error")
        return
    replace(ended, output=workers.without_pythons(ended.output)).check()
    if ended.error:
        trial.refused(ended.error)
    elif ended.value != samples:
        raise campaign.Wrong("fewer samples in silence", f"{ended.value} of {samples}")
    else:
        trial.right("everything had been sent")


def train_for_ever(folder: Path) -> None:
    warnings.simplefilter("ignore")
    dataset = shardio.ShardDataset(
        folder, batch_size=32, shuffle=True, transform=shardio.Resize((64, 64))
    )
    loader = DataLoader(dataset, batch_size=None, num_workers=2, persistent_workers=True)
    other = DataLoader(shardio.Loader(dataset, threads=2), batch_size=None, num_workers=1)
    while True:
        for batch in loader:
            batch["image"].float().mean()
        for batch in other:
            batch["image"].float().mean()


def kill_trainer(folder: Path, trial: campaign.Trial) -> None:
    places = [trial.folder / "temporary"]
    places[0].mkdir()

    def kill_and_train_again() -> list[str]:
        tempfile.tempdir = os.environ["TMPDIR"] = str(places[0])
        if os.geteuid() == 0:
            children.mount_privately(Path("/dev/shm"), 64 * campaign.MIB)  # noqa: S108
            places.append(Path("/dev/shm"))  # noqa: S108
        trainer = FORKING.Process(target=train_for_ever, args=(folder,))
        trainer.start()
        time.sleep(0.1 + trial.random.random())
        orphans = children_of(trainer.pid or 0)
        trainer.kill()
        trainer.join()
        until_ended(orphans)
        dataset = shardio.ShardDataset(folder, batch_size=32)
        for _ in DataLoader(dataset, batch_size=None, num_workers=2):
            pass
        del dataset
        left = [path for place in places for path in place.rglob("*")]
        return [str(path) for path in left if not path.is_dir() and "/pymp-" not in str(path)]

    ended = children.in_child(kill_and_train_again)
    ended = replace(ended, output=workers.without_pythons(ended.output)).check()
    if ended.error:
        raise campaign.Wrong(f"the next trainer raises {ended.error}", ended.message)
    if ended.value:  # but for what Python's multiprocessing itself leaves
        raise campaign.Wrong("litter of a killed trainer", ended.value)
    trial.right("nothing is left")


def until_ended(processes: list[int]) -> None:
    """Wait for workers that notice the death of their parent; torch's do so in five seconds.

    Those that torch has wait for ever are killed.
    """
    for process in processes:
        for _ in range(600):
            if not Path(f"/proc/{process}/exe").exists():
                break
            time.sleep(0.05)
        else:
            place = children.stack(process)
            if not workers.waits_for_torch(place):
                raise campaign.Wrong("a worker outlives its trainer", place)
            os.kill(process, signal.SIGKILL)


def cases(folder: Path) -> list[campaign.Case]:
    for part in ("large", "small"):
        (folder / part).mkdir()
    large = Packing(folder / "large", images=40, shards=8, jobs=2)
    small = Packing(folder / "small", images=2, shards=3, jobs=1)
    packed, samples = folder / "large" / "whole", 160
    found: list[tuple[str, Callable[[campaign.Trial], None]]] = []
    found += [(f"pack {number}", partial(kill_pack, large)) for number in range(KILLS)]
    for number in range(WORKER_KILLS):
        found.append((f"process of a pack {number}", partial(kill_process_of_pack, large)))
        for threads in (False, True):
            run = partial(kill_worker, packed, samples, threads)
            found.append((f"worker{' with threads' * threads} {number}", run))
    found += [
        (f"trainer {number}", partial(kill_trainer, packed)) for number in range(TRAINER_KILLS)
    ]
    for fault in FAULTS:
        for call, times in CALLS.items():
            for number in range(1, times + 1):
                run = partial(fail_at_call, small, fault, call, number)
                found.append((f"{fault} at {call} {number}", run))
    return [campaign.Case(name, run) for name, run in found]


if __name__ == "__main__":
    campaign.main(__doc__, cases)
