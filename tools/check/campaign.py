"""Campaigns: attacks on shardio that are counted, can be repeated, and fail when it is wrong.

A campaign is a list of cases. Each case has a name, an empty folder, and random numbers that depend
on the seed and its name alone, so that every case can be repeated by itself. For each thing that it
tries it says whether shardio was right, refused (raised an error of its own), or was wrong. Anything
that a case raises is wrong, too. Wrong is exit code 1.

What may crash, hang or exhaust memory runs in a child process, which is forked from one that has
imported everything, so that a child costs milliseconds and not the seconds of an import.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import fnmatch
import importlib
import math
import multiprocessing
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import IO, Any, NoReturn

import cv2

import shardio
import shardio.cli

REFUSALS = (shardio.ShardioError, OSError)
MIB = 1 << 20
_PATIENCE = 60.0  # seconds after which a child that says nothing hangs
_EXAMPLES = 3  # of each kind of wrong
_PROGRESS = re.compile(r"\w+: [\d,]+ of [\d,]+")
_NEW_MOUNTS = 0x20000  # CLONE_NEWNS of Linux
_mounted = set[Path]()  # by this process
_LONGEST = 600  # letters of the details of one


class SkipCase(Exception):  # noqa: N818  it is no error
    """Raised by a case that cannot be tried here; its text is the reason."""


class Wrong(Exception):  # noqa: N818  it ends a case
    """Raised by a case that found shardio wrong: a kind, which is counted, and the details."""

    def __init__(self, kind: str, detail: object = "") -> None:
        super().__init__(kind, detail)
        self.kind, self.detail = kind, str(detail)


class Trial:
    """One case under way.

    Attributes:
        folder: empty folder of the case, removed afterwards.
        random: random numbers that depend on the seed and the name of the case.
    """

    def __init__(self, folder: Path, seed: str) -> None:
        self.folder = folder
        self.random = random.Random(seed)  # noqa: S311
        self.counts = Counter[str]()
        self.reasons = Counter[str]()
        self.wrongs: list[Wrong] = []

    def right(self, reason: str = "", times: int = 1) -> None:
        """Count attempts after which shardio did what it should."""
        self.counts["right"] += times
        if reason:
            self.reasons[f"right: {reason}"] += times

    def refused(self, reason: object, times: int = 1) -> None:
        """Count attempts that ended in an error, by a reason or the class of the error."""
        self.counts["refused"] += times
        text = reason if isinstance(reason, str) else type(reason).__name__
        self.reasons[f"refused: {text}"] += times

    def wrong(self, kind: str, detail: object = "") -> None:
        """Count a wrong, and go on with the case."""
        self.counts["wrong"] += 1
        self.wrongs.append(Wrong(kind, detail))


@dataclass(frozen=True)
class Case:
    """Something to try."""

    name: str
    run: Callable[[Trial], None]


def skipped(reason: str) -> Case:
    """A case in the place of those that cannot be tried here."""

    def skip(_: Trial) -> None:
        raise SkipCase(reason)

    return Case(reason, skip)


@dataclass(frozen=True)
class Ended:
    """How a child process ended.

    Attributes:
        value: value that the function returned.
        error: class name of the exception that it raised, or empty.
        refused: whether that is an error with which shardio may refuse.
        message: message of the exception.
        signal: number of the signal that killed the process, or 0.
        hung: whether it had to be killed for its silence.
        output: text on its standard output and error.
        memory: most bytes that it held beyond those of its start.
        seconds: CPU time.
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
        """Raise Wrong if it ended in any way but by returning or refusing."""
        if self.error == "Wrong":
            raise Wrong(*self.value)
        if self.hung:
            raise Wrong("hang", self.output[-500:])
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
        function: function of no arguments, whose value can be pickled.
        memory: most bytes of address space beyond those at its start.
        seconds: CPU time after which the child is killed, rounded up.
        user: user id to run as, for a parent that is root.
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
    return Ended(value, error, refused, message, killed, not heard, text, peak, used)


@dataclass(frozen=True)
class _Limits:
    memory: int | None
    seconds: float | None
    user: int | None

    def set(self) -> None:
        """Set them for this process."""
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
    held, used = _spent()
    try:
        limits.set()
        value = function()
    except BaseException as raised:  # noqa: BLE001  the campaign judges it
        error, refused = type(raised).__name__, isinstance(raised, REFUSALS)
        message = str(raised)
        if isinstance(raised, Wrong):
            value = raised.kind, raised.detail
    peak, seconds = _spent()
    with contextlib.suppress(Exception):
        sys.stdout.flush()
        sys.stderr.flush()
    sender.send((value, error, refused, message, peak - held, seconds - used))
    os._exit(0)


def _spent() -> tuple[int, float]:
    """Peak of memory in bytes and CPU seconds, of this process and its children."""
    kinds = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    peak = max(usage.ru_maxrss for usage in kinds) * 1024
    return peak, sum(usage.ru_utime + usage.ru_stime for usage in kinds)


