"""The verdict: what limits a loop, in one sentence, and what to change.

Pure functions of what was observed. The rules are tried in order, and the first that applies names
the bottleneck: what the loop does before what its producers do, a wrong number of producers before
what each of them does. `judge` is for a loop of which nothing else is known. `advise` also knows
what the machine can do, and gives changes with the gain that the costs of a sample let expect.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Literal, get_args

from shardio.errors import counted
from shardio.profiling.costs import SampleCosts, predict
from shardio.profiling.evidence import (
    Ceilings,
    Evidence,
    Producer,
    ProducerKind,
    Stages,
)
from shardio.profiling.settings import ProfileSettings
from shardio.profiling.store import LARGE_SHARD, StoreLimits
from shardio.storage.downloads import CONNECTIONS

Bottleneck = Literal[
    "step",
    "start",
    "handover",
    "opencv",
    "cores",
    "worker",
    "storage",
    "cold",
    "store",
    "lock",
    "prefetch",
    "decode",
    "transform",
    "loader",
    "workers",
]
"""What may limit a loop, in the order of the rules; docs/pages/explanation/profile.md has them."""

WAITS_LITTLE = 0.05  # share of the time
_STARTS_LONG = 0.3  # share of an epoch
_RECEIVES_LONG = 0.4  # share of the time
_SENDS_MUCH = 3e8  # bytes a second; a core pickles, writes and reads about three times that
_SECONDS_OF_A_FAULT = 1e-6  # to get a page, clear it and fill it
_FAULTS_MUCH = 0.2  # share of the workers' CPU time
_DELAYED = 0.25  # share of the time that threads could have run
_ONE_BEHIND = 0.35  # difference in the share of the time that batches are filled
_IDLE = 0.25  # share of the time
_BLOCKED = 0.4  # share of a sample's time
_LOCKED = 0.25  # share of a sample's time
_THREADS_A_WORKER = 1.5  # on average; one besides sends batches
_MOSTLY = 0.7
_BUSY = 0.5  # share of the cores
_THREAD_BUSY = 0.1  # share of the time
_LOCK_HELD_LONG = 0.002  # seconds; half the interpreter's switch interval
_LEAST_GAIN = 1.05
_MARGIN = 8 / 7  # side that an image is packed with over that of its crop: 256 to 224
_TINY = 64  # pixels; smaller images can be stored raw without a thought
_PLACE_BOUND: frozenset[Bottleneck] = frozenset(
    {"step", "start", "worker", "storage", "cold", "store"}
)
"""Bottlenecks that other threads, workers or cores do not remove."""


_KINDS: tuple[ProducerKind, ...] = get_args(ProducerKind)


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """Something that may help.

    Attributes:
        text: instruction, without a full stop.
        gain: expected rate over the present one; None where not known.
    """

    text: str
    gain: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What limits a loop.

    Attributes:
        bottleneck: name of it; None where the measurements do not tell.
        sentence: description of it, with figures; or why there is none, and what to do.
        short: description of it, in a few words.
        rate_without: samples per second without this bottleneck, if nothing else changed; None
            where not known.
        changes: changes that may help, the most helpful first.
    """

    bottleneck: Bottleneck | None
    sentence: str
    short: str
    rate_without: float | None
    changes: tuple[Change, ...]

    @classmethod
    def withheld(cls, sentence: str) -> Verdict:
        """Make a verdict that says why there is none."""
        return cls(
            bottleneck=None, sentence=sentence, short="not known", rate_without=None, changes=()
        )


def judge(evidence: Evidence) -> Verdict:
    """Name what limits a loop, with general advice."""
    verdict = _diagnose(evidence)
    more = _more(evidence) if verdict.bottleneck in {*_GENERAL, "workers"} else ()
    return replace(
        verdict, changes=(*verdict.changes, *more, *_GENERAL.get(verdict.bottleneck, ()))
    )


