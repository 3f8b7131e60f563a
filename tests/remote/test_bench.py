from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from servers import Nginx

BENCH = Path(__file__).parents[2] / "tools" / "bench" / "remote.py"


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
    reached = {row[0]: row[3] for row in rows if len(row) >= 4}
    requests = [row for what, row in reached.items() if what.startswith("GETs of whole shards")]
    assert requests == ["yes", "yes"]
    half = [row for what, row in reached.items() if what.startswith("share of bytes")]
    assert half == ["yes"]
    assert not [*place.glob("run-*")]  # what was fetched is gone
