"""Watching a training loop: does it wait for data, and why?

    with shardio.profiling.monitor(loader) as seen:
        for batch in seen:
            step(batch)
    print(seen)

Before the loop, `look_at` asks the loader what it is. During the loop, `Monitor` passes its batches
on and notes when each was asked for and received. Observing begins when the batches made ahead are
used up, since starting is not a steady state. Of shardio's own datasets the stages of reading are
recorded, too; of any other loader there is only what the kernel says of processes and threads.
`observe` puts all of this together as Evidence.
"""

from __future__ import annotations

import sys
import textwrap
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from time import perf_counter_ns, thread_time_ns
from typing import TYPE_CHECKING, Any, NamedTuple

from torch.utils.data import DataLoader

from shardio.errors import UsageError, counted, quoted
from shardio.fields.formats import IMAGE_FIELDS
from shardio.processes import count_cores, terminal_width
from shardio.profiling.claims import judge_watched
from shardio.profiling.evidence import (
    Evidence,
    Producer,
    ProducerKind,
    Recorder,
    Stages,
    ThreadRecords,
    stages_of,
)
from shardio.profiling.report import STAGE_TITLES, stage_rows
from shardio.profiling.store import is_cached
from shardio.profiling.system import OtherLoad, Watcher, cached_share
from shardio.profiling.verdict import Verdict
from shardio.reading.dataset import ShardDataset
from shardio.reading.loader import Loader
from shardio.reading.mapping import name_of
from shardio.reading.mix import Mix
from shardio.transforms import SizedTransform

if TYPE_CHECKING:
    from typing_extensions import Self

_SHARDS_LOOKED_AT = 8
_USUALLY_AHEAD = 3
_SLICES = 5
_AT_ONCE = 0.05  # of a mean batch's time; a shorter wait is none
_BUDGET = 0.005  # share of the reading's time, for recording
_MOST_BATCHES = 100_000  # remembered, the last ones
_LEAST_BATCHES = 2  # of the steady state; with fewer, those made ahead count
_WIDTH = 80  # columns
_BATCHES_SHOWN = 200  # on a line
_SECONDS_BETWEEN_LINES = 3.0
_NOTHING = object()
_OF_THE_LOADER = "restarts", "steps", "cached", "torch", "remote", "transform", "maps", "whole"
"""Facts of a loader that are evidence as they are."""
_NOT_ENTERED = "the monitor's context has not been entered"
_ENTER = "loop over it inside its context: with monitor(…) as seen:"


@dataclass(frozen=True, slots=True, kw_only=True)
class LoaderFacts:
    """A loader's description of itself.

    Attributes:
        datasets: datasets of shardio that it reads, which can be recorded.
        kind: kind of the producers; None where the loader does not say.
        number: number of producers; 0 where it does not say, and for the loop's own thread.
        ahead: number of batches made before the first is asked for, roughly.
        steps: number of steps of an epoch; None where it does not say.
        restarts: whether each epoch starts workers.
        cached: share of some shards that is in the page cache, or of a store's, in the cache of
            shards; None where not known.
        torch: whether a DataLoader makes the batches.
        remote: whether shards are of a store.
        transform, maps, whole: what is done to samples, see Evidence.
    """

    datasets: tuple[ShardDataset, ...]
    kind: ProducerKind | None
    number: int
    ahead: int
    steps: int | None
    restarts: bool
    cached: float | None
    torch: bool
    remote: bool = False
    transform: str | None = None
    maps: tuple[str, ...] = ()
    whole: bool = False

    @property
    def starting(self) -> int:
        """Number of batches before the steady state; none where the loop waits for a store."""
        return 0 if self.remote and self.cached != 1 else self.ahead


def look_at(loader: Any, datasets: Sequence[ShardDataset] | None = None) -> LoaderFacts:
    """Ask a loader what it is.

    Args:
        loader: anything that yields batches.
        datasets: datasets that it reads; None to find them.
    """
    inner = _inside(loader)
    datasets = _datasets_of(inner) if datasets is None else tuple(datasets)
    kind, number = _producers_of(inner)
    remote = any(dataset.catalog.is_remote for dataset in datasets)
    ahead = _USUALLY_AHEAD
    if isinstance(inner, DataLoader):
        ahead = inner.num_workers * (inner.prefetch_factor or 0)
    elif isinstance(inner, Loader) and inner.workers:
        ahead = inner.workers * inner._prefetch
    return LoaderFacts(
        datasets=datasets,
        kind=kind,
        number=number,
        ahead=ahead,
        steps=_count_steps(loader),
        restarts=kind == "processes" and not getattr(inner, "persistent_workers", False),
        cached=_cached_share(datasets),
        **_work_of(datasets),
        torch=isinstance(inner, DataLoader),
        remote=remote,
    )


