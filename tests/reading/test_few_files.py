"""Reading where the system lets a process open few files."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import shardio

resource = pytest.importorskip("resource")

LOOPS = """
import resource, sys
from torch.utils.data import DataLoader
import shardio
def main():
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
    wide = shardio.ShardDataset(sys.argv[1], batch_size=20, shuffle=True, window=200)
    mix = shardio.Mix([wide.replace(seed=seed) for seed in range(8)], weights=[1 / 8] * 8)
    loops = [
        wide,
        shardio.Loader(wide.replace(), threads=16),
        DataLoader(wide.replace(), batch_size=None, num_workers=2),
        mix,
    ]
    open_loops = [iter(wide.replace()) for _ in range(8)]
    for loop in open_loops:
        next(loop)
    for loop in loops:
        print(sum(len(batch["valid"]) for batch in loop))
main()
"""


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("many") / "out"
    samples = ({"txt": f"{number}", "cls": number % 3} for number in range(200))
    shardio.pack(samples, out, shards=200)
    return out


def test_many_shards_threads_workers_and_loops_need_few_files(many: Path) -> None:
    command = [sys.executable, "-c", LOOPS, str(many)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-600:]
    alone, threads, workers, mixed = map(int, done.stdout.split())
    assert (alone, threads, workers) == (200, 200, 200)
    assert mixed > 1500


def test_no_files_left_is_one_sentence_with_the_way_out(many: Path) -> None:
    command = [sys.executable, "-m", "shardio", "verify", str(many)]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (9, 9)),
    )
    assert done.returncode == 1
    assert "the limit on open files (9 for one process) is reached; raise it" in done.stderr
    assert "Traceback" not in done.stderr
