"""The same pack on a Ray cluster, a real one of two cores on this machine."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import shardio
from shardio.testing import digests, make_images

ON_RAY = """
import sys, warnings
import ray, shardio
ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="error")
counts = []
summary = shardio.pack(
    *sys.argv[1:], shards=5, engine="ray", progress=lambda total: counts.append
)
assert sum(counts) == summary.samples, counts
assert ray.is_initialized(), "it is the caller's to end"
try:
    shardio.pack([{"png": b"no"}], sys.argv[2] + "2", shards=1, engine="ray")
except shardio.PackError as error:
    print(error)
print("--", flush=True)

import os, signal
from pathlib import Path
from shardio.packing import engine as ray_engine

class Task(tuple):
    pass

def die_once(task, ticker):
    marker = Path(task[0])
    if not marker.exists():
        marker.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return task[0]

tasks = [Task([f"{sys.argv[2]}.{number}"]) for number in range(2)]
assert ray_engine.RayEngine().run(die_once, tasks, None) == [task[0] for task in tasks]
"""


def run(code: str, *arguments: Path) -> str:
    pytest.importorskip("ray", reason="Ray is not installed")
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_cluster_writes_the_same_bytes_says_what_is_wrong_and_replaces_a_killed_worker(
    tmp_path: Path,
) -> None:
    source = make_images(tmp_path / "in", classes=3, per_class=10)
    shardio.pack(source, tmp_path / "here", shards=5)
    said, _, _ = run(ON_RAY, source, tmp_path / "there").partition("--\n")
    assert digests(tmp_path / "there") == digests(tmp_path / "here")
    assert said.startswith("sample 0 ('000000000'): not a JPEG, PNG, WebP or BMP")
    assert said.count("\n") == 1
    assert {path.name for path in tmp_path.glob("there.*")} == {"there.0", "there.1"}


def test_without_ray_the_way_to_get_it_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = make_images(tmp_path / "in", classes=0, per_class=2)
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(shardio.UsageError, match=r"pip install 'shardio\[ray\]'"):
        shardio.pack(source, tmp_path / "out", shards=1, engine="ray")
    assert not (tmp_path / "out").exists()