def count_samples(batch: Any) -> int | None:
    """Count the samples in a batch; None if nothing tells.

    They are as many as its keys; or else the first dimension of its tensors and arrays, those of
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
    """Return the DataLoader that a WebLoader of webdataset wraps, as its pipeline's first stage."""
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
        return ("processes", loader.workers) if loader.workers else ("threads", loader.threads)
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


def _work_of(datasets: Sequence[ShardDataset]) -> dict[str, Any]:
    """Say what the datasets do to samples, as LoaderFacts."""
    maps: list[Any] = []
    given = [dataset.transform for dataset in datasets if dataset._buckets is None]
    for dataset in datasets:
        if (functions := dataset._arguments["map"]) is not None:
            maps += functions if isinstance(functions, list | tuple) else [functions]
    own = [each for each in given if each is not None and not isinstance(each, SizedTransform)]
    images = any({*names} & IMAGE_FIELDS for one in datasets for names in one.fields.values())
    return {
        "transform": name_of(own[0]) if own else None,
        "maps": tuple(dict.fromkeys(map(name_of, maps))),
        "whole": images and (bool(own) or None in given),
    }


def _cached_share(datasets: Sequence[ShardDataset]) -> float | None:
    shards = [shard for dataset in datasets for shard in dataset.catalog.shards]
    some = shards[:: max(len(shards) // _SHARDS_LOOKED_AT, 1)][:_SHARDS_LOOKED_AT]
    shares = (
        cached_share(shard.path) if shard.remote is None else float(is_cached(shard))
        for shard in some
    )
    known = [share for share in shares if share is not None]
    return sum(known) / len(known) if known else None


class Received(NamedTuple):
    """A received batch.

    Attributes:
        number: number of the batch in its epoch.
        asked: time when the loop asked for it, by perf_counter_ns.
        came: time when the loop received it.
        cpu: CPU time of the loop's thread in between, ns.
        samples: number of samples in it; 0 where nothing tells.
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
    others: float | None,
) -> Evidence:
    """Put together what was observed.

    Args:
        received: batches, at least two; observing begins with the first.
        end: time when the last step ended, by perf_counter_ns.
        facts: description of the loader.
        records: records of shardio's own reading meanwhile.
        watcher: watcher of the processes.
        first_batch: seconds until the very first batch.
        others: mean number of cores that others kept busy; None where not known.
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
    samples = sum(row.samples for row in rows)
    if stages is not None and kind == "here" and samples:
        stages = _without_step(stages, sum(row.cpu for row in rows) / samples / 1e3)
    return Evidence(
        cores=count_cores(),
        kind=kind,
        producers=_with_filling(producers, records),
        number=number,
        seconds=seconds,
        batches=len(rows),
        samples=samples,
        slices=_slices(first.came, end, rows),
        waiting=sum(waits) / seconds,
        receiving=sum(row.cpu for row in rows) / 1e9 / seconds,
        ready=sum(wait < _AT_ONCE * seconds / len(rows) for wait in waits) / len(rows),
        turns=_turns(rows, number if kind == "processes" else 0),
        first_batch=first_batch,
        starting=_starting(rows, seconds, facts, first_batch),
        lock_wait=watcher.lock_wait(),
        from_disk=from_disk,
        sent=sent,
        faults=faults,
        memory=watcher.memory,
        watching=watcher.own_share(),
        stages=stages,
        unit="samples" if counted else "batches",
        ours=bool(facts.datasets),
        others=others,
        **{name: getattr(facts, name) for name in _OF_THE_LOADER},
    )


def _without_step(stages: Stages, asking: float) -> Stages:
    """Return the stages of the loop's own thread, whose step runs between its chunks.

    Args:
        stages: stages with the CPU time of the step in that between chunks.
        asking: CPU time of a sample in which the loop asked for batches, in microseconds.
    """
    outside = min(stages.outside, max(asking - stages.cpu, 0.0))
    return replace(stages, outside=outside, waiting=stages.waiting + stages.outside - outside)


def _starting(
    rows: Sequence[Received], seconds: float, facts: LoaderFacts, first_batch: float
) -> float:
    """Return the share of an epoch before its first batch, beyond the wait for any batch."""
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
    """Return samples per second in equal parts of the time."""
    counts, width = [0] * _SLICES, max(end - start, _SLICES) / _SLICES
    for row in rows:
        counts[min(int((row.came - start) / width), _SLICES - 1)] += row.samples
    return tuple(count / width * 1e9 for count in counts)


def _turns(rows: Sequence[Received], producers: int) -> tuple[float, ...]:
    """Return the share of the waiting for each producer, as they take turns."""
    waits = [0] * producers
    for row in rows:
        if producers:
            waits[row.number % producers] += row.came - row.asked
    total = max(sum(waits), 1)
    return tuple(wait / total for wait in waits)


def _with_filling(
    producers: Sequence[Producer], records: Sequence[ThreadRecords]
) -> tuple[Producer, ...]:
    """Add the share of the time in which each process or thread filled batches."""
    by_number: dict[int, float] = {}
    for thread in records:
        if len(chunks := thread.chunks) > 1:
            walls = chunks["wall"][:, 0]
            whole = int(chunks["start"][-1] + walls[-1] - chunks["start"][0])
            share = float(walls.sum()) / max(whole, 1)
            for number in (thread.process, thread.thread):
                by_number[number] = max(by_number.get(number, 0.0), share)
    return tuple(replace(one, filling=by_number.get(one.number)) for one in producers)


class Monitor:
    """Context that is looped over in place of a loader, and watches the loop.

    Args:
        loader: loader of batches.
        live: whether a line is shown while the loop runs; None for on a terminal.
        budget: share of the reading's time that recording its stages may take.
        facts: description of the loader; None to ask it.

    Attributes:
        received: last received batches; all of them until two of the steady state have come.
        records: records of shardio's own reading, once the context has ended.
    """

    def __init__(
        self,
        loader: Iterable[Any],
        *,
        live: bool | None,
        budget: float,
        facts: LoaderFacts | None = None,
    ) -> None:
        if not any(hasattr(loader, name) for name in ("__iter__", "__getitem__")):
            raise UsageError(
                f"monitor() got {quoted(loader)}, which cannot be looped over",
                remedy="give it a loader",
            )
        self._loader = loader
        self._live = sys.stderr.isatty() if live is None else live
        self._budget = budget
        self._facts = facts or look_at(loader)
        self._watcher: Watcher | None = None
        self._recorder: Recorder | None = None
        self._load: OtherLoad | None = None
        self._exits = ExitStack()
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
        if self._watcher is not None:
            raise UsageError(
                "the monitor has been used", remedy="make another one for the next loop"
            )
        with ExitStack() as stack:
            if self._facts.datasets:
                self._recorder = Recorder(self._budget)
                stack.callback(self._recorder.close)
                for dataset in self._facts.datasets:
                    stack.enter_context(dataset.timed_by(self._recorder))
            self._watcher, self._load = Watcher(self._budget / 2), OtherLoad()
            stack.callback(self._read_records)
            stack.callback(self._watcher.close)
            self._exits = stack.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._exits.close()
        self._recorder = None
        if self._shown:
            sys.stderr.write("\n")
        self._ended = True
        self._evidence = self._observe()
        if kind is not None and issubclass(kind, KeyboardInterrupt):  # nothing after it runs
            sys.stderr.write(f"{self}\n")

    def __iter__(self) -> Iterator[Any]:
        if self._watcher is None:
            raise UsageError(_NOT_ENTERED, remedy=_ENTER)
        if self._ended:
            raise UsageError(
                "the monitor's context has ended", remedy="make another one for the next loop"
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
        """What was observed so far.

        Raises:
            UsageError: the context has not been entered, or fewer than two batches came.
        """
        found = self._evidence
        if found is None and not self._ended:
            self._read_records()
            found = self._observe()
        if found is None:
            raise self._too_early()
        return found

    @property
    def verdict(self) -> Verdict:
        """What limits the loop, or why that is not known; see evidence for the errors."""
        return judge_watched(self.evidence)

    @property
    def seconds(self) -> float:
        """Seconds observed so far, in the steady state."""
        if self._steady is None:
            return 0.0
        end = max(self._end, self.received[-1].came) if self._ended else perf_counter_ns()
        return (end - self._steady) / 1e9

    def __str__(self) -> str:
        try:
            evidence = self.evidence
        except UsageError as error:
            return str(error)
        verdict = judge_watched(evidence)
        waited = f"The loop waited for data {evidence.waiting:.1%} of the time."
        stages = evidence.stages
        lines = [
            verdict.sentence,
            *([] if verdict.bottleneck in {"step", "prefetch"} else [waited]),
            *([_waits_of(evidence, stages)] if stages is not None else []),
            *(f"- {change.text}" for change in verdict.changes),
        ]
        return "\n".join([*map(_wrapped, lines), *_table_of(stages)])

    def __repr__(self) -> str:
        return str(self) if self._ended else f"<Monitor of {type(self._loader).__name__}>"

    def _too_early(self) -> UsageError:
        if self._watcher is None:
            return UsageError(_NOT_ENTERED, remedy=_ENTER)
        return UsageError(
            f"the monitor has seen {counted(self._count, 'batch', 'batches')}, too few to tell "
            "what limits the loop",
            remedy="give it at least two",
        )

    def _note(self, batch: Received) -> None:
        """Remember a batch; the steady state begins with the last of those that were made ahead."""
        again = batch.number == 0 and self._first_batch is not None
        if self._first_batch is None:
            self._first_batch = (batch.came - batch.asked) / 1e9
        self._count += 1
        self.received.append(batch)
        if self._steady is None:
            if batch.number < self._facts.starting and not again:
                return
            self._steady = batch.came
            if self._watcher is not None:
                self._watcher.restart()
                self._load = OtherLoad()
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
        width = min(terminal_width(error=True), _WIDTH) - 1
        sys.stderr.write(f"\r{line[:width]:<{width}}")
        sys.stderr.flush()
        self._shown = True

    def _judge_now_and_then(self) -> None:
        """Read the records and judge them if the budget allows; the step waits for it."""
        start = time.perf_counter()
        if start < self._next_reading:
            return
        self._read_records()
        if (evidence := self._observe()) is not None:
            verdict = judge_watched(evidence)
            self._known = f"; {verdict.short}" if verdict.bottleneck else ""
        end = time.perf_counter()
        self._next_reading = end + (end - start) / self._budget

    def _read_records(self) -> None:
        if self._recorder is not None and self.received:
            self.records = self._recorder.read(since=self.received[0].came)

    def _observe(self) -> Evidence | None:
        watcher, first, rows = self._watcher, self._first_batch, [*self.received]
        if watcher is None or first is None or len(rows) < 2:
            return None
        others = self._load.cores() if self._load else None
        return observe(rows, self._end, self._facts, self.records, watcher, first, others)


def monitor(loader: Iterable[Any], *, live: bool | None = None, budget: float = _BUDGET) -> Monitor:
    """Watch a loop over a loader: shardio's, torch's DataLoader, webdataset's WebLoader, any other.

    Args:
        loader: loader of batches, which are mappings, sequences or tensors.
        live: whether a line on standard error is shown while the loop runs; by default on a
            terminal.
        budget: share of the reading's time that recording its stages may take.

    Returns:
        The context to loop over in place of the loader; see Monitor.

    Raises:
        UsageError: the loader cannot be looped over.
    """
    return Monitor(loader, live=live, budget=budget)


def _waits_of(seen: Evidence, stages: Stages) -> str:
    return (
        f"Of the {stages.total:,.0f} µs of a sample, its thread waited {seen.for_core:,.0f} for a "
        f"core and {seen.for_lock:,.0f} for the interpreter's lock."
    )


def _table_of(stages: Stages | None) -> list[str]:
    """Return the lines of the table of stages."""
    if stages is None:
        return []
    rows = [(f"{STAGE_TITLES[0]}, µs", *STAGE_TITLES[1:]), *stage_rows(stages)]
    first, *widths = (max(map(len, column)) for column in zip(*rows, strict=True))
    return [
        "",
        *(
            "  ".join([row[0].ljust(first), *map(str.rjust, row[1:], widths)]).rstrip()
            for row in rows
        ),
    ]


def _wrapped(line: str) -> str:
    rest = "  " if line.startswith("- ") else ""
    return textwrap.fill(line, _WIDTH, subsequent_indent=rest, break_on_hyphens=False)
