"""What the sentences about a loop are made of.

One bottleneck, in one sentence, and what to change: a pure function of what was seen.

The rules are tried in order, and the first that applies names the bottleneck: what the loop does
before what its producers do, what is wrong with their number before what each of them does.

What to change, with the gain that the measured parts let expect.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

from shardio.profiling.evidence import (
    Ceilings,
    Evidence,
    Producer,
    ProducerKind,
    SampleCosts,
    Stages,
    predict,
)
from shardio.profiling.settings import ProfileSettings

_NAMES = "shardio", "num_workers", "persistent_workers", "cv2", "--"


def as_sentence(text: str) -> str:
    """A verdict or a change as it is printed: it begins with a capital letter and ends.

    Names that are typed as they are keep their letters.
    """
    if not text.startswith(_NAMES):
        text = text[:1].upper() + text[1:]
    return text if text.endswith(".") else f"{text}."


def rate_of(seen: Evidence) -> str:
    """As 1,600 samples/s."""
    return f"{seen.rate:,.0f} {seen.unit}/s"


def name_of(seen: Evidence, number: int | None = None) -> str:
    """What makes batches: worker or thread, workers or threads if they are several.

    Args:
        seen: tells the kind.
        number: of them; by default as many as there are.
    """
    one = "worker" if seen.kind == "processes" else "thread"
    return one if (seen.number if number is None else number) == 1 else f"{one}s"


def count(number: int, seen: Evidence) -> str:
    """So many of what makes batches."""
    return f"{number} {name_of(seen, number)}"


def cores(number: int) -> str:
    """So many cores."""
    return "1 core" if number == 1 else f"{number} cores"


_WAITS_LITTLE = 0.05  # share of the time
_STARTS_LONG = 0.3  # share of an epoch
_RECEIVES_LONG = 0.4  # share of the time
_SENDS_MUCH = 3e8  # bytes a second; a core pickles, writes and reads about three times that
_SECONDS_OF_A_FAULT = 1e-6  # to get a page, clear it and fill it
_FAULTS_MUCH = 0.2  # of the workers' CPU time
_DELAYED = 0.25  # share of the time that threads could have run
_ONE_BEHIND = 0.35  # in share of the time that it fills batches
_IDLE = 0.25
_BLOCKED = 0.4  # share of a sample's time
_LOCKED = 0.25  # share of a sample's time
_THREADS_A_WORKER = 1.5  # on average; one besides sends batches
_MOSTLY = 0.7
_BUSY = 0.5  # share of the cores
_THREAD_BUSY = 0.1  # share of the time
_LOCK_HELD_LONG = 0.002  # seconds; half the interpreter's switch interval


ONE_A_CORE = "one a core"
LESS_TO_DECODE = ("--resize at packing, or --store raw for small pictures: less to decode",)
"""Advice for those whose pictures are not known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """What may help.

    Attributes:
        text: what to do.
        gain: how many times as fast the loop is expected to be; None where it is not known.
    """

    text: str
    gain: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What limits a loop.

    Attributes:
        bottleneck: its name: step, start, handover, opencv, cores, worker, cold, storage, lock,
            prefetch, transform, decode, loader or workers.
        sentence: with figures.
        short: a few words.
        rate_without: samples per second if it were removed and nothing else changed; None where
            nothing tells.
        changes: what may help, the most helpful first.
    """

    bottleneck: str
    sentence: str
    short: str
    rate_without: float | None
    changes: tuple[Change, ...]


def judge(evidence: Evidence) -> Verdict:
    """Name what limits a loop."""
    for rule in _RULES:
        verdict = rule(evidence)
        if verdict is not None:
            return verdict
    return _stages(evidence)


def _step(seen: Evidence) -> Verdict | None:
    if seen.waiting >= _WAITS_LITTLE:
        return None
    busiest = max((_filling(one) for one in seen.producers), default=None)
    spare = f"; the loader is busy {busiest:.0%} of the time" if busiest is not None else ""
    return Verdict(
        bottleneck="step",
        sentence=f"the step limits this loop to {rate_of(seen)}: it waits for data "
        f"{seen.waiting:.1%} of the time{spare}",
        short="the step limits",
        rate_without=seen.rate / busiest if busiest else None,
        changes=(Change(text="nothing about the loader; make the step faster", gain=None),),
    )


def _start(seen: Evidence) -> Verdict | None:
    if seen.starting <= _STARTS_LONG:
        return None
    without = seen.rate / (1 - min(seen.starting, 0.99))
    what = f"starting the {name_of(seen)}" if seen.kind == "processes" else "the first batch"
    steps = f" of {seen.steps} steps" if seen.steps else ""
    changes = [Change(text="shardio.Loader starts in a fraction of workers' time", gain=None)]
    after = judge(replace(seen, starting=0.0)).short
    if seen.restarts:
        keep = Change(text="persistent_workers=True keeps workers over epochs", gain=None)
        changes.insert(0, keep)
    return Verdict(
        bottleneck="start",
        sentence=f"the dataset is tiny: {what} takes {seen.starting:.0%} of an epoch{steps}, "
        f"which leaves {rate_of(seen)}; after that {after}",
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
        what = f"batches are put into {faults:,.0f} new pages of memory a second"
    else:
        return None
    return Verdict(
        bottleneck="handover",
        sentence=f"the hand-over from the {name_of(seen)} limits this loop to {rate_of(seen)}: "
        f"{what}",
        short="the hand-over limits",
        rate_without=None,
        changes=(
            Change(text="shardio.Loader: threads make batches in place", gain=None),
            Change(text="tensors in place of arrays: torch sends them in shared memory", gain=None),
            Change(text="send uint8, and normalise on the device", gain=None),
        ),
    )


def _opencv(seen: Evidence) -> Verdict | None:
    busy = _native_threads(seen)
    if busy <= seen.cores or not _short_of_cores(seen):
        return None
    return Verdict(
        bottleneck="opencv",
        sentence=f"{busy} threads of OpenCV or torch share {seen.cores} cores and limit this loop "
        f"to {rate_of(seen)}: they wait for one {_delayed(seen):.0%} of the time",
        short="too many native threads",
        rate_without=None,
        changes=(
            Change(
                text="call cv2.setNumThreads(0) and torch.set_num_threads(1) in each worker",
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
        sentence=f"{count(number, seen)} share {seen.cores} cores, which limit this loop to "
        f"{rate_of(seen)}: they wait for one {_delayed(seen):.0%} of the time",
        short=f"{seen.cores} cores limit",
        rate_without=seen.rate * number / seen.cores,
        changes=(
            Change(text=f"take {count(seen.cores, seen)}: less memory, no slower", gain=None),
            Change(text=f"a machine with {number} cores", gain=number / seen.cores),
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
        sentence=f"one of {seen.number} workers limits this loop to {rate_of(seen)}: "
        f"{max(seen.turns, default=0):.0%} of the waiting is for it, while the others "
        f"are busy {middle:.0%} of the time",
        short="one slow worker limits",
        rate_without=seen.rate / max(middle, 0.05) * max(slowest, middle),
        changes=(
            Change(
                text="find out what is different there: its shards, its core, its memory",
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
    megabytes = stages.bytes * seen.rate / 1e6
    gain = filling / max(filling - stages.blocked_read, 1e-9)
    cold = seen.cached is not None and seen.cached < 0.5
    where = "reading what is not in the page cache" if cold else "storage"
    changes = [
        Change(text="more threads or workers have more requests under way", gain=None),
        Change(text="copy the shards to a faster disk", gain=gain),
    ]
    if cold:
        text = "memory for the whole dataset: later epochs come from the page cache"
        changes.insert(0, Change(text=text, gain=gain))
    return Verdict(
        bottleneck="cold" if cold else "storage",
        sentence=f"{where} limits this loop to {rate_of(seen)}, {megabytes:,.1f} MB/s: "
        f"a sample waits {stages.blocked_read / 1e3:,.2f} of its {filling / 1e3:,.2f} ms for it",
        short="cold storage limits" if cold else "storage limits",
        rate_without=seen.rate * gain,
        changes=tuple(changes),
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
    holder = "the transform" if stages.transform.cpu > stages.decode.cpu else "Python code"
    gain = min(seen.number, seen.cores)
    return Verdict(
        bottleneck="lock",
        sentence=f"{holder} holds the interpreter's lock, which limits {seen.number} "
        f"threads to {rate_of(seen)}: they wait for it {share:.0%} of the time",
        short="the interpreter's lock limits",
        rate_without=seen.rate / (1 - min(share, 0.95)),
        changes=(
            Change(text=f"{gain} workers in place of threads", gain=1 / (1 - min(share, 0.95))),
            Change(text="transform whole batches, on the device", gain=None),
        ),
    )


def _prefetch(seen: Evidence) -> Verdict | None:
    if seen.kind == "here" or not seen.producers or seen.stages is None:
        return None
    filling = sum(_filling(one) for one in seen.producers) / len(seen.producers)
    working = 1 - seen.waiting
    if filling > 1 - _IDLE or seen.waiting < 2 * _WAITS_LITTLE or working < 2 * _WAITS_LITTLE:
        return None
    gain = min(1 / max(filling, 0.05), 1 / working)
    are = "is" if seen.number == 1 else "are"
    return Verdict(
        bottleneck="prefetch",
        sentence=f"too few batches are made ahead: the loop waits {seen.waiting:.0%} of the time, "
        f"yet the {name_of(seen)} {are} busy {filling:.0%} of it ({rate_of(seen)})",
        short="the prefetch is too small",
        rate_without=seen.rate * gain,
        changes=(Change(text="a larger prefetch (prefetch_factor of DataLoader)", gain=gain),),
    )


def _stages(seen: Evidence) -> Verdict:
    """What takes most of a sample's time."""
    stages = seen.stages
    if stages is None:
        return _without_stages(seen)
    where = cores(min(max(seen.number, 1), seen.cores))
    parts = {
        "decode": stages.decode.wall,
        "transform": stages.transform.wall,
        "loader": stages.read.wall + stages.batch.wall + stages.outside,
    }
    name = max(parts, key=lambda part: parts[part])
    what = {
        "decode": f"decode on {where}",
        "transform": f"the transform on {where}",
        "loader": f"the loader itself, on {where},",
    }[name]
    rest = sum(parts.values()) - parts[name]
    return Verdict(
        bottleneck=name,
        sentence=f"{what} limits this loop to {rate_of(seen)}: "
        f"{parts[name]:,.0f} of {stages.total:,.0f} µs of a sample",
        short=f"{name} limits",
        rate_without=seen.rate * sum(parts.values()) / max(rest, 1e-9),
        changes=_more(seen) + _less(name),
    )


