"""What can be told of a loader before it runs.

From what was received, recorded and watched to the evidence: sums and shares.

Watching a training loop: does it wait for data, and why?

    with shardio.profiling.monitor(loader) as seen:
        for batch in seen:
            step(batch)
    print(seen)

What is measured begins when the batches that were made ahead are used up, since starting is no
steady state. Of shardio's own datasets the stages of reading are recorded too; of any other loader,
what the kernel says of its processes and threads must do.
"""

from __future__ import annotations

import sys
import textwrap
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from time import perf_counter_ns, thread_time_ns
from typing import TYPE_CHECKING, Any, NamedTuple

from torch.utils.data import DataLoader

from shardio.errors import UsageError, quoted
from shardio.processes import count_cores
from shardio.profiling.evidence import Evidence, Producer, ProducerKind, filling_shares, stages_of
from shardio.profiling.record import Recorder, ThreadRecords
from shardio.profiling.system import Watcher, cached_share
from shardio.profiling.verdict import Verdict, as_sentence, judge
from shardio.reading.dataset import ShardDataset
from shardio.reading.loader import Loader
from shardio.reading.mix import Mix
from shardio.reading.times import Stopwatch

if TYPE_CHECKING:
    from typing_extensions import Self

_SHARDS_LOOKED_AT = 8
_USUALLY_AHEAD = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class LoaderFacts:
    """A loader, as far as it says.

    Attributes:
        datasets: of shardio, whose reading can be recorded.
        kind: of producers; None where the loader does not say.
        number: of producers; 0 where it does not say, or the loop's own thread makes batches.
        ahead: batches made before the first is asked for, or nearly so.
        steps: of an epoch; None where it does not say.
        restarts: each epoch starts workers.
        cached: share of some shards that is in the page cache; None where that is not known.
        torch: a DataLoader makes the batches.
    """

    datasets: tuple[ShardDataset, ...]
    kind: ProducerKind | None
    number: int
    ahead: int
    steps: int | None
    restarts: bool
    cached: float | None
    torch: bool


def look_at(loader: Any) -> LoaderFacts:
    """Tell what a loader says of itself."""
    inner = _inside(loader)
    datasets = _datasets_of(inner)
    kind, number = _producers_of(inner)
    ahead = _USUALLY_AHEAD
    if isinstance(inner, DataLoader):
        ahead = inner.num_workers * (inner.prefetch_factor or 0)
    return LoaderFacts(
        datasets=datasets,
        kind=kind,
        number=number,
        ahead=ahead,
        steps=_count_steps(loader),
        restarts=kind == "processes" and not getattr(inner, "persistent_workers", False),
        cached=_cached_share(datasets),
        torch=isinstance(inner, DataLoader),
    )


def count_samples(batch: Any) -> int | None:
    """Samples in a batch; None if nothing tells.

    That is the number of its keys; or else the first dimension of its tensors and arrays, those of
    the outermost level first; or else the length of its first list.
    """
    if isinstance(batch, Mapping) and "__key__" in batch:
        keys = batch["__key__"]
        return 1 if isinstance(keys, str) else len(keys)
    if hasattr(batch, "shape"):
        return _first_dimension(batch)
    entries = _entries_of(batch)
    own = [size for entry in entries if (size := _first_dimension(entry)) is not None]
    if own:
        return own[0]
    nested = {size for entry in entries if (size := count_samples(entry)) is not None}
    lists = [len(entry) for entry in entries if isinstance(entry, Sequence) and _entries_of(entry)]
    if len(nested) == 1 and any(map(_has_tensors, entries)):
        return nested.pop()
    return lists[0] if lists else next(iter(nested), None)


def _entries_of(batch: Any) -> list[Any]:
    if isinstance(batch, Mapping):
        return [*batch.values()]
    return [*batch] if isinstance(batch, Sequence) and not isinstance(batch, str | bytes) else []


def _first_dimension(entry: Any) -> int | None:
    shape = getattr(entry, "shape", None)
    return int(shape[0]) if shape is not None and len(shape) else None


def _has_tensors(batch: Any) -> bool:
    return _first_dimension(batch) is not None or any(map(_has_tensors, _entries_of(batch)))


def _inside(loader: Any) -> Any:
    """The DataLoader that webdataset's WebLoader wraps, as the first stage of a pipeline."""
    stages = getattr(loader, "pipeline", None)
    if isinstance(stages, list) and stages and isinstance(stages[0], DataLoader):
        return stages[0]
    return loader


