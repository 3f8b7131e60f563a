"""Watching a training loop: does it wait for data, and why?

    with shardio.profiling.monitor(loader) as seen:
        for batch in seen:
            step(batch)
    print(seen)

What is measured begins after the first batch, since starting workers is no steady state. Of
shardio's own datasets the stages of reading are recorded too; of any other loader, what the kernel
says of its processes and threads must do.
"""

from __future__ import annotations

import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from time import perf_counter_ns, thread_time_ns
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from shardio.errors import UsageError
from shardio.profiling.evidence import Evidence, Producer, filling_shares, stages_of
from shardio.profiling.records import Recorder, ThreadRecords
from shardio.profiling.system import cached_share, count_cores
from shardio.profiling.verdict import Verdict, judge
from shardio.profiling.watching import Watcher
from shardio.reading.dataset import ShardDataset
from shardio.reading.loader import Loader
from shardio.reading.times import Stopwatch

if TYPE_CHECKING:
    from typing_extensions import Self

_BUDGET = 0.005  # of the reading, for recording
_MOST_BATCHES = 100_000  # that are remembered, the last ones
_SLICES = 5
_AT_ONCE = 0.05  # of a mean batch's time; who waits less did not wait
_SECONDS_BETWEEN_LINES = 2.0
_SHARDS_LOOKED_AT = 8
_USUALLY_AHEAD = 3


class Received(NamedTuple):
    """A batch.

    Attributes:
        number: in its epoch.
        asked: when the loop asked for it, ns of perf_counter_ns.
        came: when it was there.
        cpu: ns that the loop's thread ran meanwhile.
        samples: in it.
    """

    number: int
    asked: int
    came: int
    cpu: int
    samples: int


