from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from servers import Nginx

BENCH = Path(__file__).parents[2] / "tools" / "bench" / "remote.py"


@pytest.mark.timeout(600)
def test_each_shard_is_fetched_once_and_half_a_cache_serves_half_of_the_bytes(
    serve: Callable[..., Nginx], tmp_path: Path
) -> None:
    serve(folder=tmp_path)  # skips the test where there is no server
    place, page = tmp_path / "cache", tmp_path / "page.md"
    command = [sys.executable, str(BENCH), "--quick", "--only", "bytes,half,requests"]
    command += ["--cache", str(place), "--markdown", str(page)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    text = page.read_text("utf-8")
    assert text in done.stdout
    assert "Absent: " not in text, text
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    measured = {row[0]: float(row[1].split()[0]) for row in rows if row[2].startswith("at ")}
    requests = [
        found for what, found in measured.items() if what.startswith("GETs of whole shards")
    ]
    assert requests == [1, 1]
    half = [found for what, found in measured.items() if what.startswith("share of bytes")]
    assert len(half) == 3
    # The shards differ in size. Of the smaller ones a batch is a whole window, so that no rate is
    # expected; with the least recently used it would be 0.15.
    assert min(half[1:]) > 0.4
    assert not [*place.glob("run-*")]  # what was fetched is gone
