"""From what was received, recorded and watched to the evidence: sums and shares."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from shardio.profiling.evidence import Evidence, Producer, filling_shares, stages_of
from shardio.profiling.loaders import LoaderFacts
from shardio.profiling.records import ThreadRecords
from shardio.profiling.watching import Watcher
from shardio.reading.processes import count_cores

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
