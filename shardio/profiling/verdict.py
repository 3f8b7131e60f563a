"""The verdict: what limits a loop, in one sentence, and what to change.

Pure functions of what was observed. The rules are tried in order, and the first that applies names
the bottleneck: what the loop does before what its producers do, a wrong number of producers before
what each of them does. `judge` is for a loop of which nothing else is known; claims.advise also
knows what the machine can do.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from shardio.errors import argument, counted
from shardio.profiling.evidence import Evidence, Producer
from shardio.storage.downloads import CONNECTIONS

Bottleneck = Literal[
    "step",
    "start",
    "handover",
    "opencv",
    "cores",
    "busy",
    "worker",
    "storage",
    "cold",
    "store",
    "lock",
    "prefetch",
    "decode",
    "transform",
    "map",
    "loader",
    "workers",
]
"""What may limit a loop, in the order of the rules; docs/pages/explanation/profile.md has them."""

WAITS_LITTLE = 0.05  # share of the time
WAITS_HARDLY = 0.15  # share of the time; a loader without limits would gain less than a fifth
MOST_OTHERS = 0.2  # share of the cores
CERTAIN: frozenset[Bottleneck] = frozenset({"step", "start", "busy"})
"""Bottlenecks of a watched loop that are certain also while others run, and the rate varies."""

_STARTS_LONG = 0.3  # share of an epoch
_RECEIVES_LONG = 0.4  # share of the time
_SENDS_MUCH = 3e8  # bytes a second; a core pickles, writes and reads about three times that
_SECONDS_OF_A_FAULT = 1e-6  # to get a page, clear it and fill it
_FAULTS_MUCH = 0.2  # share of the workers' CPU time
_DELAYED = 0.25  # share of the time that threads could have run
_MOSTLY_DELAYED = 0.5  # likewise
_ONE_BEHIND = 0.35  # difference in the share of the time that batches are filled
_IDLE = 0.25  # share of the time
_BLOCKED = 0.4  # share of a sample's time
_LOCKED = 0.25  # share of a sample's time
_THREADS_A_WORKER = 1.5  # on average; one besides sends batches
_MOSTLY = 0.7
_BUSY = 0.5  # share of the cores
_SPARE = 0.1  # share of the time
_THREAD_BUSY = 0.1  # share of the time
_LOCK_HELD_LONG = 0.002  # seconds; half the interpreter's switch interval


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
    verdict = diagnose(evidence)
    if _waits(evidence) < WAITS_HARDLY and verdict.bottleneck not in CERTAIN:
        return replace(verdict, changes=(_FASTER_STEP,))
    of_stages = {"decode", "transform", "map", "loader", "workers"}
    more = _more(evidence) if verdict.bottleneck in of_stages else ()
    advised = general(evidence, verdict.bottleneck)
    return replace(verdict, changes=(*verdict.changes, *more, *advised))


def diagnose(evidence: Evidence) -> Verdict:
    """Name what limits a loop, with the changes that this bottleneck alone suggests."""
    found = (verdict for rule in _RULES if (verdict := rule(evidence)) is not None)
    verdict = next(found, None) or _stages(evidence)
    if _waits(evidence) >= WAITS_HARDLY or verdict.bottleneck in {"step", "start"}:
        return verdict
    most = evidence.rate / (1 - evidence.waiting)
    who = f": {_holders(evidence)}" if verdict.bottleneck == "busy" else ""
    return replace(
        verdict,
        sentence=f"The loader does not limit this loop, which reaches {rate_of(evidence)}: it "
        f"waits for data {evidence.waiting:.0%} of the time; then {verdict.short}{who}.",
        rate_without=verdict.rate_without and min(verdict.rate_without, most),
    )


_FASTER_STEP = Change(text="Make the step faster; the loader is not the limit", gain=None)


def _waits(seen: Evidence) -> float:
    """Return the share of the time that the loop waited; for a store, from the start."""
    return max(seen.waiting, seen.starting if seen.fetching else 0.0)


def _step(seen: Evidence) -> Verdict | None:
    if seen.waiting >= WAITS_LITTLE or _waits(seen) > _STARTS_LONG:
        return None
    busiest = max((_filling(one) for one in seen.producers), default=None)
    alone = seen.rate / busiest if busiest and not _others_hold(seen) else None
    spare = (
        f"; the loader alone would reach {alone:,.0f}"
        if alone and (busiest or 1) < 1 - _SPARE
        else ""
    )
    changes = [_FASTER_STEP]
    if _delayed(seen) > _DELAYED:
        text = "If the step runs on the CPU, leave cores to the loader: torch.set_num_threads"
        changes.append(Change(text=text, gain=None))
    return Verdict(
        bottleneck="step",
        sentence=f"The step limits this loop to {rate_of(seen)}: the loop waits for data "
        f"{seen.waiting:.1%} of the time{spare}.",
        short="the step limits",
        rate_without=alone,
        changes=tuple(changes),
    )


def _start(seen: Evidence) -> Verdict | None:
    if seen.starting <= _STARTS_LONG:
        return None
    without = seen.rate / (1 - min(seen.starting, 0.99))
    if seen.fetching:
        waits = f"and the first batch takes {seen.starting:.0%} of an epoch."
        return _fetching(seen, waits, without / seen.rate)
    what = f"starting the {_name(seen)}" if seen.kind == "processes" else "the first batch"
    steps = f" of {counted(seen.steps, 'step')}" if seen.steps else ""
    changes = []
    if seen.restarts and seen.torch:
        text = "Use persistent_workers=True, which keeps workers across epochs"
        changes.append(Change(text=text, gain=without / seen.rate))
    text = "Use a larger dataset: the start takes as long for any"
    if seen.kind == "processes":
        text = f"{_to_threads(seen)}, whose threads start faster than workers"
    changes.append(Change(text=text, gain=None))
    rest = diagnose(replace(seen, starting=0.0))
    after = f"; after that {rest.short}" if rest.bottleneck != "workers" else ""
    return Verdict(
        bottleneck="start",
        sentence=f"The dataset is tiny: {what} takes {seen.starting:.0%} of an epoch{steps}, "
        f"which leaves {rate_of(seen)}{after}.",
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
        sentence=f"The hand-over from the {_name(seen)} limits this loop to {rate_of(seen)}: "
        f"{what}.",
        short="the hand-over limits",
        rate_without=None,
        changes=(
            Change(text=f"{_to_threads(seen)}, whose threads make batches in place", gain=None),
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
        f"limits this loop to {rate_of(seen)}: they wait for a core {_delayed(seen):.0%} of the "
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
        f"loop to {rate_of(seen)}: they wait for a core {_delayed(seen):.0%} of the time.",
        short="the number of cores limits",
        rate_without=seen.rate * number / seen.cores,
        changes=(
            Change(
                text=f"Use {_setting(seen, seen.cores)}: less memory, and just as fast", gain=None
            ),
            Change(text=f"Use a machine with {number} cores", gain=number / seen.cores),
        ),
    )


def _busy(seen: Evidence) -> Verdict | None:
    stages = seen.stages
    if stages is None:
        delay = sum(one.delay for one in seen.producers) / max(len(seen.producers), 1)
        if delay <= _DELAYED or _delayed(seen) <= _MOSTLY_DELAYED:
            return None
        much = f"{_delayed(seen):.0%} of the time in which they could run"
    else:
        delay, cpu = seen.for_core, stages.cpu + stages.outside
        other = sum(stages.parts(delay).values()) - cpu  # the lock, bytes
        if delay <= max(cpu, other, _DELAYED * stages.total):
            return None
        much = f"{min(delay, stages.total):,.0f} of the {stages.total:,.0f} µs of a sample"
    known = seen.others is not None
    changes = []
    if not known or _others_hold(seen):
        changes.append(Change(text="Close the other programs, or use more cores", gain=None))
    if not _others_hold(seen):
        text = "Have the step use fewer threads (torch.set_num_threads), or use more cores"
        changes.append(Change(text=text, gain=None))
    who = "The loop's own thread waits" if seen.kind == "here" else f"The {_name(seen)} wait"
    who += "s" * (seen.kind != "here" and seen.number == 1)
    return Verdict(
        bottleneck="busy",
        sentence=f"{who} for a core, for {much}, which limits this loop to {rate_of(seen)}: "
        f"{_holders(seen)}.",
        short=f"{_name(seen, 2)} wait for a core",
        rate_without=None,
        changes=tuple(changes),
    )


def _others_hold(seen: Evidence) -> bool:
    return (seen.others or 0.0) > MOST_OTHERS * seen.cores


def _holders(seen: Evidence) -> str:
    """Say who holds the cores that producers wait for."""
    if seen.others is None:
        return "the step or other programs hold the cores"
    if _others_hold(seen):
        return f"other programs hold {seen.others:.1f} of {counted(seen.cores, 'core')}"
    return "the step and other threads of the loop hold the cores"


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
        sentence=f"One of {seen.number} workers limits this loop to {rate_of(seen)}: "
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
    parts = stages.parts(seen.for_core)
    filling = sum(parts.values()) - stages.outside
    blocked = max(parts["read"] - stages.read.cpu, 0.0)
    if blocked < _BLOCKED * filling:
        return None
    gain = filling / max(filling - blocked, 1e-9)
    waits = f"{stages.bytes * seen.rate / 1e6:,.1f} MB/s: a sample spends {blocked / 1e3:,.2f} of "
    waits += f"its {filling / 1e3:,.2f} ms waiting for its bytes."
    if seen.remote:
        return _fetching(seen, waits, gain)
    cold = seen.cached is not None and seen.cached < 0.5
    where = "Reading what is not in the page cache" if cold else "Storage"
    changes = [
        Change(text=f"Use more {_setting(seen)}, which have more requests under way", gain=None),
        Change(text="Copy the shards to a faster disk", gain=gain),
    ]
    if cold:
        text = "Add memory for the whole dataset: later epochs then come from the page cache"
        changes.insert(0, Change(text=text, gain=gain))
    return Verdict(
        bottleneck="cold" if cold else "storage",
        sentence=f"{where} limits this loop to {rate_of(seen)}, {waits}",
        short="cold storage limits" if cold else "storage limits",
        rate_without=seen.rate * gain,
        changes=tuple(changes),
    )


MORE_CONNECTIONS = Change(
    text=f"Use more workers, each of which fetches {CONNECTIONS} shards at once, and a greater "
    "predownload",
    gain=None,
)
STREAMS = Change(
    text="With several nodes, use streams, so that each fetches its own shards only",
    gain=None,
)


def _fetching(seen: Evidence, waits: str, gain: float) -> Verdict:
    """Describe a loop that waits for a store, of which nothing else is known."""
    return Verdict(
        bottleneck="store",
        sentence=f"Fetching from the store limits this loop to {rate_of(seen)}, {waits}",
        short="the store limits",
        rate_without=seen.rate * gain,
        changes=(
            Change(
                text=f"Raise {argument('cache_limit')} to the size of the dataset: later epochs "
                "then fetch nothing",
                gain=gain,
            ),
            MORE_CONNECTIONS,
            STREAMS,
        ),
    )


def _lock(seen: Evidence) -> Verdict | None:
    stages = seen.stages
    if seen.kind != "threads" or stages is None or seen.number < 2:
        return None
    share = seen.for_lock / stages.wall
    held = (seen.lock_wait or 0.0) > _LOCK_HELD_LONG
    own: Bottleneck = "map" if stages.map.cpu > stages.transform.cpu else "transform"
    off = sum(part.wall - part.cpu for part in (stages.transform, stages.map))
    if share <= _LOCKED or (off > _MOSTLY * seen.for_lock and not held):
        return None
    holder = "Python code"
    if max(stages.transform.cpu, stages.map.cpu) > stages.decode.cpu:
        holder = _function(seen, own)
    gain = min(seen.number, seen.cores)
    return Verdict(
        bottleneck="lock",
        sentence=f"{_begin(holder)} holds the interpreter's lock, which limits {seen.number} "
        f"threads to {rate_of(seen)}: they wait for it {share:.0%} of the time.",
        short="the interpreter's lock limits",
        rate_without=seen.rate / (1 - min(share, 0.95)),
        changes=(
            Change(
                text=f"Use workers={gain} in shardio.Loader in place of threads",
                gain=1 / (1 - min(share, 0.95)),
            ),
            *_lighter(seen, own),
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
        sentence=f"Too few batches are made ahead, which limits this loop to {rate_of(seen)}: it "
        f"waits {seen.waiting:.0%} of the time, yet the {_name(seen)} {are} busy only "
        f"{filling:.0%} of the time.",
        short="the prefetch is too small",
        rate_without=seen.rate * gain,
        changes=(Change(text=f"Have more batches made ahead{_ahead(seen)}", gain=gain),),
    )


def _stages(seen: Evidence) -> Verdict:
    """Name the stage that takes most of a sample's time."""
    stages = seen.stages
    if stages is None:
        return _without_stages(seen)
    where = counted(min(max(seen.number, 1), seen.cores), "core")
    parts = stages.parts(seen.for_core)
    name = max(parts, key=lambda part: parts[part])
    bottleneck, what = _PARTS[name]
    cpu = ""
    if bottleneck in {"transform", "map"}:
        what = _function(seen, bottleneck)
        cpu = f", {stages.by_name[name].cpu:,.0f} of CPU time"
    rest = sum(parts.values()) - parts[name]
    larger = Change(text=f"Use larger batches{_batch_size(seen)}", gain=None)
    return Verdict(
        bottleneck=bottleneck,
        sentence=f"{_begin(what)} on {where} limits this loop to {rate_of(seen)}: it "
        f"takes {parts[name]:,.0f} of the {sum(parts.values()) + stages.waiting:,.0f} µs of a "
        f"sample{cpu}.",
        short=f"{what} limits",
        rate_without=seen.rate * sum(parts.values()) / max(rest, 1e-9),
        changes=(larger,) if name in {"batch", "outside"} else (),
    )


