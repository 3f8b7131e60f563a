"""Watching a training loop: does it wait for data, and why?

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
from collections.abc import Iterable, Iterator
from dataclasses import replace
from time import perf_counter_ns, thread_time_ns
from typing import TYPE_CHECKING, Any

from shardio.errors import UsageError, quoted
from shardio.profiling.evidence import Evidence
from shardio.profiling.loaders import count_samples, look_at
from shardio.profiling.observing import Received, observe
from shardio.profiling.phrases import as_sentence
from shardio.profiling.records import Recorder, ThreadRecords
from shardio.profiling.verdict import Verdict, judge
from shardio.profiling.watching import Watcher
from shardio.reading.times import Stopwatch

if TYPE_CHECKING:
    from typing_extensions import Self

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
