"""A thousand shards with ten million samples: opening is light, and epochs do not add up."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[2] / "tools" / "bench" / "scale.py"


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="memory is Linux's to say")
def test_ten_million_samples_cost_little_memory_that_does_not_grow() -> None:
    command = [sys.executable, str(BENCH), "--json", "--once"]
    done = subprocess.run(command, capture_output=True, check=True)
    found = json.loads(done.stdout)
    assert found.keys() == {"windows", "full"}
    for figures in found.values():
        assert figures["added_mb"] < 50
        assert figures["grown_mb"] < 5