def advise(
    seen: Evidence,
    costs: SampleCosts,
    ceilings: Ceilings,
    settings: ProfileSettings,
    measured: Mapping[tuple[ProducerKind, int], float],
    store: StoreLimits | None = None,
    predictable: Collection[ProducerKind] = _KINDS,
) -> Verdict:
    """Name what limits a measured loop, with the gains to expect of changes.

    Args:
        seen: observations of the loop.
        costs: costs of a sample, at the speed that the machine had then.
        ceilings: limits of the machine.
        settings: settings of the measurement.
        measured: samples per second of all measured loops, by kind and number of producers.
        store: limits of the store, if the shards are of one; the loops were measured with shards
            in the cache.
        predictable: kinds of producers whose rates can be predicted; no other gain is promised.
    """
    verdict, known = _diagnose(seen), seen.kind in predictable
    if store is not None and store.samples_per_second < seen.rate:
        found = _first_epoch(verdict, seen, store)
        return found if known else _without_gains(found)
    if not known:
        return _without_gains(judge(seen))
    changes = [*verdict.changes]
    if verdict.bottleneck not in _PLACE_BOUND:
        packing = [*_packing(verdict, seen.rate, costs, ceilings, settings)]
        general = () if packing else _GENERAL.get(verdict.bottleneck, ())
        topologies = _topologies(seen, costs, measured, predictable)
        changes += [*general, *topologies, *packing]
    most = 1e6 / costs.step if settings.has_step else math.inf
    changes = [_limited(change, most / seen.rate) for change in changes]
    changes = [change for change in changes if change.gain is None or change.gain >= _LEAST_GAIN]
    changes.sort(key=lambda change: -(change.gain or 0))
    without = verdict.rate_without
    if without is not None and verdict.bottleneck != "step":
        without = max(min(without, most), seen.rate)
    return replace(verdict, changes=tuple(changes), rate_without=without)


def _diagnose(evidence: Evidence) -> Verdict:
    """Name what limits a loop, with the changes that this bottleneck alone suggests."""
    for rule in _RULES:
        verdict = rule(evidence)
        if verdict is not None:
            return verdict
    return _stages(evidence)


def _step(seen: Evidence) -> Verdict | None:
    if seen.waiting >= WAITS_LITTLE:
        return None
    busiest = max((_filling(one) for one in seen.producers), default=None)
    spare = f"; the loader is busy {busiest:.0%} of the time" if busiest is not None else ""
    return Verdict(
        bottleneck="step",
        sentence=f"The step limits this loop to {_rate(seen)}: the loop waits for data "
        f"{seen.waiting:.1%} of the time{spare}.",
        short="the step limits",
        rate_without=seen.rate / busiest if busiest else None,
        changes=(Change(text="Make the step faster; the loader is not the limit", gain=None),),
    )


def _start(seen: Evidence) -> Verdict | None:
    if seen.starting <= _STARTS_LONG:
        return None
    without = seen.rate / (1 - min(seen.starting, 0.99))
    what = f"starting the {_name(seen)}" if seen.kind == "processes" else "the first batch"
    steps = f" of {counted(seen.steps, 'step')}" if seen.steps else ""
    changes = [
        Change(text="Use shardio.Loader, whose threads start faster than workers", gain=None)
    ]
    after = _diagnose(replace(seen, starting=0.0)).short
    if seen.restarts:
        text = "Use persistent_workers=True, which keeps workers across epochs"
        changes.insert(0, Change(text=text, gain=without / seen.rate))
    return Verdict(
        bottleneck="start",
        sentence=f"The dataset is tiny: {what} takes {seen.starting:.0%} of an epoch{steps}, "
        f"which leaves {_rate(seen)}; after that {after}.",
        short="start-up limits",
        rate_without=without,
        changes=tuple(changes),
    )


def _handover(seen: Evidence) -> Verdict | None:
    if seen.kind != "processes":
        return None
    sent, faults = seen.sent or 0.0, seen.faults or 0.0
    cpu = sum(one.cpu for one in seen.producers) / max(len(seen.producers), 1) * seen.number
    if seen.receiving >= _RECEIVES_LONG:
        per_batch = seen.receiving * seen.seconds / seen.batches * 1e3
        what = f"the loop's thread needs {per_batch:,.1f} ms to receive a batch"
    elif sent >= _SENDS_MUCH:
        what = f"{sent / 1e6:,.0f} MB/s go through pipes"
    elif faults * _SECONDS_OF_A_FAULT >= _FAULTS_MUCH * max(cpu, _BUSY):
        what = f"batches take {faults:,.0f} new pages of memory per second"
    else:
        return None
    return Verdict(
        bottleneck="handover",
        sentence=f"The hand-over from the {_name(seen)} limits this loop to {_rate(seen)}: {what}.",
        short="the hand-over limits",
        rate_without=None,
        changes=(
            Change(text="Use shardio.Loader, whose threads make batches in place", gain=None),
            Change(
                text="Return tensors, which torch sends in shared memory, not arrays", gain=None
            ),
            Change(text="Send uint8 and normalise on the device", gain=None),
        ),
    )