class Monitor:
    """Passes the batches of a loader on, and watches; a context that is looped over.

    Args:
        loader: yields batches.
        live: show a line while the loop runs; None does on a terminal.
        budget: share of the reading's time that recording its stages may take.

    Attributes:
        received: the last batches.
        records: of shardio's own reading, when the context has ended.
    """

    def __init__(self, loader: Iterable[Any], *, live: bool | None, budget: float) -> None:
        self._loader = loader
        self._live = sys.stderr.isatty() if live is None else live
        self._budget = budget
        self._dataset = _dataset_of(loader)
        self._cached = None if self._dataset is None else _cached_share(self._dataset)
        self._watcher: Watcher | None = None
        self._recorder: Recorder | None = None
        self._stopwatch: Callable[[], Stopwatch] = Stopwatch
        self._ahead = _count_ahead(loader)
        self._begun = False
        self._thread = threading.get_native_id()
        self._end = 0
        self._starts: list[int] = []  # ns until the first batch of each epoch was there
        self._next_line = 0.0
        self._shown = False
        self._evidence: Evidence | None = None
        self.received = deque[Received](maxlen=_MOST_BATCHES)
        self.records: list[ThreadRecords] = []

    def __enter__(self) -> Self:
        self._watcher = Watcher()
        if self._dataset is not None:
            self._recorder = Recorder(self._budget)
            self._stopwatch, self._dataset.stopwatch = self._dataset.stopwatch, self._recorder
        return self

    def __exit__(self, *_: object) -> None:
        watcher, recorder = self._watcher, self._recorder
        if watcher is not None:
            watcher.close()
        self._read_records()
        if recorder is not None and self._dataset is not None:
            self._dataset.stopwatch = self._stopwatch
            recorder.close()
            self._recorder = None
        if self._shown:
            sys.stderr.write("\n")
        if watcher is not None and len(self.received) > 1:
            self._evidence = self._observe(watcher)

    def __iter__(self) -> Iterator[Any]:
        if self._watcher is None:
            raise UsageError("loop over the monitor inside its context: with monitor(…) as seen:")
        batches, number = iter(self._loader), 0
        while True:
            asked, cpu = perf_counter_ns(), thread_time_ns()
            batch = next(batches, _NOTHING)
            came = perf_counter_ns()
            if batch is _NOTHING:
                return
            cpu = thread_time_ns() - cpu
            self._note(Received(number, asked, came, cpu, count_samples(batch)))
            number += 1
            place = [batch]  # only the loop keeps a batch, so that its memory is lent again
            del batch
            try:
                yield place.pop()
            finally:
                self._end = perf_counter_ns()
            if self._live:
                self._show()

    @property
    def evidence(self) -> Evidence:
        """What was seen.

        Raises:
            UsageError: the context has not ended, or fewer than two batches came.
        """
        if self._evidence is None:
            raise UsageError(
                "the monitor has seen fewer than two batches of an ended loop: loop over it, and "
                "ask after its context has ended"
            )
        return self._evidence

    @property
    def verdict(self) -> Verdict:
        """What limits the loop; raises as evidence does."""
        return judge(self.evidence)

    def __str__(self) -> str:
        evidence, verdict = self.evidence, self.verdict
        lines = [
            verdict.sentence,
            f"{evidence.rate:,.0f} samples/s; the loop waited {evidence.waiting:.1%} of the time",
            *(f"- {change.text}" for change in verdict.changes),
        ]
        return "\n".join(lines)

    def _note(self, batch: Received) -> None:
        """Remember a batch; what begins with the last of those that were made ahead is steady."""
        if batch.number == 0:
            self._starts.append(batch.came - batch.asked)
        if not self._begun and (batch.number >= self._ahead or len(self._starts) > 1):
            self._begun = True
            self.received.clear()
            if self._watcher is not None:
                self._watcher.restart()
        self.received.append(batch)

    @property
    def seconds(self) -> float:
        """That were observed so far, in the steady state."""
        return (perf_counter_ns() - self.received[0].came) / 1e9 if self._begun else 0.0

    def _show(self) -> None:
        now = time.perf_counter()
        if now < self._next_line or len(self.received) < 2:
            return
        self._next_line = now + _SECONDS_BETWEEN_LINES
        rows = [*self.received][-200:]
        seconds = (self._end - rows[0].came) / 1e9
        waiting = sum(row.came - row.asked for row in rows[1:]) / 1e9 / seconds
        rate = sum(row.samples for row in rows[1:]) / seconds
        line = f"waiting {waiting:5.1%} of the time, {rate:,.0f} samples/s"
        if self._watcher is not None:
            self._read_records()
            line += f"; {judge(self._observe(self._watcher)).short}"
        sys.stderr.write(f"\r{line[:79]:<79}")
        sys.stderr.flush()
        self._shown = True

    def _read_records(self) -> None:
        if self._recorder is not None and self.received:
            self.records = self._recorder.read(since=self.received[0].came)

    def _observe(self, watcher: Watcher) -> Evidence:
        first, *rows = self.received
        seconds = (self._end - first.came) / 1e9
        kind, producers = watcher.producers()
        if kind == "threads" and {one.thread for one in self.records} == {self._thread}:
            kind, producers = "here", ()  # the others are OpenCV's
        number = _count_producers(self._loader) or len(producers)
        from_disk, sent, faults = watcher.moved() or (None, None, None)
        steps = _count_steps(self._loader)
        epoch = steps * seconds / len(rows) if steps else seconds
        first_batch, *later = (start / 1e9 for start in self._starts)
        starting = sum(later) / seconds if later else first_batch / (first_batch + epoch)
        waits = [(row.came - row.asked) / 1e9 for row in rows]
        return Evidence(
            cores=count_cores(),
            kind=kind,
            producers=_with_filling(producers, self.records),
            number=number if kind != "here" else 0,
            seconds=seconds,
            batches=len(rows),
            samples=sum(row.samples for row in rows),
            slices=_slices(first.came, self._end, rows),
            waiting=sum(waits) / seconds,
            receiving=sum(row.cpu for row in rows) / 1e9 / seconds,
            ready=sum(wait < _AT_ONCE * seconds / len(rows) for wait in waits) / len(rows),
            turns=_turns(rows, number if kind == "processes" else 0),
            first_batch=first_batch,
            starting=starting,
            steps=steps,
            lock_wait=watcher.lock_wait(),
            cached=self._cached,
            from_disk=from_disk,
            sent=sent,
            faults=faults,
            memory=watcher.memory,
            stages=stages_of(self.records),
        )


