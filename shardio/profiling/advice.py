"""What to change, with the gain that the measured parts let expect."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace

from shardio.profiling.evidence import Evidence, Kind
from shardio.profiling.limits import Ceilings
from shardio.profiling.model import Parts, predict
from shardio.profiling.settings import Settings
from shardio.profiling.verdict import LESS_TO_DECODE, ONE_A_CORE, Change, Verdict

_PACK = "shardio pack"
_LEAST_GAIN = 1.05
_MARGIN = 8 / 7  # of what a picture is packed with over what is cropped from it: 256 to 224
_TINY = 64  # pixels; such pictures are stored raw without a thought
_PLACE_BOUND = frozenset({"step", "start", "worker", "storage", "cold"})
"""Bottlenecks that other threads, workers or cores do not remove."""


def advise(
    verdict: Verdict,
    seen: Evidence,
    parts: Parts,
    ceilings: Ceilings,
    settings: Settings,
    measured: Mapping[tuple[Kind, int], float],
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
    seen: Evidence, parts: Parts, measured: Mapping[tuple[Kind, int], float]
) -> Iterator[Change]:
    kinds: tuple[tuple[Kind, str], ...] = (
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
    verdict: Verdict, parts: Parts, ceilings: Ceilings, settings: Settings
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