_PARTS: Mapping[str, tuple[Bottleneck, str]] = {
    "read": ("loader", "reading bytes and checking them"),
    "decode": ("decode", "decoding"),
    "transform": ("transform", "the transform"),
    "map": ("map", "the map"),
    "batch": ("loader", "filling batches"),
    "outside": ("loader", "planning batches and handing them over"),
}
"""Bottleneck and description of each part of a sample's time."""


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
        sentence=f"{who} this loop to {rate_of(seen)}; {why}.",
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
    _busy,
    _worker,
    _storage,
    _lock,
    _prefetch,
)


GENERAL: Mapping[Bottleneck | None, tuple[Change, ...]] = {
    "decode": (
        Change(
            text="Pack smaller images (shardio pack --resize), or tiny ones as pixels",
            gain=None,
        ),
    ),
}
"""Advice for a bottleneck, where nothing is known of the images and the machine."""


def general(seen: Evidence, bottleneck: Bottleneck | None) -> tuple[Change, ...]:
    """Advise what fits the bottleneck, where nothing is known of the images and the machine."""
    resize = Change(
        text="If map= makes pictures smaller: transform=shardio.Resize(…) decodes less, and "
        "shardio pack --resize stores less",
        gain=None,
    )
    shrinks = (resize,) if seen.maps and seen.whole else ()
    if bottleneck in {"transform", "map"}:
        return (*_lighter(seen, bottleneck), *shrinks)
    return (*(shrinks if bottleneck == "decode" else ()), *GENERAL.get(bottleneck, ()))


