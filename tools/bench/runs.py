"""Starting the runs: a process each, its memory watched, the slow mount made anew for each."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from shardio.profiling.memory import tree_memory

HERE = Path(__file__).parent
SECONDS_BETWEEN_SAMPLES = 0.05
SECONDS_TO_MOUNT = 20.0
LONGEST_RUN = 1800.0


class RunError(Exception):
    """A run failed; the message is the last line of its error."""


def start_child(**request: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(  # noqa: S603
        [sys.executable, str(HERE / "child.py"), json.dumps(request)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(child: subprocess.Popen[str]) -> dict[str, Any]:
    """Wait for a child, and take what it printed last.

    Raises:
        RunError: it failed or took too long.
    """
    try:
        out, error = child.communicate(timeout=LONGEST_RUN)
    except subprocess.TimeoutExpired:
        child.kill()
        child.communicate()
        raise RunError(f"it took more than {LONGEST_RUN:.0f} s") from None
    if child.returncode:
        lines = [line for line in error.splitlines() if line.strip()]
        raise RunError(lines[-1] if lines else f"it ended with code {child.returncode}")
    result: dict[str, Any] = json.loads(out.splitlines()[-1])
    return result


def run_child(**request: Any) -> dict[str, Any]:
    return finish(start_child(**request))


def peak_memory(**request: Any) -> int:
    """The most bytes that a run and its children held at once, page cache left out."""
    child, peak = start_child(**request), 0
    while child.poll() is None:
        peak = max(peak, tree_memory(child.pid) or 0)
        time.sleep(SECONDS_BETWEEN_SAMPLES)
    finish(child)
    return peak


@contextlib.contextmanager
def slow_mount(backing: Path, place: Path) -> Iterator[Path]:
    """The folder as a slow mount, cold.

    Raises:
        RunError: it cannot be mounted.
    """
    place.mkdir(exist_ok=True)
    command = [sys.executable, str(HERE / "slow_mount.py"), str(backing), str(place)]
    server = subprocess.Popen(  # noqa: S603
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    try:
        end = time.monotonic() + SECONDS_TO_MOUNT
        while not os.path.ismount(place):
            if server.poll() is not None or time.monotonic() > end:
                server.kill()
                _, error = server.communicate()
                raise RunError(f"the slow mount did not start: {error.strip()[-200:]}")
            time.sleep(0.05)
        yield place
    finally:
        if server.poll() is None:
            subprocess.run(["fusermount3", "-u", str(place)], check=False)  # noqa: S603, S607
            try:
                server.wait(10)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait()
