"""Setting up a checkout shows that it goes on, and a release is held against the changelog."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tools.release_check import faults_of

ROOT = Path(__file__).parents[2]
PIP = """#!/bin/sh
case "$*" in *--quiet*) exit ;; *install*) echo "Collecting torch"; sleep 19; exit ;; esac
mkdir -p "$3/bin" && cp "$0" "$3/bin/python"
"""


def test_setting_up_shows_what_is_fetched_and_the_seconds(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text(PIP)
    python.chmod(0o755)
    ready = tmp_path / "venv/.ready"
    command = ["make", str(ready), f"VENV={tmp_path / 'venv'}", f"PYTHON={python}"]
    quick = tmp_path / "bin/sleep"  # ten times as fast
    quick.parent.mkdir()
    quick.write_text(f'#!/bin/sh\nexec {shutil.which("sleep")} "${{1%?}}.${{1#?}}"\n')
    quick.chmod(0o755)
    path = {**os.environ, "PATH": f"{quick.parent}:{os.environ['PATH']}"}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, env=path)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[2] == "Collecting torch"
    assert re.search(r"\.\.\. \d+ s$", lines[3])
    assert lines[-1].strip().endswith(" s)")
    assert ready.exists()


@pytest.mark.parametrize(
    ("changelog", "faults"),
    [
        ("## Unreleased\n\n## 1.2.0 - 2026-01-01\n\n- a\n\n## 1.1.0\n", []),
        ("## [1.2.0] - 2026-01-01\n\n- a\n", []),
        ("## Unreleased\n- b\n## 1.2.0\n", ['"Unreleased" has entries']),
        ("## 1.3.0\n## 1.2.0\n", ["the newest version is 1.3.0, not 1.2.0"]),
        ("## Unreleased\n- a\n", ["newest version is none", '"Unreleased" has entries']),
    ],
)
def test_a_version_is_released_as_the_changelog_says(changelog: str, faults: list[str]) -> None:
    found = faults_of("1.2.0", "# Changelog\n\n" + changelog)
    assert len(found) == len(faults)
    assert all(part in text for part, text in zip(faults, found, strict=True))
