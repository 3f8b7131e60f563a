"""What follows from the measurements of a profile, and what is withheld instead of guessed.

Pure functions. Each claim needs that others leave the cores alone, and that the measurements which
it rests on did not vary much; `NEEDS` says how much. Nor is anything claimed that another
measurement of the same profile contradicts. What does not hold is withheld, with the reason and the
remedy in its place. The verdict on a loop that `monitor` watches has the same needs.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple, get_args

from shardio.errors import argument, counted
from shardio.profiling.costs import SampleCosts, predict
from shardio.profiling.evidence import Ceilings, Evidence, ProducerKind
from shardio.profiling.settings import ProfileSettings, Topology
from shardio.profiling.store import LARGE_SHARD, StoreLimits, megabytes
from shardio.profiling.verdict import (
    CERTAIN,
    MORE_CONNECTIONS,
    MOST_OTHERS,
    STREAMS,
    WAITS_LITTLE,
    Bottleneck,
    Change,
    Verdict,
    diagnose,
    general,
    judge,
    rate_of,
)

Claim = Literal["verdict", "limit", "threads", "processes", "ratio"]
"""What limits the fastest loader; how much the machine could do; the rate of other numbers of
threads, of workers; the rate over that of the baseline."""


class Need(NamedTuple):
    """What a claim needs.

    Attributes:
        others: most share of the cores that others may keep busy.
        spread: most spread of each measurement.
    """

    others: float
    spread: float


NEEDS: Mapping[Claim, Need] = {
    "verdict": Need(others=MOST_OTHERS, spread=0.25),
    "limit": Need(others=0.1, spread=0.15),
    "threads": Need(others=0.1, spread=0.15),
    "processes": Need(others=0.1, spread=0.15),
    "ratio": Need(others=0.1, spread=0.15),
}
PREDICTED_WITHIN = 0.1
"""Most error of a prediction, unless the spread of the run is greater."""

_KINDS: tuple[Literal["threads", "processes"], ...] = ("threads", "processes")
_OF_THE_CORES: frozenset[Bottleneck] = frozenset(
    {"decode", "transform", "loader", "lock", "cores", "opencv"}
)
_ALL_KINDS: tuple[ProducerKind, ...] = get_args(ProducerKind)
_PLACE_BOUND: frozenset[Bottleneck] = frozenset(
    {"step", "start", "busy", "worker", "storage", "cold", "store"}
)
"""Bottlenecks that other threads, workers or cores do not remove."""
_LEAST_GAIN = 1.05
_CLEARLY = 3  # times slower than the loop, which no doubt about its rate makes up for
_MARGIN = 8 / 7  # side that an image is packed with over that of its crop: 256 to 224
_TINY = 64  # pixels; smaller images can be stored raw without a thought
_PREDICTED = (1, 2, 4, 8)
_MACHINES = (2, 4, 8)  # times the cores of this one
_LONGER = 4  # times the seconds
_LEAST_BATCHES = 16
_NAMES: Mapping[Claim, str] = {
    "verdict": "verdict",
    "limit": "limits",
    "threads": "predictions for threads",
    "processes": "predictions for workers",
    "ratio": "ratio to the baseline",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """One measured loader.

    Attributes:
        topology: producers of the batches.
        evidence: observations of the loop.
        samples_per_second: samples per second.
        speed: samples per second of loops without hand-over just before and after; one loop for
            the loop's own thread, else one on each core.
        predicted: samples per second expected from other measurements and this speed; None where
            nothing was known yet, or the machine was not idle.
        error: measured over predicted rate, less 1; None without a prediction.
        spread: spread of the rate, see Evidence.
        others: mean number of cores that others kept busy; None where not known.
        megabytes_per_second: stored bytes read, 10^6 per second; None where the stages are not
            known.
        waits: seconds since the beginning, and share of the time waited from there on.
        peak_memory: bytes held by the process and its workers; None where not known.
    """

    topology: Topology
    evidence: Evidence
    samples_per_second: float
    speed: float
    predicted: float | None
    error: float | None
    spread: float
    others: float | None
    megabytes_per_second: float | None
    waits: tuple[tuple[float, float], ...]
    peak_memory: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """Expected rate of a topology that was not measured, on this machine or a larger one.

    Attributes:
        topology: producers of the batches.
        cores: cores of the machine.
        rate: samples per second.
        waiting: share of the time that a loop with this step would wait.
    """

    topology: Topology
    cores: int
    rate: float
    waiting: float


def best_of(runs: Sequence[Measurement], settings: ProfileSettings) -> int:
    """Return the position of the fastest run among those that were asked for."""
    numbers = settings.workers, settings.threads
    alone = numbers == (None, None) or any(0 in (several or ()) for several in numbers)
    asked = runs if alone else runs[1:] or runs
    return [*runs].index(max(asked, key=lambda run: run.evidence.rate))


def conclude(
    settings: ProfileSettings,
    ceilings: Ceilings,
    costs: SampleCosts,
    runs: Sequence[Measurement],
    baseline: Measurement | None,
    store: StoreLimits | None,
) -> dict[str, Any]:
    """Return what follows from the measurements, as the other attributes of a Profile."""
    at = best_of(runs, settings)
    bounds = [_bound(run, ceilings, settings) for run in runs]
    held = withhold(ceilings, runs, at, baseline, bounds, settings)
    kinds: set[ProducerKind] = {"here", *_KINDS}
    if held.keys() >= {*_KINDS}:  # then no prediction was a fair one
        kinds = set()
        runs = [replace(run, predicted=None, error=None) for run in runs]
    held |= missed(runs)
    kinds -= {*held}
    best = runs[at]
    slow = store is not None and _CLEARLY * store.samples_per_second < best.evidence.rate
    if store is not None and slow and "verdict" in held:
        del held["verdict"]
        verdict = _without_gains(_first_epoch(None, best.evidence, store))
    elif "verdict" in held:
        verdict = Verdict.withheld(notices(held)[0])
    else:
        costs = _costs_of_best(costs, ceilings, best, settings)
        rates = {(run.topology.kind, run.topology.producers): run.evidence.rate for run in runs}
        verdict = advise(best.evidence, costs, ceilings, settings, rates, store, kinds)
    compared = None if "ratio" in held else baseline
    return {
        "runs": tuple(runs),
        "best": at,
        "verdict": verdict,
        "withheld": held,
        "ceiling": None if "limit" in held else _ceiling(verdict, ceilings, best),
        "storage": None if "limit" in held else _storage(ceilings, best),
        "predictions": _predictions(costs, runs, kinds) if kinds & {*_KINDS} else None,
        "ratio": best.evidence.rate / compared.evidence.rate if compared else None,
    }


def judge_watched(seen: Evidence) -> Verdict:
    """Name what limits a watched loop, or say why the measurement does not tell."""
    verdict, part = judge(seen), _Part("the loop", seen.others or 0.0, seen.spread)
    least = max(_LEAST_BATCHES, math.ceil(seen.number / NEEDS["verdict"].spread))
    tiny = verdict.bottleneck == "start" and seen.steps is not None  # it needs no more of them
    fetched = verdict.bottleneck == "store" and seen.fetching  # in bursts, whoever has the cores
    if seen.batches < least and not (tiny or fetched):
        reason = (
            f"{counted(seen.batches, 'batch', 'batches')} after the first ones "
            f"{'is' if seen.batches == 1 else 'are'} too few; watch at least {least}"
        )
        return Verdict.withheld(notices({"verdict": reason})[0])
    doubt = _doubt("verdict", (part,), (part,), seen.cores, "watch more batches")
    if doubt is None or fetched or verdict.bottleneck in CERTAIN:
        return verdict
    return Verdict.withheld(notices({"verdict": doubt})[0])


def forewarn(others: float | None, cores: int) -> str | None:
    """Say that a profile will have no verdict, if others take as much of the cores as before it."""
    if (others or 0.0) <= NEEDS["verdict"].others * cores:
        return None
    return (
        f"{_taken(others or 0.0, cores, 'take')} now; if they go on, the profile, which takes "
        "about a minute, withholds verdict, limits and predictions; close them first"
    )


class _Part(NamedTuple):
    """A measurement that a claim rests on."""

    name: str
    others: float
    spread: float


def withhold(
    ceilings: Ceilings,
    runs: Sequence[Measurement],
    best: int,
    baseline: Measurement | None,
    bounds: Sequence[float],
    settings: ProfileSettings,
) -> dict[Claim, str]:
    """Return the claims that do not hold, with reason and remedy.

    Args:
        ceilings: limits of the machine.
        runs: measured loaders; the first is the loop's own thread.
        best: position in runs of the fastest loader, which the verdict is about.
        baseline: measurement of another loader.
        bounds: for each run, samples per second that the limits let it reach.
        settings: settings of the profile.
    """
    limits = _Part("the machine's limits", ceilings.others or 0.0, ceilings.spread)
    measured = [_Part(str(run.topology), run.others or 0.0, run.spread) for run in runs]
    alone, fastest = measured[0], measured[best]
    parts: dict[Claim, tuple[_Part, ...]] = {
        "verdict": (fastest,),
        "limit": (limits, fastest),
        "threads": (limits, alone, fastest),
        "processes": (limits, alone, fastest),
    }
    if baseline is not None:
        other = _Part("the baseline", baseline.others or 0.0, baseline.spread)
        parts["ratio"] = (fastest, other)
    cores = runs[0].evidence.cores
    everything = {*measured}.union(*parts.values())
    busiest = max(everything, key=lambda part: part.others)  # the same reason for all claims
    longer = f"measure for longer ({argument('seconds', _LONGER * settings.seconds)})"
    found = {}
    for claim, several in parts.items():
        # Which loader is the fastest was decided among all.
        among = (*measured, *several)
        doubt = _doubt(claim, several, among, cores, longer, busiest)
        if doubt is not None:
            found[claim] = doubt
    if judge(runs[best].evidence).bottleneck == "step":  # however the rate came about
        found.pop("verdict", None)
    contradiction = next(_contradictions(ceilings, runs, bounds, cores), None)
    if contradiction is not None:
        for claim in ("limit", "threads", "processes"):
            found.setdefault(claim, contradiction)
    both = (runs[best], baseline) if baseline is not None else ()
    if both and all(run.evidence.waiting < WAITS_LITTLE for run in both):
        found["ratio"] = "the step limits both loaders; measure without a step, or a shorter one"
    return found


def missed(runs: Sequence[Measurement]) -> dict[Claim, str]:
    """Return the predictions that a run proved wrong, with reason and remedy."""
    found: dict[Claim, str] = {}
    for kind in _KINDS:
        wrong = [
            (abs(run.error), run)
            for run in runs
            if run.topology.kind == kind
            and run.error is not None
            and abs(run.error) > max(PREDICTED_WITHIN, run.spread)
        ]
        if wrong:
            off, worst = max(wrong, key=lambda pair: pair[0])
            were = "was" if worst.topology.producers == 1 else "were"
            faster = "faster" if (worst.error or 0.0) > 0 else "slower"
            option = argument("threads" if kind == "threads" else "workers")
            found[kind] = (
                f"{worst.topology} {were} {off:.0%} {faster} than predicted; measure the numbers "
                f"that matter ({option})"
            )
    return found


def notices(held: Mapping[Claim, str]) -> list[str]:
    """Say in a sentence for each reason what is withheld, the verdict first."""
    by_reason: dict[str, list[Claim]] = {}
    for claim in NEEDS:
        if claim in held:
            by_reason.setdefault(held[claim], []).append(claim)
    return [f"No {_listed(claims)}: {reason}." for reason, claims in by_reason.items()]


def _listed(claims: Sequence[Claim]) -> str:
    names = [_NAMES[claim] for claim in claims]
    if {"threads", "processes"} <= {*claims}:
        at = names.index(_NAMES["threads"])
        names[at : at + 2] = ["predictions"]
    *others, last = names
    return f"{', '.join(others)} or {last}" if others else last


def _doubt(
    claim: Claim,
    parts: Sequence[_Part],
    among: Sequence[_Part],
    cores: int,
    longer: str,
    busiest: _Part | None = None,
) -> str | None:
    """Return the reason why a claim does not hold, with a remedy; None if it holds.

    Args:
        claim: claim.
        parts: measurements that it rests on.
        among: measurements that others must not disturb.
        cores: number of cores.
        longer: remedy for a rate that varies.
        busiest: measurement to name where others disturbed; by default the one most disturbed.
    """
    need = NEEDS[claim]
    most = max(among, key=lambda part: part.others)
    if most.others > need.others * cores:
        part = busiest or most
        return (
            f"{_taken(part.others, cores, 'took')} during the measurement of {part.name}; close "
            "them and run again"
        )
    widest = max(parts, key=lambda part: part.spread)
    if widest.spread > need.spread:
        return (
            f"the measurement of {widest.name} varied by ±{widest.spread:.0%}; {longer} on an "
            "idle machine"
        )
    return None


def _taken(others: float, cores: int, took: str) -> str:
    whole = "the core" if cores == 1 else f"the {cores} cores"
    return f"other programs, or the host of a virtual machine, {took} {others:.1f} of {whole}"


def _contradictions(
    ceilings: Ceilings, runs: Sequence[Measurement], bounds: Sequence[float], cores: int
) -> Iterator[str]:
    again = "run again on an idle machine"
    for run, bound in zip(runs, bounds, strict=True):
        above = run.samples_per_second / bound - 1
        if above > max(run.spread, ceilings.spread):
            yield (
                f"{run.topology} reached {above:.0%} more than was measured as the most possible; "
                f"{again}"
            )
    pairs = (
        (ceilings.loop_one, ceilings.loop_all),
        (ceilings.decode_one or 0.0, ceilings.decode_all or math.inf),
    )
    if cores > 1 and any(every < one * (1 - ceilings.spread) for one, every in pairs):
        yield f"{counted(cores, 'core')} together were slower than one of them; {again}"


def _predictions(
    costs: SampleCosts, runs: Sequence[Measurement], kinds: Collection[ProducerKind]
) -> tuple[Prediction, ...]:
    """Predict other numbers of threads and workers, and machines with more cores."""
    ran = {(run.topology.kind, run.topology.producers) for run in runs}
    found = []
    for kind in (kind for kind in _KINDS if kind in kinds):
        found += [
            _prediction(costs, Topology(kind=kind, producers=number))
            for number in _PREDICTED
            if (kind, number) not in ran
        ]
        for times in _MACHINES if costs.cores > 1 else ():  # one core says nothing of several
            cores = times * costs.cores
            topology = Topology(kind=kind, producers=cores)
            found.append(_prediction(costs.with_cores(cores), topology))
    return tuple(found)


def _prediction(costs: SampleCosts, topology: Topology) -> Prediction:
    rate = predict(costs, topology.kind, topology.producers)
    return Prediction(
        topology=topology,
        cores=costs.cores,
        rate=rate,
        waiting=max(1 - costs.step * rate / 1e6, 0.0) if costs.step else 1.0,
    )


def relative_speed(speed: float, kind: ProducerKind, ceilings: Ceilings) -> float:
    """Return the speed of the machine beside a run, over that when its limits were measured."""
    return speed / (ceilings.loop_one if kind == "here" else ceilings.loop_all)


def _costs_of_best(
    costs: SampleCosts, ceilings: Ceilings, run: Measurement, settings: ProfileSettings
) -> SampleCosts:
    """Return the costs at the speed that the machine had in a run, with the step of that run."""
    costs = costs.at_speed(relative_speed(run.speed, run.topology.kind, ceilings))
    if not settings.has_step:
        return costs
    return replace(costs, step=run.evidence.step_seconds / settings.batch_size * 1e6)


def _ceiling(verdict: Verdict, ceilings: Ceilings, run: Measurement) -> float | None:
    """Return the rate that the named bottleneck alone would allow."""
    if verdict.bottleneck in {"storage", "cold"}:
        return _storage(ceilings, run)
    if verdict.bottleneck == "handover":
        return ceilings.handover * run.evidence.samples / run.evidence.batches
    return _decoding(ceilings, run) if verdict.bottleneck in _OF_THE_CORES else None


def _storage(ceilings: Ceilings, run: Measurement) -> float | None:
    """Return the rate that storage alone would allow, or the page cache if that is all."""
    stages = run.evidence.stages
    return (ceilings.cold or ceilings.warm) / stages.bytes if stages and stages.bytes else None


def _decoding(ceilings: Ceilings, run: Measurement) -> float | None:
    """Return the rate that decoding alone would allow; None where more of them may wait at once."""
    kind, cores = run.topology.kind, run.evidence.cores
    decode = ceilings.decode_one if kind == "here" else ceilings.decode_all
    if decode is None or run.topology.producers > cores:
        return None
    return decode * relative_speed(run.speed, kind, ceilings)


def _bound(run: Measurement, ceilings: Ceilings, settings: ProfileSettings) -> float:
    """Return the rate that the limits allow a run."""
    storage = _storage(ceilings, run) if settings.cold else None
    return min(_decoding(ceilings, run) or math.inf, storage or math.inf)


def advise(
    seen: Evidence,
    costs: SampleCosts,
    ceilings: Ceilings,
    settings: ProfileSettings,
    measured: Mapping[tuple[ProducerKind, int], float],
    store: StoreLimits | None = None,
    predictable: Collection[ProducerKind] = _ALL_KINDS,
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
    verdict, known = diagnose(seen), seen.kind in predictable
    if store is not None and store.samples_per_second < seen.rate:
        found = _first_epoch(verdict, seen, store)
        return found if known else _without_gains(found)
    if not known:
        return _without_gains(judge(seen))
    changes = [*verdict.changes]
    if verdict.bottleneck not in _PLACE_BOUND:
        packing = [*_packing(verdict, seen.rate, costs, ceilings, settings)]
        advised = () if packing else general(seen, verdict.bottleneck)
        topologies = _topologies(seen, costs, measured, predictable)
        changes += [*advised, *topologies, *packing]
    most = 1e6 / costs.step if settings.has_step else math.inf
    changes = [_limited(change, most / seen.rate) for change in changes]
    changes = [change for change in changes if change.gain is None or change.gain >= _LEAST_GAIN]
    changes.sort(key=lambda change: -(change.gain or 0))
    without = verdict.rate_without
    if without is not None and verdict.bottleneck != "step":
        without = max(min(without, most), seen.rate)
    return replace(verdict, changes=tuple(changes), rate_without=without)


def _first_epoch(verdict: Verdict | None, seen: Evidence, store: StoreLimits) -> Verdict:
    """Describe a loop that is faster than the store delivers.

    Args:
        verdict: verdict on the loop with shards in the cache; None where it is withheld.
        seen: observations of that loop.
        store: limits of the store.
    """
    rate, most = store.samples_per_second, seen.rate / store.samples_per_second
    link = ""
    if store.grows:
        link = " (more would be faster)"
    elif store.enough < store.connections:
        link = f" ({store.enough} {'is' if store.enough == 1 else 'are'} as fast)"
    changes = [MORE_CONNECTIONS] if store.grows else []
    larger = store.rate(max(LARGE_SHARD, store.shard_bytes)) / store.rate()
    if larger >= _LEAST_GAIN:
        text = (
            f"Make larger shards, shardio reshard --shard-size 256MB: of a request for one of "
            f"{store.shard_bytes / 1e6:,.2f} MB, {store.waiting:.0%} is the wait for its first byte"
        )
        changes.append(Change(text=text, gain=min(larger, most)))
    if store.cached < 1:
        text = (
            f"Raise {argument('cache_limit')} to {store.total_bytes / 1e9:,.1f} GB: the cache may "
            f"hold {store.cached:.0%} of the dataset, and later epochs fetch the rest again"
        )
        changes.append(Change(text=text, gain=most))
    changes.sort(key=lambda change: -(change.gain or 0))
    later = "later ones come" if store.cached == 1 else "what the cache holds comes"
    return Verdict(
        bottleneck="store",
        sentence=f"The store limits the first epoch to {rate:,.0f} samples/s, "
        f"{megabytes(store.rate())} MB/s by {store.connections} connections{link}; {later} at "
        f"{rate_of(seen)}{f', where {verdict.short}' if verdict is not None else ''}.",
        short="the store limits",
        rate_without=seen.rate,
        changes=(*changes, STREAMS),
    )


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
        how, saved = f"shardio pack --store raw --resize {ceilings.side:.0f}", decoding
    elif 0 < side < ceilings.side:
        how, saved = f"shardio pack --resize {side}", decoding * (1 - (side / ceilings.side) ** 2)
    else:
        return
    gain = costs.cpu / max(costs.cpu - saved, 1e-9)
    most = (verdict.rate_without or rate) / rate  # seen in another measurement than the costs
    yield Change(text=f"Pack again: {how}", gain=min(gain, most))
