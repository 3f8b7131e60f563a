"""Run code that may crash, hang or exhaust memory in a child process, and report how it ended.

A child is forked from a process that has imported everything, so its start takes milliseconds
instead of the seconds of an import.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import math
import multiprocessing
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import IO, Any, NoReturn

import shardio.cli
from campaign import REFUSALS, Wrong

_PATIENCE = 60.0  # seconds after which a child that says nothing hangs
_PROGRESS = re.compile(r"\w+: [\d,]+ of [\d,]+")
_NEW_MOUNTS = 0x20000  # CLONE_NEWNS of Linux
_mounted = set[Path]()  # by this process


@dataclass(frozen=True)
class Ended:
    """Result of a child process.

    Attributes:
        value: value that the function returned.
        error: class name of the exception that it raised, or empty.
        refused: whether shardio may refuse an input with that exception.
        message: message of the exception.
        signal: number of the signal that killed the process, or 0.
        hung: whether the process was killed because it did not respond.
        output: text on its standard output and error.
        memory: peak memory in bytes above that at its start.
        seconds: CPU time in seconds.
    """

    value: Any
    error: str
    refused: bool
    message: str
    signal: int
    hung: bool
    output: str
    memory: int
    seconds: float

    def check(self) -> Ended:
        """Raise Wrong unless the child returned or refused."""
        if self.error == "Wrong":
            raise Wrong(*self.value)
        if self.hung:
            raise Wrong("hang", self.message)
        if self.signal:
            raise Wrong(f"killed by {signal.Signals(self.signal).name}", self.output[-500:])
        if self.error and not self.refused:
            raise Wrong(f"raises {self.error}", self.message)
        if "Traceback" in self.output:
            raise Wrong("traceback", self.output[-800:])
        return self


def in_child(
    function: Callable[[], Any],
    *,
    memory: int | None = None,
    seconds: float | None = None,
    user: int | None = None,
) -> Ended:
    """Run a function in a child process.

    Args:
        function: function without arguments, whose value can be pickled.
        memory: maximum address space in bytes above that at its start.
        seconds: CPU time after which the child is killed, rounded up.
        user: id of the user to run as, if the parent is root.
    """
    receiver, sender = multiprocessing.Pipe(duplex=False)
    with tempfile.TemporaryFile() as output, receiver:
        child = os.fork()
        if child == 0:
            _live(function, sender, output, _Limits(memory, seconds, user))
        sender.close()
        with contextlib.suppress(OSError):
            os.setpgid(child, child)
        heard = receiver.poll(_PATIENCE)
        said = None
        with contextlib.suppress(EOFError):
            said = receiver.recv() if heard else None
        places = "" if heard else stacks(child)
        if not heard:
            os.killpg(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(child, signal.SIGKILL)  # workers that outlive their parent
        output.seek(0)
        text = output.read().decode("utf-8", "replace")
    value, error, refused, message, peak, used = said or (None, "", False, "", 0, 0.0)
    killed = os.WTERMSIG(status) if os.WIFSIGNALED(status) and heard else 0
    if heard and said is None and not killed:
        error, message = f"exit code {os.WEXITSTATUS(status)}", text[-500:]
    if not heard:
        kept = Path("/tmp", f"campaign-hang-{child}.txt")  # noqa: S108  for the reader of the report
        kept.write_text(text + places, "utf-8")
        message = f"where its processes stood is in {kept}"
    return Ended(value, error, refused, message, killed, not heard, text, peak, used)


def stacks(group: int) -> str:
    """Return the stacks of the processes of a group, from py-spy or from their own output."""
    said = ""
    for process in sorted(int(path.name) for path in Path("/proc").glob("[0-9]*")):
        with contextlib.suppress(OSError):
            if os.getpgid(process) == group:
                said += (place := stack(process))
                if not place:
                    os.kill(process, signal.SIGUSR1)
                    time.sleep(0.2)  # one after the other
    return said


def stack(process: int) -> str:
    """Where a process stands; empty where py-spy is not installed, or may not look."""
    places = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
    words = [shutil.which("py-spy", path=places) or "false", "dump", "--pid", str(process)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)  # noqa: S603
    return "" if done.returncode else done.stdout


@dataclass(frozen=True)
class _Limits:
    memory: int | None
    seconds: float | None
    user: int | None

    def set(self) -> None:
        """Set the limits for this process."""
        if self.user is not None:
            os.setgroups([])
            os.setgid(self.user)
            os.setuid(self.user)
        if self.memory is not None:
            pages = int(Path("/proc/self/statm").read_text("ascii").split()[0])
            limit = pages * resource.getpagesize() + self.memory
            resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        if self.seconds is not None:
            limit = math.ceil(self.seconds)
            resource.setrlimit(resource.RLIMIT_CPU, (limit, limit + 1))


def _live(
    function: Callable[[], Any], sender: Connection, output: IO[bytes], limits: _Limits
) -> NoReturn:
    value, error, refused, message = None, "", False, ""
    os.setpgid(0, 0)
    sys.stdout.flush()
    for descriptor in (1, 2):
        os.dup2(output.fileno(), descriptor)
    faulthandler.register(signal.SIGUSR1, file=2, all_threads=True)
    held, used = _spent()

    def say(value: Any, error: str, refused: bool, message: str) -> NoReturn:
        peak, seconds = _spent()
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        sender.send((value, error, refused, message, peak - held, seconds - used))
        os._exit(0)

    _sayings.append(say)
    try:
        limits.set()
        value = function()
    except BaseException as raised:
        error, refused = type(raised).__name__, isinstance(raised, REFUSALS)
        message = str(raised)
        if isinstance(raised, Wrong):
            value = raised.kind, raised.detail
    say(value, error, refused, message)


_sayings: list[Callable[[Any, str, bool, str], NoReturn]] = []  # of this child, the last


def end(value: Any) -> NoReturn:
    """End the child as if its function returned a value, from code that never returns."""
    _sayings[-1](value, "", False, "")


def _spent() -> tuple[int, float]:
    """Return peak memory in bytes and CPU seconds of this process and its children."""
    kinds = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    peak = max(usage.ru_maxrss for usage in kinds) * 1024
    return peak, sum(usage.ru_utime + usage.ru_stime for usage in kinds)


def command(*words: object, user: int | None = None) -> Ended:
    """Run a shardio command in a child; the result's value is the exit code.

    Raises:
        Wrong: the command ended otherwise than with success or a one-line error.
    """
    ended = in_child(lambda: run_command([*map(str, words)]), user=user).check()
    if ended.error:
        raise Wrong(f"command raises {ended.error}", f"{words}: {ended.message}")
    lines = [line for line in ended.output.splitlines() if not _PROGRESS.match(line)]
    if ended.value and len(lines) > 1 and words[0] != "verify":
        raise Wrong("more than one line for an error", f"{words}: {ended.output[:500]}")
    return ended


def run_command(words: list[str]) -> int:
    """Run a shardio command in this process and return its exit code."""
    sys.argv = ["shardio", *words]
    try:
        shardio.cli.main()
    except SystemExit as ending:
        if isinstance(ending.code, str):
            print(ending.code, file=sys.stderr)
            return 1
        return ending.code or 0
    return 0


def mount_privately(folder: Path, size: int) -> None:
    """Mount a small file system on a folder, visible only to this process and its children.

    Args:
        folder: folder to cover.
        size: size of the file system in bytes; an existing one is resized.
    """
    mounted = os.path.ismount(folder) and folder in _mounted
    if not _mounted and ctypes.CDLL(None, use_errno=True).unshare(_NEW_MOUNTS):
        raise OSError(ctypes.get_errno(), "mounts of its own")
    words = ["mount", "--make-rprivate", "/"]
    subprocess.run(words, check=True)  # noqa: S603
    how = f"{'remount,' if mounted else ''}size={size}"
    words = ["mount", "-t", "tmpfs", "-o", how, "tmpfs", str(folder)]
    subprocess.run(words, check=True)  # noqa: S603
    _mounted.add(folder)


def tree(folder: Path) -> dict[str, tuple[Any, ...]]:
    """Return everything below a folder for comparison: kind, mode, owner, contents and targets."""
    found = dict[str, tuple[Any, ...]]()
    for path in sorted([folder, *folder.rglob("*")]):
        status = path.lstat()
        what: Any = path.readlink() if path.is_symlink() else None
        if path.is_file() and not path.is_symlink():
            what = path.read_bytes()
        found[str(path.relative_to(folder))] = (status.st_mode, status.st_uid, what)
    return found
