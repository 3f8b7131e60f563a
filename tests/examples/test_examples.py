"""Each example runs, says what its first line promises, and stays short enough to read."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*.py"))


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.name)
def test_an_example_has_at_most_a_hundred_lines(example: Path) -> None:
    assert len(example.read_text("utf-8").splitlines()) <= 100


def test_the_training_example_learns_to_read_digits() -> None:
    example = next(path for path in EXAMPLES if path.name == "train.py")
    command = [sys.executable, "-W", "error", str(example)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=170)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    form = re.compile(
        r"epoch +\d+: loss [\d.]+, true class [\d.]+%, held-out accuracy ([\d.]+)%, "
        r"[\d,]+ img/s, \d+% waiting for data"
    )
    matches = [form.fullmatch(line) for line in lines]
    assert all(matches)
    assert matches[-1] is not None
    assert float(matches[-1][1]) >= 97