def monitor(loader: Iterable[Any], *, live: bool | None = None, budget: float = _BUDGET) -> Monitor:
    """Watch a loop over a loader: shardio's, torch's DataLoader, webdataset's WebLoader, any other.

    Args:
        loader: yields batches: mappings, sequences or tensors.
        live: show a line on standard error while the loop runs; by default on a terminal.
        budget: share of the reading's time that recording its stages may take.

    Returns:
        A context to loop over in place of the loader; see Monitor.
    """
    return Monitor(loader, live=live, budget=budget)


_NOTHING = object()


def count_samples(batch: Any) -> int:
    """Samples in a batch: the length of its first entry that has one; 1 if none has."""
    if isinstance(batch, Mapping):
        batch = [batch["__key__"]] if "__key__" in batch else [*batch.values()]
    entries = [batch] if hasattr(batch, "shape") else batch
    if isinstance(entries, Sequence):
        for entry in entries:
            if hasattr(entry, "__len__") and not isinstance(entry, str | bytes):
                try:
                    return len(entry)
                except TypeError:  # a tensor without dimensions
                    continue
    return 1


def _dataset_of(loader: Any) -> ShardDataset | None:
    """The dataset whose reading can be recorded, if it is one of shardio's."""
    found = loader
    for _ in range(3):  # DataLoader(Loader(dataset))
        if isinstance(found, ShardDataset):
            return found
        if not isinstance(found, Loader | torch.utils.data.DataLoader):
            return None
        found = found.dataset
    return None


def _cached_share(dataset: ShardDataset) -> float | None:
    """Of some of its shards."""
    shards = dataset.catalog.shards
    some = shards[:: max(len(shards) // _SHARDS_LOOKED_AT, 1)][:_SHARDS_LOOKED_AT]
    shares = [cached_share(shard.path) for shard in some]
    known = [share for share in shares if share is not None]
    return sum(known) / len(known) if known else None


def _count_producers(loader: Any) -> int:
    """Workers or threads, where the loader says; else 0."""
    if isinstance(loader, Loader):
        return loader.threads
    return int(getattr(loader, "num_workers", 0))


def _count_ahead(loader: Any) -> int:
    """Batches that a loader makes before the first is asked for, or nearly so."""
    if isinstance(loader, torch.utils.data.DataLoader):
        return int(loader.num_workers * (loader.prefetch_factor or 0))
    return _USUALLY_AHEAD


def _count_steps(loader: Any) -> int | None:
    try:
        return len(loader)
    except (TypeError, NotImplementedError):
        return None


def _slices(start: int, end: int, rows: Sequence[Received]) -> tuple[float, ...]:
    """Samples per second in equal parts of the time."""
    counts, width = [0] * _SLICES, (end - start) / _SLICES
    for row in rows:
        counts[min(int((row.came - start) / width), _SLICES - 1)] += row.samples
    return tuple(count / width * 1e9 for count in counts)


def _turns(rows: Sequence[Received], producers: int) -> tuple[float, ...]:
    """Which share of the waiting was for each producer, as they take turns."""
    waits = [0] * producers
    for row in rows:
        if producers:
            waits[row.number % producers] += row.came - row.asked
    total = max(sum(waits), 1)
    return tuple(wait / total for wait in waits)


def _with_filling(
    producers: Sequence[Producer], records: Sequence[ThreadRecords]
) -> tuple[Producer, ...]:
    shares = filling_shares(records)
    by_number: dict[int, float] = {}
    for (process, thread), share in shares.items():
        for number in (process, thread):
            by_number[number] = max(by_number.get(number, 0.0), share)
    return tuple(replace(one, filling=by_number.get(one.number)) for one in producers)
