"""What the kernel says of processes, threads and files, and a thread that keeps asking it.

Where the kernel does not say, as on systems other than Linux, functions return None or nothing, and
their callers do without. `Watcher` looks at a loop's processes from the side, once a second.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from shardio.profiling.evidence import Producer, ProducerKind

_LEFT_IN_CACHE = 0.1  # share of a file, below which it counts as dropped
_LEAST_BETWEEN, _MOST_BETWEEN = 0.1, 1.0  # seconds between looks, fewer at the beginning
_COST_OF_MEMORY = 0.02  # seconds, at first; the kernel adds up the pages of each process
_SECONDS_BETWEEN_TRIALS = 0.1
_LEAST_CPU = 0.005  # share of the time; whatever runs less makes no batches
_LEAST_SECONDS = 0.05  # of CPU time, where the loader does not say what makes batches
_LEAST_OF_PROCESS = 0.05
_BUSY = 1, 2, 3, 8  # user, nice, system and steal of a core; interrupts are nobody's
_OF_A_PROCESS = slice(11, 15)  # user and system, its own and of children that have ended


class Use(NamedTuple):
    """Use of cores by a thread since it began.

    Attributes:
        cpu: CPU time, ns.
        delay: time that it waited for a free core (the run queue's delay), ns.
    """

    cpu: int
    delay: int


def descendants(process: int) -> list[int]:
    """List the processes that a process started, and those that they started."""
    found: list[int] = []
    for child in _children(process):
        found += [child, *descendants(child)]
    return found


def thread_uses(process: int) -> dict[int, Use]:
    """Return the use of each thread of a process; nothing if it has ended."""
    uses = {}
    try:
        for path in Path(f"/proc/{process}/task").iterdir():
            cpu, delay, _ = (path / "schedstat").read_bytes().split()
            uses[int(path.name)] = Use(int(cpu), int(delay))
    except (OSError, ValueError):
        pass
    return uses


class OtherLoad:
    """CPU time that others take, from now on, of the cores that this process may use.

    Others are all but this process and those that it starts: other programs, and the host of a
    virtual machine, whose time is "steal".
    """

    def __init__(self) -> None:
        self._start, self._before = time.perf_counter(), _seconds_of_others()

    def cores(self) -> float | None:
        """Return the mean number of cores that others kept busy; None where not known."""
        seconds, after = time.perf_counter() - self._start, _seconds_of_others()
        if self._before is None or after is None:
            return None
        return max(after - self._before, 0.0) / max(seconds, 1e-9)


def _seconds_of_others() -> float | None:
    if not Path("/proc/self/task", str(os.getpid()), "children").exists():
        return None
    try:
        names = {f"cpu{core}" for core in os.sched_getaffinity(0)}
        lines = map(str.split, Path("/proc/stat").read_text("ascii").splitlines())
        busy = sum(int(line[at]) for line in lines if line[0] in names for at in _BUSY)
    except (OSError, ValueError, IndexError):
        return None
    for process in [os.getpid(), *descendants(os.getpid())]:
        with suppress(OSError):  # it has ended, and is among its parent's
            status = Path(f"/proc/{process}/stat").read_text("utf-8").rpartition(")")[2]
            busy -= sum(map(int, status.split()[_OF_A_PROCESS]))
    return busy / os.sysconf("SC_CLK_TCK")


class Moved(NamedTuple):
    """Bytes and pages that a process has moved since it began.

    Attributes:
        from_disk: bytes read from a local disk, not from the page cache.
        written: bytes written to files, pipes and sockets.
        faults: pages of memory that were new to it.
    """

    from_disk: int
    written: int
    faults: int


def bytes_moved(process: int) -> Moved | None:
    """Return what a process has moved; None if it has ended, or belongs to another user."""
    try:
        lines = Path(f"/proc/{process}/io").read_text("ascii").splitlines()
        status = Path(f"/proc/{process}/stat").read_text("utf-8")
    except OSError:
        return None
    values = dict(line.split(": ") for line in lines)
    faults = status.rpartition(")")[2].split()[7]
    return Moved(int(values["read_bytes"]), int(values["wchar"]), int(faults))


def tree_memory(process: int) -> int | None:
    """Return the bytes that a process and its descendants hold themselves, without page cache.

    Proportional shares (Pss_Anon and Pss_Shmem of /proc/*/smaps_rollup), so that memory shared
    between them counts once. None where the kernel does not say.
    """
    parts = [_memory(one) for one in [process, *descendants(process)]]
    known = [part for part in parts if part is not None]
    return sum(known) if known else None


def drop_from_cache(paths: Sequence[str]) -> bool:
    """Drop files from the page cache; False if they cannot be dropped, or are still in it."""
    if not hasattr(os, "posix_fadvise"):
        return False
    try:
        for path in paths:
            with Path(path).open("rb") as stream:
                os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    except OSError:
        return False
    shares = [cached_share(path) for path in paths]
    return all(share is not None and share < _LEFT_IN_CACHE for share in shares)


def cached_share(path: str) -> float | None:
    """Return the share of a file that is in the page cache; None if the kernel does not say."""
    try:
        with Path(path).open("rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            if not size:
                return 1.0
            with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_COPY) as pages:
                return _resident_share(pages, size)
    except (OSError, AttributeError, ValueError):
        return None


def _resident_share(pages: mmap.mmap, size: int) -> float | None:
    flags = (ctypes.c_ubyte * -(-size // mmap.PAGESIZE))()
    first = ctypes.c_char.from_buffer(pages)
    try:
        failed = _libc().mincore(ctypes.byref(first), ctypes.c_size_t(size), flags)
    finally:
        del first  # a map that is pointed into cannot be closed
    return None if failed else float(np.mean(np.frombuffer(bytes(flags), np.uint8) & 1))


@cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None)


def _memory(process: int) -> int | None:
    try:
        lines = Path(f"/proc/{process}/smaps_rollup").read_text("ascii").splitlines()
    except OSError:
        return None
    total = 0
    for line in lines:
        name, _, value = line.partition(":")
        if name in {"Pss_Anon", "Pss_Shmem"}:
            total += int(value.split()[0]) * 1024
    return total


def _children(process: int) -> list[int]:
    try:
        tasks = [*Path(f"/proc/{process}/task").glob("*/children")]
        return [int(child) for path in tasks for child in path.read_text("ascii").split()]
    except OSError:
        return []


class _Seen(NamedTuple):
    """A thread at the first and the last look at it.

    Attributes:
        since: time of the first look, ns.
        before: use at that time.
        until: time of the last look, ns.
        after: use at that time.
    """

    since: int
    before: Use
    until: int
    after: Use

    def shares(self) -> tuple[float, float]:
        """Return the shares of the time that it ran, and that it waited for a core."""
        passed = max(self.until - self.since, 1)
        cpu, delay = (b - a for a, b in zip(self.before, self.after, strict=True))
        return cpu / passed, delay / passed

    def seconds(self) -> float:
        """Return the seconds that it ran."""
        return (self.after.cpu - self.before.cpu) / 1e9


class Watcher:
    """Thread that looks at this process and its children until it is closed.

    It also tries how long a thread waits for the interpreter's lock.

    Args:
        budget: share of the time that looking at the memory may take.
    """

    def __init__(self, budget: float) -> None:
        self._budget = budget
        self._pid = os.getpid()
        self._main = threading.get_native_id()
        self._threads: dict[tuple[int, int], _Seen] = {}
        self._moved: dict[int, tuple[Moved, Moved]] = {}
        self._first_look = self._last_look = time.perf_counter_ns()
        self._peak = 0
        self._start = self._next_look = time.perf_counter()
        self._next_memory = self._start + _COST_OF_MEMORY / budget
        self._waited, self._trials = 0.0, 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="shardio-watch", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Look a last time, and end."""
        self._stop.set()
        self._thread.join()
        self._look()

    def restart(self) -> None:
        """Forget what was seen before."""
        self._threads, self._moved = {}, {}
        self._start = time.perf_counter()
        self._waited, self._trials = 0.0, 0
        self._first_look = time.perf_counter_ns()
        self._look()

    def look_at_memory(self) -> None:
        """Add up what the processes hold, and put off the next time as the budget asks."""
        start = time.perf_counter()
        self._peak = max(self._peak, tree_memory(self._pid) or 0)
        end = time.perf_counter()
        self._next_memory = end + (end - start) / self._budget

    @property
    def memory(self) -> int | None:
        """Most bytes that the processes held themselves; None where not known."""
        return self._peak or None

    def lock_wait(self) -> float | None:
        """Return the mean seconds that another thread waited for the interpreter's lock."""
        return self._waited / self._trials if self._trials else None

    def moved(self) -> tuple[float, float, float] | None:
        """Return bytes per second from a local disk, and written and faults of child processes."""
        if not self._moved:
            return None
        seconds = max(self._last_look - self._first_look, 1) / 1e9
        disk = written = faults = 0
        for pid, (before, after) in [*self._moved.items()]:  # each epoch may have had others
            disk += after.from_disk - before.from_disk
            if pid != self._pid:
                written += after.written - before.written
                faults += after.faults - before.faults
        return disk / seconds, written / seconds, faults / seconds

    def producers(self, kind: ProducerKind | None) -> tuple[ProducerKind, tuple[Producer, ...]]:
        """Return what makes batches.

        Args:
            kind: kind of the producers; None where the loader does not say: child processes that
                run, or else threads of this process, or else the loop's own thread.
        """
        if kind == "here":
            return kind, ()
        seen = {place: one for place, one in [*self._threads.items()] if self._may_be(place)}
        known = kind is not None
        processes = _busy_processes(seen, self._pid, known=known)
        if kind == "processes" or (not known and processes):
            return "processes", processes
        threads = tuple(
            _producer(thread, [one])
            for (pid, thread), one in sorted(seen.items())
            if pid == self._pid and _is_busy([one], known=known)
        )
        return ("threads", threads) if known or threads else ("here", ())

    def at_once(self, kind: ProducerKind, producers: Sequence[Producer]) -> int:
        """Return the largest number of producers that lived at the same time."""
        spans: dict[int, tuple[int, int]] = {}
        for place, seen in [*self._threads.items()]:
            number = place[0] if kind == "processes" else place[1]
            since, until = spans.get(number, (seen.since, seen.until))
            spans[number] = min(since, seen.since), max(until, seen.until)
        lives = [spans[one.number] for one in producers]
        return max((sum(a <= since <= b for a, b in lives) for since, _ in lives), default=0)

    def _may_be(self, place: tuple[int, int]) -> bool:
        """Tell whether it may make batches: neither the loop's thread nor the watching one does."""
        return place[0] != self._pid or place[1] not in {self._main, self._thread.native_id}

    def own_share(self) -> float:
        """Return the share of a core that looking took."""
        seen = self._threads.get((self._pid, self._thread.native_id or 0))
        return seen.shares()[0] if seen else 0.0

    def _watch(self) -> None:
        while not self._stop.is_set():
            now = time.perf_counter()
            if now >= self._next_look:
                self._look()
                if now >= self._next_memory:
                    self.look_at_memory()
                passed = now - self._start
                self._next_look = now + min(max(passed, _LEAST_BETWEEN), _MOST_BETWEEN)
            self._try_lock()

    def _try_lock(self) -> None:
        """Sleep without the lock; a late end, beyond the wait for a core, is the wait for it."""
        delay = _own_delay()
        start = time.perf_counter()
        time.sleep(_SECONDS_BETWEEN_TRIALS)
        late = time.perf_counter() - start - _SECONDS_BETWEEN_TRIALS
        self._waited += max(late - (_own_delay() - delay) / 1e9, 0.0)
        self._trials += 1

    def _look(self) -> None:
        for pid in [self._pid, *descendants(self._pid)]:
            now = time.perf_counter_ns()
            for thread, use in thread_uses(pid).items():
                seen = self._threads.get((pid, thread))
                first = (seen.since, seen.before) if seen else (now, use)
                self._threads[pid, thread] = _Seen(*first, now, use)
            moved = bytes_moved(pid)
            if moved is not None:
                before, _ = self._moved.get(pid, (moved, moved))
                self._moved[pid] = before, moved
        self._last_look = time.perf_counter_ns()


def _own_delay() -> int:
    """Return the run queue's delay of the calling thread so far, ns."""
    try:
        return int(Path("/proc/thread-self/schedstat").read_bytes().split()[1])
    except OSError:
        return 0


def _busy_processes(
    seen: Mapping[tuple[int, int], _Seen], own: int, *, known: bool
) -> tuple[Producer, ...]:
    by_process: dict[int, list[_Seen]] = {}
    for (pid, _), one in sorted(seen.items()):
        if pid != own:
            by_process.setdefault(pid, []).append(one)
    return tuple(
        _producer(pid, threads)
        for pid, threads in by_process.items()
        if _is_busy(threads, known=known)
    )


def _is_busy(threads: Sequence[_Seen], *, known: bool) -> bool:
    """Tell whether threads run enough to make batches; a guessed kind must run longer."""
    share = sum(one.shares()[0] for one in threads)
    seconds = sum(one.seconds() for one in threads)
    return share > _LEAST_CPU and (known or seconds >= _LEAST_SECONDS)


def _producer(number: int, threads: Sequence[_Seen]) -> Producer:
    shares = [one.shares() for one in threads]
    cpu, delay = (sum(share[at] for share in shares) for at in (0, 1))
    busy = sum(share > _LEAST_OF_PROCESS * cpu for share, _ in shares)
    return Producer(number=number, cpu=cpu, delay=delay, busy_threads=busy, filling=None)