def _lighter(seen: Evidence, bottleneck: Bottleneck) -> tuple[Change, ...]:
    """Advise a faster transform or function on samples, by the kind of it."""
    ways = []
    if bottleneck == "map":
        workers = "" if seen.kind == "processes" else "run it in workers, "
        ways.append(
            f"Vectorise {_function(seen, bottleneck)}, {workers}or store its result when packing"
        )
    elif seen.transform is not None:
        ways.append("Transform whole batches, on the device")
    else:
        ways.append("Pack images of nearly the size of the crop: shardio pack --resize")
    return tuple(Change(text=text, gain=None) for text in ways)


def _begin(what: str) -> str:
    """Capitalise the first word of a sentence, unless it is an argument."""
    return what if "=" in what.split(" ")[0] else what[0].upper() + what[1:]


def _function(seen: Evidence, bottleneck: Bottleneck) -> str:
    """Name what the stage transform or map does."""
    if bottleneck == "map":
        return f"map={', '.join(seen.maps)}" if seen.maps else "the map"
    return "the transform" if seen.transform is None else f"transform={seen.transform}"


def _more(seen: Evidence) -> tuple[Change, ...]:
    """Advise one producer per core, where there are fewer."""
    number = max(seen.number, 1)
    if number >= seen.cores:
        return ()
    if seen.kind == "here" and not (seen.ours or seen.torch):
        text = "Use a loader that has workers or threads, such as shardio.Loader"
        return (Change(text=text, gain=None),)
    text = f"Use {_setting(seen, seen.cores)}, one per core"
    return (Change(text=text, gain=seen.cores / number),)