def _opencv(seen: Evidence) -> Verdict | None:
    busy = _native_threads(seen)
    if busy <= seen.cores or not _short_of_cores(seen):
        return None
    return Verdict(
        bottleneck="opencv",
        sentence=f"{busy} threads of OpenCV or torch share {counted(seen.cores, 'core')}, which "
        f"limits this loop to {_rate(seen)}: they wait for a core {_delayed(seen):.0%} of the "
        "time.",
        short="too many native threads",
        rate_without=None,
        changes=(
            Change(
                text="Call cv2.setNumThreads(0) and torch.set_num_threads(1) in each worker",
                gain=None,
            ),
        ),
    )


def _cores(seen: Evidence) -> Verdict | None:
    number = seen.number
    if number <= seen.cores or not _short_of_cores(seen):
        return None
    return Verdict(
        bottleneck="cores",
        sentence=f"{_count(number, seen)} share {counted(seen.cores, 'core')}, which limits this "
        f"loop to {_rate(seen)}: they wait for a core {_delayed(seen):.0%} of the time.",
        short="the number of cores limits",
        rate_without=seen.rate * number / seen.cores,
        changes=(
            Change(
                text=f"Use {_count(seen.cores, seen)}: less memory, and just as fast", gain=None
            ),
            Change(text=f"Use a machine with {number} cores", gain=number / seen.cores),
        ),
    )


