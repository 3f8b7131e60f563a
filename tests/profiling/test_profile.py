from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import shardio
from shardio.profiling.memory import tree_memory
from shardio.profiling.profile import Settings, profile


def run(*arguments: object) -> Any:
    command = [sys.executable, "-m", "shardio", "profile", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_profile_measures_each_number_of_workers(packed: Path, images: Path) -> None:
    done = run(packed, "--workers", "0,2", "--seconds", "0.5", "--size", "16", "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert (result["samples"], result["shards"]) == (600, 8)
    assert [row["workers"] for row in result["runs"]] == [0, 2]
    alone, two = result["runs"]
    stored = np.mean([path.stat().st_size for path in images.rglob("*.png")])
    for row in result["runs"]:
        assert row["images_per_second"] > 0
        assert row["first_batch_seconds"] > 0
        assert row["peak_memory"] > 20e6
        per_image = row["megabytes_per_second"] * 1e6 / row["images_per_second"]
        assert per_image == pytest.approx(stored + len("0"))
    assert two["stages"] is None
    microseconds = sum(alone["stages"].values())
    assert min(alone["stages"].values()) > 0
    assert 1e6 / microseconds == pytest.approx(alone["images_per_second"], rel=0.25)


def test_profile_prints_a_table_that_fits_a_terminal(packed: Path) -> None:
    done = run(packed, "--workers", "0", "--seconds", "0.2", "--size", "16")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert max(map(len, lines)) <= 80
    assert (
        lines[0].endswith("img/s with 0 workers is the fastest of 1 on 2 cores.")
        or "cores" in lines[0]
    )
    for word in ("workers", "img/s", "MB/s", "first batch", "peak memory", "read", "decode",
                 "transform", "batch", "total", "600 samples in 8 shards"):  # fmt: skip
        assert word in done.stdout
    assert "\x1b" not in done.stdout


def test_a_broken_shard_is_named(packed: Path, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    (folder / "index").mkdir(parents=True)
    for path in packed.rglob("*"):
        if path.is_file():
            (folder / path.relative_to(packed)).write_bytes(path.read_bytes())
    (folder / "shard-000000.tar").write_bytes(b"")
    with pytest.raises(shardio.ShardioError, match=r"shard-000000\.tar: the shard has 0 bytes"):
        profile(Settings(source=str(folder), seconds=0.1), workers=[0])


def test_memory_counts_child_processes() -> None:
    hold = "import sys; block = bytearray(b'x') * {} ; print(flush=True); sys.stdin.read()"
    before = tree_memory(os.getpid())
    with subprocess.Popen(
        [sys.executable, "-c", hold.format(64 << 20)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        after = tree_memory(os.getpid())
        process.communicate()
    assert before is not None
    assert after is not None
    assert (64 << 20) < after - before < (64 << 20) + 40e6
