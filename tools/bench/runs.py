"""Start the runs, each in its own process with its memory watched, and mount the slow mount."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from shardio.profiling.system import tree_memory

HERE = Path(__file__).parent
SECONDS_BETWEEN_SAMPLES = 0.05
SECONDS_TO_MOUNT = 20.0
LONGEST_RUN = 1800.0


class RunError(Exception):
    """Failure of a run; the message is the last line of its error."""


class Child:
    """Process of child.py, whose output goes to files so that it never waits for a reader."""

    def __init__(self, **request: Any) -> None:
        command = [sys.executable, str(HERE / "child.py"), json.dumps(request)]
        self.out = tempfile.TemporaryFile("w+")  # noqa: SIM115  finish closes both
        self.error = tempfile.TemporaryFile("w+")  # noqa: SIM115
        self.process = subprocess.Popen(  # noqa: S603
            command, stdout=self.out, stderr=self.error, start_new_session=True
        )

    def finish(self) -> dict[str, Any]:
        """Wait for a child, end its leftover processes, and return the last line that it printed.

        Raises:
            RunError: the child failed or took too long.
        """
        with self.out, self.error:
            try:
                code = self.process.wait(LONGEST_RUN)
            except subprocess.TimeoutExpired:
                raise RunError(f"it took more than {LONGEST_RUN:.0f} s") from None
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(self.process.pid, signal.SIGKILL)
                self.process.wait()
            if code:
                lines = last_lines(self.error)
                raise RunError(lines[-1] if lines else f"it ended with code {code}")
            result: dict[str, Any] = json.loads(last_lines(self.out)[-1])
            return result


def last_lines(file: IO[str]) -> list[str]:
    file.seek(0)
    return [line.strip() for line in file if line.strip()]


def run_child(**request: Any) -> dict[str, Any]:
    return Child(**request).finish()


def peak_memory(**request: Any) -> int:
    """Return the peak memory of a run and its children, without the page cache."""
    child, peak = Child(**request), 0
    while child.process.poll() is None:
        peak = max(peak, tree_memory(child.process.pid) or 0)
        time.sleep(SECONDS_BETWEEN_SAMPLES)
    child.finish()
    return peak


@contextlib.contextmanager
def slow_mount(backing: Path, place: Path) -> Iterator[Path]:
    """Mount a folder as a slow mount, cold.

    Raises:
        RunError: the folder cannot be mounted.
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
