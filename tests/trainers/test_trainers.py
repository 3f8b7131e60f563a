"""Trainers deliver each sample once an epoch on two ranks, or an error names the way out.

`ways.py` reads 50 samples in batches of 4 under each trainer in every way that users would, and the
name of a way says what it must give. `make test-trainers` has all trainers; elsewhere, those that
are not installed are skipped.
"""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from shardio.testing import make_shard

ROOT = Path(__file__).parents[2]
SAMPLES = [*range(50)]
PATIENCE = 150  # seconds; a tenth is enough on an idle machine
WAY_OUT = r"UsageError: accelerate divides among the ranks .* give prepare\(\) a shardio.Loader, or"
Found = dict[str, list[Any]]


@pytest.fixture(scope="module")
def launch(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Found]:
    """Runs a function of ways.py on two ranks, once, and returns what each found by way."""
    folder = tmp_path_factory.mktemp("trainers")
    members = {f"{i:02}": {"cls": b"%d" % i, "txt": b"%d" % i} for i in SAMPLES}
    shard, known = make_shard(folder / "a.tar", members), dict[str, Found]()

    def run(trainer: str) -> Found:
        package = trainer.partition("_")[0]
        if not importlib.util.find_spec(package):
            pytest.skip(f"{package} is not installed; `make test-trainers` has it")
        if trainer not in known:
            out = folder / trainer
            out.mkdir()
            _run_ranks(trainer, shard, out)
            known[trainer] = _read(out)
        return known[trainer]

    return run


def _run_ranks(trainer: str, shard: Path, out: Path) -> None:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    own = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    own |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    ranks = [{"RANK": str(r), "LOCAL_RANK": str(r), "WORLD_SIZE": "2"} for r in range(2)]
    if trainer.endswith(("_launches", "_forks")):  # it starts the other ranks itself
        ranks = [{}]
    script = Path(__file__).with_name("ways.py")
    command = [sys.executable, *map(str, [script, trainer, shard, out])]
    log = out / "log"
    with log.open("w") as stream:
        running = [
            subprocess.Popen(
                command,
                env={**os.environ, **own, **rank},
                stdout=stream,
                stderr=stream,
                start_new_session=True,  # so that its workers are found, too
            )
            for rank in ranks
        ]
    try:
        until = time.monotonic() + PATIENCE
        while (ended := _ended(running)) is None and time.monotonic() < until:
            time.sleep(0.05)
        if ended is None:
            _signal(running, signal.SIGUSR1)  # each process writes its stacks into the log
            time.sleep(2)
    finally:
        _signal(running, signal.SIGKILL)
        for process in running:
            process.wait()
    results = "".join(file.read_text() for file in sorted(out.glob("[01]")))
    assert ended, f"{log.read_text()[-20_000:]}\n{results}"


def _ended(running: list[subprocess.Popen[bytes]]) -> bool | None:
    """Return whether all ranks have ended well; None while they run, and none has failed."""
    codes = [process.poll() for process in running]
    return False if any(codes) else None if None in codes else True


def _signal(running: list[subprocess.Popen[bytes]], number: signal.Signals) -> None:
    for process in running:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, number)


def _read(out: Path) -> Found:
    found: Found = {}
    for rank in range(2):
        for line in (out / str(rank)).read_text().splitlines():
            name, result = json.loads(line)
            found.setdefault(name, []).append(result)
    return found


def check(found: Found) -> None:
    """Check that each way gave what its name says."""
    for name, ranks in found.items():
        expected = name.partition(":")[0]
        assert len(ranks) == 2, name
        if expected == "refused":
            assert ranks[0] == ranks[1], name
            assert isinstance(ranks[0], str), name
            assert ranks[0].startswith("UsageError: accelerate divides among the ranks"), name
            continue
        assert all(isinstance(result, list) for result in ranks), (name, ranks)
        assert all(one != other for result in ranks for one, other in combinations(result, 2)), name
        for one, other in zip(*ranks, strict=True):
            if expected == "everywhere":
                assert sorted(one) == sorted(other) == SAMPLES, name
            elif expected == "whole":
                assert sorted([*one, *other]) == SAMPLES, name
                assert abs(len(one) - len(other)) <= 4, name
            else:  # accelerate fills its last batch with samples of the first
                assert expected == "repeats", name
                counts = Counter([*one, *other])
                assert [*sorted(counts)] == SAMPLES, name
                assert counts.total() < len(SAMPLES) + 8, name


def chosen(found: Found, *parts: str) -> Found:
    """Return the ways whose name has all parts."""
    return {name: ranks for name, ranks in found.items() if all(part in name for part in parts)}


def test_accelerate_delivers_each_sample_or_is_refused(launch: Callable[[str], Found]) -> None:
    """accelerate#3034: the state of what rank 0 dispatches was ahead of what the ranks had."""
    found = launch("accelerate")
    assert len(found) == 21
    check(found)


@pytest.mark.parametrize("kind", ["samples", "batches"])
def test_a_double_division_is_no_silent_loss(launch: Callable[[str], Found], kind: str) -> None:
    """accelerate#3547, accelerate#4075: what each rank had divided already was divided again."""
    found = chosen(launch("accelerate"), f"refused: {kind}")
    assert len(found) >= 4
    check(found)


def test_ignite_delivers_each_sample_and_resumes(launch: Callable[[str], Found]) -> None:
    found = launch("ignite")
    assert len(found) == 5
    check(found)


def test_lightning_delivers_each_sample_and_resumes(launch: Callable[[str], Found]) -> None:
    """litData#775: the state of the loader was not in Lightning's checkpoint."""
    found = launch("lightning")
    assert len(found) == 7
    check(found)


@pytest.mark.parametrize(("trainer", "ways"), [("lightning_launches", 2), ("lightning_forks", 1)])
def test_a_dataset_made_before_lightning_launches_finds_its_rank(
    launch: Callable[[str], Found], trainer: str, ways: int
) -> None:
    """streaming#767: in a notebook Lightning forks, and sets neither RANK nor WORLD_SIZE.

    pytorch-lightning#20232: elsewhere it sets WORLD_SIZE for the other rank alone, and after fit
    the main process has WORLD_SIZE=1.
    """
    found = launch(trainer)
    assert len(found) == ways
    check(found)


def test_no_epoch_is_short_after_torchdata_resumes(launch: Callable[[str], Found]) -> None:
    """datasets#7447: later epochs of persistent workers were what was left of the first."""
    found = launch("torchdata")
    assert len(found) == 3
    check(found)


def test_transformers_delivers_each_sample_or_is_refused(launch: Callable[[str], Found]) -> None:
    """transformers#26541: Trainer counted no epochs, and each had the order of the first."""
    found = launch("transformers")
    assert len(found) == 12
    check(found)


def test_columns_are_removed_after_map(launch: Callable[[str], Found]) -> None:
    """transformers#22119: Trainer removed the columns that a transform was to read."""
    found = chosen(launch("transformers"), "mapped before columns are removed")
    assert found
    check(found)