def _datasets_of(loader: Any) -> tuple[ShardDataset, ...]:
    found = loader
    while isinstance(found, Loader | DataLoader):  # DataLoader(Loader(dataset))
        found = found.dataset
    if isinstance(found, Mix):
        return tuple(dict.fromkeys(found.sources))
    return (found,) if isinstance(found, ShardDataset) else ()


def _producers_of(loader: Any) -> tuple[ProducerKind | None, int]:
    if isinstance(loader, Loader):
        return "threads", loader.threads
    if isinstance(loader, ShardDataset | Mix):
        return "here", 0
    if isinstance(loader, DataLoader):
        return ("processes", loader.num_workers) if loader.num_workers else ("here", 0)
    return None, 0


def _count_steps(loader: Any) -> int | None:
    stages = getattr(loader, "pipeline", None)
    if not hasattr(loader, "__len__") and isinstance(stages, list) and len(stages) == 1:
        loader = _inside(loader)  # nothing after it makes other batches
    try:
        return len(loader)
    except (TypeError, NotImplementedError):
        return None


def _cached_share(datasets: Sequence[ShardDataset]) -> float | None:
    shards = [shard.path for dataset in datasets for shard in dataset.catalog.shards]
    some = shards[:: max(len(shards) // _SHARDS_LOOKED_AT, 1)][:_SHARDS_LOOKED_AT]
    known = [share for share in map(cached_share, some) if share is not None]
    return sum(known) / len(known) if known else None


_SLICES = 5
_AT_ONCE = 0.05  # of a mean batch's time; who waits less did not wait


class Received(NamedTuple):
    """A batch.

    Attributes:
        number: in its epoch.
        asked: when the loop asked for it, ns of perf_counter_ns.
        came: when it was there.
        cpu: ns that the loop's thread ran meanwhile.
        samples: in it; 0 where nothing tells.
    """

    number: int
    asked: int
    came: int
    cpu: int
    samples: int


def observe(
    received: Sequence[Received],
    end: int,
    facts: LoaderFacts,
    records: Sequence[ThreadRecords],
    watcher: Watcher,
    first_batch: float,
) -> Evidence:
    """Put together what was seen.

    Args:
        received: batches, at least two; the first one begins what is observed.
        end: when the last step ended, ns of perf_counter_ns.
        facts: of the loader.
        records: of shardio's own reading meanwhile.
        watcher: of the processes.
        first_batch: seconds until the first batch of all was there.
    """
    counted = any(row.samples for row in received)
    first, *rows = received if counted else [row._replace(samples=1) for row in received]
    end = max(end, rows[-1].came)
    seconds = max(end - first.came, 1) / 1e9
    kind, producers = watcher.producers(facts.kind)
    number = facts.number or watcher.at_once(kind, producers)
    waits = [(row.came - row.asked) / 1e9 for row in rows]
    from_disk, sent, faults = watcher.moved() or (None, None, None)
    stages = stages_of(records)
    return Evidence(
        cores=count_cores(),
        kind=kind,
        producers=_with_filling(producers, records),
        number=number,
        seconds=seconds,
        batches=len(rows),
        samples=sum(row.samples for row in rows),
        slices=_slices(first.came, end, rows),
        waiting=sum(waits) / seconds,
        receiving=sum(row.cpu for row in rows) / 1e9 / seconds,
        ready=sum(wait < _AT_ONCE * seconds / len(rows) for wait in waits) / len(rows),
        turns=_turns(rows, number if kind == "processes" else 0),
        first_batch=first_batch,
        starting=_starting(rows, seconds, facts, first_batch),
        restarts=facts.restarts,
        steps=facts.steps,
        lock_wait=watcher.lock_wait(),
        cached=facts.cached,
        from_disk=from_disk,
        sent=sent,
        faults=faults,
        memory=watcher.memory,
        watching=watcher.own_share(),
        stages=stages,
        unit="samples" if counted else "batches",
        ours=bool(facts.datasets),
        torch=facts.torch,
    )


def _starting(
    rows: Sequence[Received], seconds: float, facts: LoaderFacts, first_batch: float
) -> float:
    """Which share of an epoch passes before its first batch, beyond what any batch waits for."""
    steady = max(facts.ahead, 1)
    waits = [(row.came - row.asked) / 1e9 for row in rows if row.number >= steady]
    usual = sum(waits) / len(waits) if waits else 0.0
    starts = [(row.came - row.asked) / 1e9 for row in rows if not row.number]
    if starts:
        return min(sum(max(start - usual, 0.0) for start in starts) / seconds, 1.0)
    epoch = (facts.steps or len(rows)) * seconds / len(rows)
    start = max(first_batch - usual, 0.0)
    return start / (start + epoch)


def _slices(start: int, end: int, rows: Sequence[Received]) -> tuple[float, ...]:
    """Samples per second in equal parts of the time."""
    counts, width = [0] * _SLICES, max(end - start, _SLICES) / _SLICES
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


_BUDGET = 0.005  # of the reading, for recording
_MOST_BATCHES = 100_000  # that are remembered, the last ones
_LEAST_BATCHES = 2  # of the steady state, or else those that were made ahead count
_WIDTH = 80  # of what is printed
_BATCHES_SHOWN = 200  # on a line
_SECONDS_BETWEEN_LINES = 3.0


class Monitor:
    """Passes the batches of a loader on, and watches; a context that is looped over.

    Args:
        loader: yields batches.
        live: show a line while the loop runs; None does on a terminal.
        budget: share of the reading's time that recording its stages may take.

    Attributes:
        received: the last batches; until two of the steady state came, all of them.
        records: of shardio's own reading, when the context has ended.
    """

    def __init__(self, loader: Iterable[Any], *, live: bool | None, budget: float) -> None:
        if not any(hasattr(loader, name) for name in ("__iter__", "__getitem__")):
            raise UsageError(
                f"monitor() got {quoted(loader)}, which cannot be looped over: give it a loader"
            )
        self._loader = loader
        self._live = sys.stderr.isatty() if live is None else live
        self._budget = budget
        self._facts = look_at(loader)
        self._watcher: Watcher | None = None
        self._recorder: Recorder | None = None
        self._count = 0
        self._steady: int | None = None
        self._steady_count = 0
        self._end = 0
        self._ended = False
        self._first_batch: float | None = None
        self._next_line = self._next_reading = 0.0
        self._known = ""
        self._shown = False
        self._evidence: Evidence | None = None
        self.received = deque[Received](maxlen=_MOST_BATCHES)
        self.records: list[ThreadRecords] = []

    def __enter__(self) -> Self:
        datasets = self._facts.datasets
        if self._watcher is not None:
            raise UsageError("the monitor has been used: make another for the next loop")
        if any(dataset.stopwatch is not Stopwatch for dataset in datasets):
            raise UsageError("the dataset is watched already: leave the other monitor first")
        if datasets:
            self._recorder = Recorder(self._budget)
            for dataset in datasets:
                dataset.stopwatch = self._recorder
        self._watcher = Watcher(self._budget / 2)
        return self

    def __exit__(self, *_: object) -> None:
        if self._watcher is not None:
            self._watcher.close()
        self._read_records()
        for dataset in self._facts.datasets:
            dataset.stopwatch = Stopwatch
        if self._recorder is not None:
            self._recorder.close()
            self._recorder = None
        if self._shown:
            sys.stderr.write("\n")
        self._ended = True
        self._evidence = self._observe()

    def with_steps(self, steps: int) -> Self:
        """Take an epoch to have so many steps, whatever the loader says; returns itself."""
        self._facts = replace(self._facts, steps=steps)
        return self

    def __iter__(self) -> Iterator[Any]:
        if self._watcher is None:
            raise UsageError("loop over the monitor inside its context: with monitor(…) as seen:")
        if self._ended:
            raise UsageError(
                "the monitor's context has ended: make another monitor for the next loop"
            )
        batches, number = iter(self._loader), 0
        while True:
            asked, cpu = perf_counter_ns(), thread_time_ns()
            batch = next(batches, _NOTHING)
            came = perf_counter_ns()
            if batch is _NOTHING:
                return
            cpu = thread_time_ns() - cpu
            self._note(Received(number, asked, came, cpu, count_samples(batch) or 0))
            number += 1
            place = [batch]  # only the loop keeps a batch, so that its memory is lent again
            del batch
            try:
                yield place.pop()
            except GeneratorExit:  # the loop is left while its workers live
                self._end = perf_counter_ns()
                if self._watcher.memory is None:
                    self._watcher.look_at_memory()
                raise
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
            raise UsageError(self._say_what_lacks())
        return self._evidence

    @property
    def verdict(self) -> Verdict:
        """What limits the loop; raises as evidence does."""
        return judge(self.evidence)

    @property
    def seconds(self) -> float:
        """That were observed so far, in the steady state."""
        if self._steady is None:
            return 0.0
        end = max(self._end, self.received[-1].came) if self._ended else perf_counter_ns()
        return (end - self._steady) / 1e9

    def __str__(self) -> str:
        if self._evidence is None:
            return as_sentence(self._say_what_lacks())
        evidence, verdict = self.evidence, self.verdict
        waited = f"The loop waited for data {evidence.waiting:.1%} of the time."
        lines = [
            as_sentence(verdict.sentence),
            *([] if verdict.bottleneck in {"step", "prefetch"} else [waited]),
            *(f"- {as_sentence(change.text)}" for change in verdict.changes),
        ]
        return "\n".join(map(_wrapped, lines))

    def __repr__(self) -> str:
        return str(self) if self._ended else f"<Monitor of {type(self._loader).__name__}>"

    def _say_what_lacks(self) -> str:
        if not self._ended:
            return (
                "the monitor's context has not ended: loop over the monitor inside it, and ask "
                "after its end what limits the loop"
            )
        batches = "1 batch" if self._count == 1 else f"{self._count} batches"
        return f"the monitor has seen {batches}, too few to tell what limits the loop: give it 2"

    def _note(self, batch: Received) -> None:
        """Remember a batch; what begins with the last of those that were made ahead is steady."""
        again = batch.number == 0 and self._first_batch is not None
        if self._first_batch is None:
            self._first_batch = (batch.came - batch.asked) / 1e9
        self._count += 1
        self.received.append(batch)
        if self._steady is None:
            if batch.number < self._facts.ahead and not again:
                return
            self._steady = batch.came
            if self._watcher is not None:
                self._watcher.restart()
        self._steady_count += 1
        if self._steady_count == _LEAST_BATCHES:
            last = [*self.received][-_LEAST_BATCHES:]
            self.received.clear()
            self.received.extend(last)

    def _show(self) -> None:
        now = time.perf_counter()
        if now < self._next_line or self._steady_count < _LEAST_BATCHES:
            return
        self._next_line = now + _SECONDS_BETWEEN_LINES
        rows = [*self.received][-_BATCHES_SHOWN:]
        seconds = (self._end - rows[0].came) / 1e9
        waiting = sum(row.came - row.asked for row in rows[1:]) / 1e9 / seconds
        rate = sum(row.samples for row in rows[1:]) / seconds
        self._judge_now_and_then()
        unit = "samples" if rate else "batches"
        rate = rate or (len(rows) - 1) / seconds
        line = f"waiting {waiting:5.1%} of the time, {rate:,.0f} {unit}/s{self._known}"
        sys.stderr.write(f"\r{line[:79]:<79}")
        sys.stderr.flush()
        self._shown = True

    def _judge_now_and_then(self) -> None:
        """Read what is recorded and judge it, if the budget allows that; the step waits for it."""
        start = time.perf_counter()
        if start < self._next_reading:
            return
        self._read_records()
        if (evidence := self._observe()) is not None:
            self._known = f"; {judge(evidence).short}"
        end = time.perf_counter()
        self._next_reading = end + (end - start) / self._budget

    def _read_records(self) -> None:
        if self._recorder is not None and self.received:
            self.records = self._recorder.read(since=self.received[0].came)

    def _observe(self) -> Evidence | None:
        watcher, first, rows = self._watcher, self._first_batch, [*self.received]
        if watcher is None or first is None or len(rows) < 2:
            return None
        return observe(rows, self._end, self._facts, self.records, watcher, first)


def monitor(loader: Iterable[Any], *, live: bool | None = None, budget: float = _BUDGET) -> Monitor:
    """Watch a loop over a loader: shardio's, torch's DataLoader, webdataset's WebLoader, any other.

    Args:
        loader: yields batches: mappings, sequences or tensors.
        live: show a line on standard error while the loop runs; by default on a terminal.
        budget: share of the reading's time that recording its stages may take.

    Returns:
        A context to loop over in place of the loader; see Monitor.

    Raises:
        UsageError: the loader cannot be looped over.
    """
    return Monitor(loader, live=live, budget=budget)


def _wrapped(line: str) -> str:
    rest = "  " if line.startswith("- ") else ""
    return textwrap.fill(line, _WIDTH, subsequent_indent=rest, break_on_hyphens=False)


_NOTHING = object()