def _without_stages(seen: Evidence) -> Verdict:
    """The producers limit, and nothing tells more."""
    why = "stages are known only for shardio's datasets"
    if seen.ours and seen.kind == "processes" and not seen.restarts:
        were = "it was" if seen.number == 1 else "they were"
        why = f"stages are not known, as {were} started before the watching"
    elif seen.ours:
        why = "too little was recorded to tell the stages"
    if seen.kind == "here":
        who, short = "the loader itself, in the loop's own thread, limits", "the loader limits"
    else:
        limit = "limits" if seen.number == 1 else "limit"
        who, short = f"{count(seen.number, seen)} {limit}", f"the {name_of(seen)} {limit}"
    return Verdict(
        bottleneck="workers",
        sentence=f"{who} this loop to {rate_of(seen)}; {why}",
        short=short,
        rate_without=None,
        changes=_more(seen),
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


def _more(seen: Evidence) -> tuple[Change, ...]:
    number = max(seen.number, 1)
    if number >= seen.cores:
        return ()
    gain: float | None = seen.cores / number
    text = count(seen.cores, seen)
    if seen.kind != "threads" and seen.torch:
        text = f"num_workers={seen.cores} for the DataLoader"
    elif seen.kind == "here" and seen.ours:
        text = f"shardio.Loader with {seen.cores} threads"
    elif seen.kind == "here":
        text, gain = "a loader that has workers or threads, as shardio.Loader has", None
    return (Change(text=f"{text}, {ONE_A_CORE}", gain=gain),)


def _less(name: str) -> tuple[Change, ...]:
    texts = {
        "decode": LESS_TO_DECODE,
        "transform": ("transform whole batches, on the device",),
        "loader": ("larger batches",),
    }[name]
    return tuple(Change(text=text, gain=None) for text in texts)


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
    """Whether producers keep the cores busy, and wait for one."""
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


_PACK = "shardio pack"
_LEAST_GAIN = 1.05
_MARGIN = 8 / 7  # of what a picture is packed with over what is cropped from it: 256 to 224
_TINY = 64  # pixels; such pictures are stored raw without a thought
_PLACE_BOUND = frozenset({"step", "start", "worker", "storage", "cold"})
"""Bottlenecks that other threads, workers or cores do not remove."""


def advise(
    verdict: Verdict,
    seen: Evidence,
    parts: SampleCosts,
    ceilings: Ceilings,
    settings: ProfileSettings,
    measured: Mapping[tuple[ProducerKind, int], float],
) -> Verdict:
    """Add storage's rate to a verdict's sentence, and what the model expects of changes.

    Args:
        verdict: on a run.
        seen: in that run.
        parts: of the loader and machine, at its speed in that run.
        ceilings: of the machine.
        settings: of the run.
        measured: samples per second of other runs, by kind and number of producers.
    """
    changes = [change for change in verdict.changes if ONE_A_CORE not in change.text]
    if verdict.bottleneck not in _PLACE_BOUND:
        known = {change.text for change in changes}
        added = [*_topologies(seen, parts, measured), *_packing(verdict, parts, ceilings, settings)]
        changes += [change for change in added if change.text not in known]
        if any(change.text.startswith(_PACK) for change in added):
            changes = [change for change in changes if change.text not in LESS_TO_DECODE]
    most = 1e6 / parts.step if settings.has_step else math.inf
    changes = [_limited(change, most / seen.rate) for change in changes]
    changes = [change for change in changes if change.gain is None or change.gain >= _LEAST_GAIN]
    changes.sort(key=lambda change: -(change.gain or 0))
    sentence = verdict.sentence
    if seen.stages is not None and verdict.bottleneck in {"decode", "transform", "loader", "lock"}:
        speed = (ceilings.cold or ceilings.warm) / max(seen.stages.bytes, 1)
        sentence += (
            f"; {'storage' if ceilings.cold else 'the page cache'} could deliver {speed:,.0f}"
        )
    without = verdict.rate_without
    if without is not None and verdict.bottleneck != "step":
        without = max(min(without, most), seen.rate)
    return replace(verdict, sentence=sentence, changes=tuple(changes), rate_without=without)


def _limited(change: Change, most: float) -> Change:
    """A change whose gain is no more than the step allows."""
    return change if change.gain is None else replace(change, gain=min(change.gain, most))


def _topologies(
    seen: Evidence, parts: SampleCosts, measured: Mapping[tuple[ProducerKind, int], float]
) -> Iterator[Change]:
    kinds: tuple[tuple[ProducerKind, str], ...] = (
        ("threads", f"shardio.Loader with {parts.cores} threads"),
        ("processes", f"DataLoader with {parts.cores} workers"),
    )
    for kind, text in kinds:
        if kind != seen.kind or seen.number < parts.cores:
            rate = measured.get((kind, parts.cores)) or predict(parts, kind, parts.cores)
            yield Change(text=text, gain=rate / seen.rate)
    if seen.kind != "here":
        cores = 2 * parts.cores
        gain = predict(parts.with_cores(cores), seen.kind, cores) / seen.rate
        most = cores / max(min(seen.number, parts.cores), 1)  # more is an error of the prediction
        yield Change(text=f"{cores} such cores", gain=min(gain, most))


def _packing(
    verdict: Verdict, parts: SampleCosts, ceilings: Ceilings, settings: ProfileSettings
) -> Iterator[Change]:
    if verdict.bottleneck != "decode" or not ceilings.side or not ceilings.decode_one:
        return
    if ceilings.side <= _TINY:
        yield Change(text=f"{_PACK} --store raw --resize {ceilings.side:.0f}", gain=None)
        return
    side = round(settings.size * _MARGIN)
    if 0 < side < ceilings.side:
        share = (ceilings.decode_share or 0.0) * ceilings.loop_one / ceilings.decode_one
        saved = share * (parts.cpu + parts.idle + parts.planned) * (1 - (side / ceilings.side) ** 2)
        gain = parts.cpu / max(parts.cpu - saved, 1e-9)
        yield Change(text=f"{_PACK} --resize {side}", gain=gain)