def _worker(seen: Evidence) -> Verdict | None:
    if seen.kind != "processes" or min(seen.number, len(seen.producers)) < 2:
        return None
    shares = sorted(_filling(one) for one in seen.producers)
    slowest, others = shares[-1], shares[: len(shares) - 1]
    recorded = all(one.filling is not None for one in seen.producers)
    middle = others[len(others) // 2]
    behind = slowest - middle > _ONE_BEHIND
    waited_for = max(seen.turns, default=0.0) > 0.5 + 0.5 / seen.number
    if not (behind and recorded) and not (waited_for and middle < 0.5 and not recorded):
        return None
    return Verdict(
        bottleneck="worker",
        sentence=f"One of {seen.number} workers limits this loop to {_rate(seen)}: "
        f"{max(seen.turns, default=0):.0%} of the waiting is for it, while the others "
        f"are busy {middle:.0%} of the time.",
        short="one slow worker limits",
        rate_without=seen.rate / max(middle, 0.05) * max(slowest, middle),
        changes=(
            Change(
                text="Find out what is different about it: its shards, its core, its memory",
                gain=slowest / max(middle, 0.05) if recorded else None,
            ),
        ),
    )


def _storage(seen: Evidence) -> Verdict | None:
    stages = seen.stages
    if stages is None:
        return None
    filling = _sample_time(stages)
    if stages.blocked_read < _BLOCKED * filling:
        return None
    if seen.remote:
        return _fetching(seen, stages, filling)
    megabytes = stages.bytes * seen.rate / 1e6
    gain = filling / max(filling - stages.blocked_read, 1e-9)
    cold = seen.cached is not None and seen.cached < 0.5
    where = "Reading what is not in the page cache" if cold else "Storage"
    changes = [
        Change(text="Use more threads or workers, which have more requests under way", gain=None),
        Change(text="Copy the shards to a faster disk", gain=gain),
    ]
    if cold:
        text = "Add memory for the whole dataset: later epochs then come from the page cache"
        changes.insert(0, Change(text=text, gain=gain))
    return Verdict(
        bottleneck="cold" if cold else "storage",
        sentence=f"{where} limits this loop to {_rate(seen)}, {megabytes:,.1f} MB/s: "
        f"a sample spends {stages.blocked_read / 1e3:,.2f} of its {filling / 1e3:,.2f} ms waiting "
        "for its bytes.",
        short="cold storage limits" if cold else "storage limits",
        rate_without=seen.rate * gain,
        changes=tuple(changes),
    )


_MORE_CONNECTIONS = Change(
    text=f"Use more workers, each of which fetches {CONNECTIONS} shards at once, and a greater "
    "predownload",
    gain=None,
)
_STREAMS = Change(
    text="With several nodes, use streams, so that each fetches its own shards only",
    gain=None,
)


def _fetching(seen: Evidence, stages: Stages, filling: float) -> Verdict:
    """Describe a loop that waits for a store, of which nothing else is known."""
    gain = filling / max(filling - stages.blocked_read, 1e-9)
    return Verdict(
        bottleneck="store",
        sentence=f"Fetching from the store limits this loop to {_rate(seen)}, "
        f"{stages.bytes * seen.rate / 1e6:,.1f} MB/s: a sample spends "
        f"{stages.blocked_read / 1e3:,.2f} of its {filling / 1e3:,.2f} ms waiting for its bytes.",
        short="the store limits",
        rate_without=seen.rate * gain,
        changes=(
            Change(
                text="Raise cache_limit to the size of the dataset: later epochs then fetch "
                "nothing",
                gain=gain,
            ),
            _MORE_CONNECTIONS,
            _STREAMS,
        ),
    )


def _first_epoch(verdict: Verdict, seen: Evidence, store: StoreLimits) -> Verdict:
    """Describe a loop that is faster than the store delivers.

    Args:
        verdict: verdict on the loop with shards in the cache.
        seen: observations of that loop.
        store: limits of the store.
    """
    rate, most = store.samples_per_second, seen.rate / store.samples_per_second
    link = ""
    if store.grows:
        link = " (more would be faster)"
    elif store.enough < store.connections:
        link = f" ({store.enough} {'is' if store.enough == 1 else 'are'} as fast)"
    changes = [_MORE_CONNECTIONS] if store.grows else []
    larger = store.rate(max(LARGE_SHARD, store.shard_bytes)) / store.rate()
    if larger >= _LEAST_GAIN:
        text = (
            f"Make larger shards, shardio reshard --shard-size 256MB: of a request for one of "
            f"{store.shard_bytes / 1e6:,.2f} MB, {store.waiting:.0%} is the wait for its first byte"
        )
        changes.append(Change(text=text, gain=min(larger, most)))
    if store.cached < 1:
        text = (
            f"Raise cache_limit to {store.total_bytes / 1e9:,.1f} GB: the cache may hold "
            f"{store.cached:.0%} of the dataset, and later epochs fetch the rest again"
        )
        changes.append(Change(text=text, gain=most))
    changes.sort(key=lambda change: -(change.gain or 0))
    later = "later ones come" if store.cached == 1 else "what the cache holds comes"
    return Verdict(
        bottleneck="store",
        sentence=f"The store limits the first epoch to {rate:,.0f} samples/s, "
        f"{store.rate() / 1e6:,.0f} MB/s by {store.connections} connections{link}; {later} at "
        f"{_rate(seen)}, where {verdict.short}.",
        short="the store limits",
        rate_without=seen.rate,
        changes=(*changes, _STREAMS),
    )


def _lock(seen: Evidence) -> Verdict | None:
    stages = seen.stages
    if seen.kind != "threads" or stages is None or seen.number < 2:
        return None
    share = stages.lock / _sample_time(stages)
    held = (seen.lock_wait or 0.0) > _LOCK_HELD_LONG
    sleeping = stages.transform.wall - stages.transform.cpu > _MOSTLY * stages.lock
    if share <= _LOCKED or (sleeping and not held):
        return None
    holder = "The transform" if stages.transform.cpu > stages.decode.cpu else "Python code"
    gain = min(seen.number, seen.cores)
    return Verdict(
        bottleneck="lock",
        sentence=f"{holder} holds the interpreter's lock, which limits {seen.number} "
        f"threads to {_rate(seen)}: they wait for it {share:.0%} of the time.",
        short="the interpreter's lock limits",
        rate_without=seen.rate / (1 - min(share, 0.95)),
        changes=(
            Change(text=f"Use {gain} workers in place of threads", gain=1 / (1 - min(share, 0.95))),
            Change(text="Transform whole batches, on the device", gain=None),
        ),
    )


def _prefetch(seen: Evidence) -> Verdict | None:
    if seen.kind == "here" or not seen.producers or seen.stages is None:
        return None
    filling = sum(_filling(one) for one in seen.producers) / len(seen.producers)
    working = 1 - seen.waiting
    if filling > 1 - _IDLE or seen.waiting < 2 * WAITS_LITTLE or working < 2 * WAITS_LITTLE:
        return None
    gain = min(1 / max(filling, 0.05), 1 / working)
    are = "is" if seen.number == 1 else "are"
    return Verdict(
        bottleneck="prefetch",
        sentence=f"Too few batches are made ahead, which limits this loop to {_rate(seen)}: it "
        f"waits {seen.waiting:.0%} of the time, yet the {_name(seen)} {are} busy only "
        f"{filling:.0%} of the time.",
        short="the prefetch is too small",
        rate_without=seen.rate * gain,
        changes=(
            Change(text="Use a larger prefetch (prefetch_factor of a DataLoader)", gain=gain),
        ),
    )


def _stages(seen: Evidence) -> Verdict:
    """Name the stage that takes most of a sample's time."""
    stages = seen.stages
    if stages is None:
        return _without_stages(seen)
    where = counted(min(max(seen.number, 1), seen.cores), "core")
    parts: dict[Bottleneck, float] = {
        "decode": stages.decode.wall,
        "transform": stages.transform.wall,
        "loader": stages.read.wall + stages.batch.wall + stages.outside,
    }
    name = max(parts, key=lambda part: parts[part])
    what = {"decode": "decoding", "transform": "the transform", "loader": "the loader itself"}[name]
    rest = sum(parts.values()) - parts[name]
    return Verdict(
        bottleneck=name,
        sentence=f"{what[0].upper()}{what[1:]} on {where} limits this loop to {_rate(seen)}: it "
        f"takes {parts[name]:,.0f} of the {stages.total:,.0f} µs of a sample.",
        short=f"{what} limits",
        rate_without=seen.rate * sum(parts.values()) / max(rest, 1e-9),
        changes=(),
    )


def _without_stages(seen: Evidence) -> Verdict:
    """Name the producers, of which no more is known."""
    why = "the stages are known only for shardio's datasets"
    if seen.ours and seen.kind == "processes" and not seen.restarts:
        were = "was" if seen.number == 1 else "were"
        why = f"the stages are not known, since the {_name(seen)} {were} started before the monitor"
    elif seen.ours:
        why = "too little was recorded to tell the stages"
    if seen.kind == "here":
        who, short = "The loader itself, in the loop's own thread, limits", "the loader limits"
    else:
        limit = "limits" if seen.number == 1 else "limit"
        who, short = f"{_count(seen.number, seen)} {limit}", f"the {_name(seen)} {limit}"
    return Verdict(
        bottleneck="workers",
        sentence=f"{who} this loop to {_rate(seen)}; {why}.",
        short=short,
        rate_without=None,
        changes=(),
    )


_RULES: tuple[Callable[[Evidence], Verdict | None], ...] = (
    _step,
    _start,
    _handover,
    _opencv,
    _cores,
    _worker,
    _storage,
    _lock,
    _prefetch,
)


_GENERAL: Mapping[Bottleneck | None, tuple[Change, ...]] = {
    "decode": (
        Change(
            text="Pack smaller images (shardio pack --resize), or tiny ones as pixels",
            gain=None,
        ),
    ),
    "transform": (Change(text="Transform whole batches, on the device", gain=None),),
    "loader": (Change(text="Use larger batches", gain=None),),
}
"""Advice for a bottleneck, where nothing is known of the images and the machine."""


def _more(seen: Evidence) -> tuple[Change, ...]:
    """Advise one producer per core, where there are fewer."""
    number = max(seen.number, 1)
    if number >= seen.cores:
        return ()
    if seen.kind == "here" and not (seen.ours or seen.torch):
        text = "Use a loader that has workers or threads, such as shardio.Loader"
        return (Change(text=text, gain=None),)
    what = _count(seen.cores, seen)
    if seen.kind != "threads" and seen.torch:
        what = f"num_workers={seen.cores} in the DataLoader"
    elif seen.kind == "here":
        what = f"shardio.Loader with {seen.cores} threads"
    return (Change(text=f"Use {what}, one per core", gain=seen.cores / number),)


def _sample_time(stages: Stages) -> float:
    parts = stages.read, stages.decode, stages.transform, stages.batch
    return sum(part.wall for part in parts)


def _filling(one: Producer) -> float:
    return one.filling if one.filling is not None else min(one.cpu + one.delay, 1.0)


def _delayed(seen: Evidence) -> float:
    """Share of the time that producers could have run in, and no core was free."""
    cpu = sum(one.cpu for one in seen.producers)
    delay = sum(one.delay for one in seen.producers)
    return delay / max(cpu + delay, 1e-9)


def _short_of_cores(seen: Evidence) -> bool:
    """Tell whether producers keep the cores busy and wait for one."""
    cpu = sum(one.cpu for one in seen.producers)
    each = cpu / max(len(seen.producers), 1) * seen.number  # each epoch may have had others
    return _delayed(seen) > _DELAYED and each > _BUSY * seen.cores


def _native_threads(seen: Evidence) -> int:
    """Busy threads, if there are more than make batches."""
    if seen.kind == "processes":
        busy = sum(one.busy_threads for one in seen.producers) / max(len(seen.producers), 1)
        return round(busy * seen.number) if busy >= _THREADS_A_WORKER else 0
    foreign = sum(one.filling is None and one.cpu > _THREAD_BUSY for one in seen.producers)
    return seen.number + foreign if foreign and seen.stages is not None else 0


def _rate(seen: Evidence) -> str:
    """Format the rate, as 1,600 samples/s."""
    return f"{seen.rate:,.0f} {seen.unit}/s"


def _name(seen: Evidence, number: int | None = None) -> str:
    """Name the producers: worker or thread, workers or threads if there are several.

    Args:
        seen: observations of the loop.
        number: number of producers; by default that of the loop.
    """
    one = "worker" if seen.kind == "processes" else "thread"
    return one if (seen.number if number is None else number) == 1 else f"{one}s"


def _count(number: int, seen: Evidence) -> str:
    """Format a number of producers, as 2 workers."""
    return f"{number} {_name(seen, number)}"


def _without_gains(verdict: Verdict) -> Verdict:
    """Promise nothing."""
    changes = tuple(replace(change, gain=None) for change in verdict.changes)
    return replace(verdict, rate_without=None, changes=changes)


def _limited(change: Change, most: float) -> Change:
    """Limit the gain of a change to what the step allows."""
    return change if change.gain is None else replace(change, gain=min(change.gain, most))


def _topologies(
    seen: Evidence,
    costs: SampleCosts,
    measured: Mapping[tuple[ProducerKind, int], float],
    predictable: Collection[ProducerKind],
) -> Iterator[Change]:
    kinds: tuple[tuple[ProducerKind, str], ...] = (
        ("threads", f"Use shardio.Loader with {counted(costs.cores, 'thread')}"),
        ("processes", f"Use a DataLoader with {counted(costs.cores, 'worker')}"),
    )
    for kind, text in kinds:
        if kind != seen.kind or seen.number < costs.cores:
            rate = measured.get((kind, costs.cores))
            if rate is None and kind in predictable:
                rate = predict(costs, kind, costs.cores)
            if rate is not None:
                yield Change(text=text, gain=rate / seen.rate)
    if seen.kind != "here":
        cores = 2 * costs.cores
        gain = predict(costs.with_cores(cores), seen.kind, cores) / seen.rate
        most = cores / max(min(seen.number, costs.cores), 1)  # more is an error of the prediction
        yield Change(text=f"Use {cores} such cores", gain=min(gain, most))


def _packing(
    verdict: Verdict, rate: float, costs: SampleCosts, ceilings: Ceilings, settings: ProfileSettings
) -> Iterator[Change]:
    if verdict.bottleneck != "decode" or not ceilings.side or not ceilings.decode_one:
        return
    share = (ceilings.decode_share or 0.0) * ceilings.loop_one / ceilings.decode_one
    decoding = share * (costs.cpu + costs.idle + costs.planned)
    side = round(settings.size * _MARGIN)
    if ceilings.side <= _TINY:
        how, saved = f"--store raw --resize {ceilings.side:.0f}", decoding
    elif 0 < side < ceilings.side:
        how, saved = f"--resize {side}", decoding * (1 - (side / ceilings.side) ** 2)
    else:
        return
    gain = costs.cpu / max(costs.cpu - saved, 1e-9)
    most = (verdict.rate_without or rate) / rate  # seen in another measurement than the costs
    yield Change(text=f"Pack again: shardio pack {how}", gain=min(gain, most))
