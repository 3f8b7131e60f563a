"""Campaigns: attacks on shardio that are counted, repeatable, and fail if shardio is wrong.

A campaign is a list of cases. Each case has a name, an empty folder, and random numbers that depend
only on the seed and its name, so that every case can be repeated alone. For each attempt, a case
counts whether shardio was right, refused (with an error of its own), or was wrong. An exception in
a case counts as wrong, too. If anything was wrong, the exit code is 1.
"""

from __future__ import annotations

import argparse
import contextlib
import fnmatch
import importlib
import logging
import os
import random
import shutil
import sys
import tempfile
import time
import warnings
import zlib
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import cv2

import shardio

REFUSALS = (shardio.ShardioError, OSError)
MIB = 1 << 20
AT_END = contextlib.ExitStack()
"""What a campaign enters here, such as a server, is left when it ends."""
_EXAMPLES = 3  # of each kind of wrong
_LONGEST = 600  # letters of the details of one


class SkipCase(Exception):  # noqa: N818  it is no error
    """Exception of a case that cannot run here; its text is the reason."""


class Wrong(Exception):  # noqa: N818  it ends a case
    """Exception of a case that found shardio wrong: a kind, which is counted, and the details."""

    def __init__(self, kind: str, detail: object = "") -> None:
        super().__init__(kind, detail)
        self.kind, self.detail = kind, str(detail)


class Trial:
    """Run of one case.

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
        """Count attempts after which shardio was right."""
        self.counts["right"] += times
        if reason:
            self.reasons[f"right: {reason}"] += times

    def refused(self, reason: object, times: int = 1) -> None:
        """Count attempts that ended in an error, by a reason or the class of the error."""
        self.counts["refused"] += times
        text = reason if isinstance(reason, str) else type(reason).__name__
        self.reasons[f"refused: {text}"] += times

    def wrong(self, kind: str, detail: object = "") -> None:
        """Count a wrong result and continue with the case."""
        self.counts["wrong"] += 1
        self.wrongs.append(Wrong(kind, detail))


@dataclass(frozen=True)
class Case:
    """Named attempt or series of attempts."""

    name: str
    run: Callable[[Trial], None]


def skipped(reason: str) -> Case:
    """Return a case in place of those that cannot run here."""

    def skip(_: Trial) -> None:
        raise SkipCase(reason)

    return Case(reason, skip)


def need_root() -> None:
    """Skip a case that mounts file systems or runs as other users, unless root runs it."""
    if os.geteuid() != 0:
        raise SkipCase("needs root")


def keep(data: bytes) -> Path:
    """Save an input for the reader of the report, where it stays after the campaign."""
    path = Path("/tmp", f"campaign-input-{zlib.crc32(data):08x}")  # noqa: S108
    path.write_bytes(data)
    return path


def main(document: str, cases: Callable[[Path], Iterable[Case]]) -> NoReturn:
    """Run a campaign as a command.

    Args:
        document: docstring of the campaign.
        cases: function that is called with a shared folder and returns all cases.
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
    logging.disable()
    work = Path(tempfile.mkdtemp(prefix="campaign-"))
    try:
        work.chmod(0o755)  # other users that a case runs as must reach what is theirs
        sys.exit(_run(options, work, cases))
    finally:
        AT_END.close()
        shutil.rmtree(work, ignore_errors=True)


def _run(options: argparse.Namespace, work: Path, cases: Callable[[Path], Iterable[Case]]) -> int:
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
    if not chosen:
        sys.exit(f"no case is called {options.only!r}")
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
        except Exception as error:
            trial.wrong(f"raises {type(error).__name__}", error)
        shutil.rmtree(trial.folder, ignore_errors=True)
        tally.add(case, trial)
    return tally.report(time.monotonic() - start)


class _Tally:
    """Counts of the results of all cases."""

    def __init__(self, campaign: str, seed: int) -> None:
        self.campaign, self.seed = campaign, seed
        self.counts, self.reasons, self.kinds = Counter[str](), Counter[str](), Counter[str]()

    def add(self, case: Case, trial: Trial) -> None:
        """Add the counts of a case, and print the first examples of each kind of wrong result."""
        self.counts += trial.counts
        self.reasons += trial.reasons
        for wrong in trial.wrongs:
            self.kinds[wrong.kind] += 1
            if self.kinds[wrong.kind] <= _EXAMPLES:
                again = f"python tools/check/{self.campaign}.py --seed {self.seed}"
                detail = wrong.detail.strip()[:_LONGEST].replace("\n", "\n      ")
                print(f"  {wrong.kind}: {detail}\n    {again} --only {case.name!r}", flush=True)

    def report(self, seconds: float) -> int:
        """Print the counts and return the exit code."""
        for reason, times in sorted(self.reasons.items()):
            print(f"  {times:9,} {reason}")
        for kind, times in self.kinds.most_common():
            print(f"  {times:9,} wrong: {kind}")
        named = {name: self.counts[name] for name in ("right", "refused", "wrong")}
        said = ", ".join(f"{times:,} {name}" for name, times in named.items())
        print(f"{self.campaign}: {sum(named.values()):,} tried, {said} ({seconds:.0f} s)")
        return int(bool(named["wrong"]))