def command(*words: object, user: int | None = None) -> Ended:
    """Run a command of shardio in a child; its value is the exit code.

    Raises:
        Wrong: the command ended otherwise than with success or one line on why not.
    """
    ended = in_child(lambda: run_command([*map(str, words)]), user=user).check()
    if ended.error:
        raise Wrong(f"command raises {ended.error}", f"{words}: {ended.message}")
    lines = [line for line in ended.output.splitlines() if not _PROGRESS.match(line)]
    if ended.value and len(lines) > 1 and words[0] != "verify":
        raise Wrong("more than one line for an error", f"{words}: {ended.output[:500]}")
    return ended


def run_command(words: list[str]) -> int:
    """Run a command of shardio in this process; returns its exit code."""
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
    """Put a small file system on a folder, which this process and its children alone see.

    Args:
        folder: folder to be covered.
        size: bytes of the file system; mounted there already, it gets that size.
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


def need_root() -> None:
    """Skip a case that mounts file systems or runs as other users."""
    if os.geteuid() != 0:
        raise SkipCase("needs root")


def tree(folder: Path) -> dict[str, tuple[Any, ...]]:
    """Everything below a folder, to compare: kind, mode, owner, contents and targets of links."""
    found = dict[str, tuple[Any, ...]]()
    for path in sorted([folder, *folder.rglob("*")]):
        status = path.lstat()
        what: Any = path.readlink() if path.is_symlink() else None
        if path.is_file() and not path.is_symlink():
            what = path.read_bytes()
        found[str(path.relative_to(folder))] = (status.st_mode, status.st_uid, what)
    return found


def main(document: str, cases: Callable[[Path], Iterable[Case]]) -> NoReturn:
    """Run a campaign as a command.

    Args:
        document: docstring of the campaign.
        cases: called with a folder for what the cases share; returns them all.
    """
    parser = argparse.ArgumentParser(
        description=document, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, help="stop after the case that reaches this")
    parser.add_argument("--cases", type=int, help="try so many of the cases, chosen by the seed")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="*", metavar="PATTERN", help="names of cases")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    work = Path(tempfile.mkdtemp(prefix="campaign-"))
    try:
        work.chmod(0o755)  # other users that a case runs as must reach what is theirs
        sys.exit(_run(options, work, cases))
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _run(
    options: argparse.Namespace, work: Path, cases: Callable[[Path], Iterable[Case]]
) -> int:
    for name in ("shared", "cases", "temporary", "cache"):
        (work / name).mkdir()
    (work / "temporary").chmod(0o1777)  # as of any machine
    os.environ["SHARDIO_CACHE"] = str(work / "cache")
    tempfile.tempdir = os.environ["TMPDIR"] = str(work / "temporary")
    for name in shardio.__all__:
        getattr(shardio, name)  # now, so that no child imports it again, as a user who may not
    for name in ("multiprocessing.popen_fork", "concurrent.futures.process", "encodings.idna"):
        importlib.import_module(name)
    cv2.setNumThreads(1)  # a child would wait for threads that it has not
    chosen = [case for case in cases(work / "shared") if fnmatch.fnmatch(case.name, options.only)]
    if options.seconds is not None or options.cases is not None:
        random.Random(options.seed).shuffle(chosen)  # noqa: S311
    start = time.monotonic()
    tally = _Tally(Path(sys.argv[0]).stem, options.seed)
    for case in chosen[: options.cases]:
        if options.seconds is not None and time.monotonic() - start >= options.seconds:
            break
        trial = Trial(work / "cases" / "case", f"{options.seed} {case.name}")
        trial.folder.mkdir()
        try:
            case.run(trial)
        except SkipCase as skipped:
            trial.reasons[f"skipped: {skipped}"] += 1
        except Wrong as wrong:
            trial.wrong(wrong.kind, wrong.detail)
        except Exception as error:  # noqa: BLE001  whatever it is, nobody expected it
            trial.wrong(f"raises {type(error).__name__}", error)
        shutil.rmtree(trial.folder, ignore_errors=True)
        tally.add(case, trial)
    return tally.report(time.monotonic() - start)


class _Tally:
    """What came of all cases."""

    def __init__(self, campaign: str, seed: int) -> None:
        self.campaign, self.seed = campaign, seed
        self.counts, self.reasons, self.kinds = Counter[str](), Counter[str](), Counter[str]()

    def add(self, case: Case, trial: Trial) -> None:
        """Count a case, and print what is wrong of a kind, the first times."""
        self.counts += trial.counts
        self.reasons += trial.reasons
        for wrong in trial.wrongs:
            self.kinds[wrong.kind] += 1
            if self.kinds[wrong.kind] <= _EXAMPLES:
                again = f"python tools/check/{self.campaign}.py --seed {self.seed}"
                detail = wrong.detail.strip()[:_LONGEST].replace("\n", "\n      ")
                print(f"  {wrong.kind}: {detail}\n    {again} --only {case.name!r}", flush=True)

    def report(self, seconds: float) -> int:
        """Print the counts; returns the exit code."""
        for reason, times in sorted(self.reasons.items()):
            print(f"  {times:9,} {reason}")
        for kind, times in self.kinds.most_common():
            print(f"  {times:9,} wrong: {kind}")
        named = {name: self.counts[name] for name in ("right", "refused", "wrong")}
        said = ", ".join(f"{times:,} {name}" for name, times in named.items())
        print(f"{self.campaign}: {sum(named.values()):,} tried, {said} ({seconds:.0f} s)")
        return int(bool(named["wrong"]))