def _setting(seen: Evidence, number: int | None = None) -> str:
    """Name the producers of the watched loader by its argument, as num_workers=2 in the DataLoader.

    Args:
        seen: observations of the loop.
        number: number of producers; None for the argument alone.
    """
    value = "" if number is None else f"={number}"
    if seen.torch and seen.kind != "threads":
        return f"num_workers{value} in the DataLoader"
    if seen.ours and seen.kind != "here":
        return f"{_name(seen, 2)}{value} in shardio.Loader"
    if seen.kind == "here":
        return f"shardio.Loader with {'' if number is None else f'{number} '}threads"
    return _name(seen, 2) if number is None else _count(number, seen)


def _to_threads(seen: Evidence) -> str:
    """Advise threads in place of workers."""
    return f"Use shardio.Loader{' without workers=' if seen.ours and not seen.torch else ''}"


def _ahead(seen: Evidence) -> str:
    """Name the argument of the watched loader that says how many batches are made ahead."""
    if seen.torch:
        return ": a larger prefetch_factor= of the DataLoader"
    return ": a larger prefetch= of shardio.Loader" if seen.ours and seen.kind != "here" else ""


def _batch_size(seen: Evidence) -> str:
    return ": a larger batch_size= of the ShardDataset" if seen.ours else ""


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


def rate_of(seen: Evidence) -> str:
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
