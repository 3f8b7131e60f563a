"""The words of a profile that the terminal, the page and the picture share."""

from __future__ import annotations

from shardio.profiling.evidence import Evidence, Stages
from shardio.profiling.phrases import as_sentence, cores
from shardio.profiling.profile import Profile

RUN_TITLES = "measured", "samples/s", "±", "predicted", "off", "waits", "first", "memory"
RUN_LEGEND = "±: spread; off: from predicted; waits: of the time; first: until a batch came"
PREDICTION_TITLES = "predicted, not run", "cores", "samples/s", "waits"
STAGE_TITLES = "stage", "wall", "CPU", "p50", "p99", "share"

_SPREAD_MUCH = 0.25
_ABOVE = 1.05  # times what limits it; a loop is measured, and so is its limit
_SLICES_OF_HALF_A_BATCH = 2.5
_ALONE = {"storage": "storage", "cold": "cold storage", "handover": "the hand-over"}


def ceiling_name(result: Profile) -> str:
    """What the profile's ceiling is that of."""
    return f"{_ALONE.get(result.verdict.bottleneck, 'decoding and transforming')} alone"


def facts(result: Profile) -> list[str]:
    """What belongs beside the verdict, in sentences."""
    best, verdict = result.runs[result.best], result.verdict
    seen = best.evidence
    found = []
    if result.ceiling:
        share = min(seen.rate / result.ceiling, 1.0)
        found.append(
            f"{ceiling_name(result)} would reach {result.ceiling:,.0f} samples/s; this loop "
            f"reaches {share:.0%} of that"
        )
    found.append(f"{seen.ready:.0%} of the batches were ready when the loop asked for them")
    if verdict.rate_without:
        found.append(
            f"without this bottleneck {verdict.rate_without:,.0f} samples/s would be expected"
        )
    if result.needed is not None:
        waits = f"the step needs {result.needed:,.0f} samples/s and waits {seen.waiting:.1%} of "
        waits += "the time"
        if best.predicted is not None:
            waits += f", where {max(1 - best.predicted / result.needed, 0):.1%} were predicted"
        found.append(waits)
    if was_disturbed(result):
        found.append("the machine was not idle: run again")
    return [as_sentence(text) for text in found]


def was_disturbed(result: Profile) -> bool:
    """Whether figures contradict each other, as they do where something else runs meanwhile."""
    limits = result.ceilings
    decode_all = limits.decode_all or 0.0
    less_on_all = limits.loop_all < limits.loop_one or decode_all < (limits.decode_one or 0.0)
    rate = result.runs[result.best].evidence.rate
    above = result.ceiling is not None and rate > _ABOVE * result.ceiling
    varied = any(_varied(run.evidence) for _, run in result.named_runs())
    return (result.cores > 1 and less_on_all) or above or varied


def _varied(seen: Evidence) -> bool:
    """Whether the rate changed by more than comes of whole batches in short slices of time."""
    whole = _SLICES_OF_HALF_A_BATCH * max(seen.number, 1) / seen.batches
    return seen.spread > _SPREAD_MUCH + whole


def change_rows(result: Profile) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Titles and a row for each change; what is expected of it where that is known of any."""
    changes = result.verdict.changes
    if not any(change.gain for change in changes):
        return ("what to change",), [(change.text,) for change in changes]
    rows = [(one.text, f"{one.gain:.1f} ×" if one.gain else "") for one in changes]
    return ("what to change", "expected"), [*rows]


def run_rows(result: Profile) -> list[tuple[str, ...]]:
    """A row for each run, under RUN_TITLES."""
    return [
        (
            name,
            f"{run.evidence.rate:,.0f}",
            f"{run.evidence.spread:.0%}",
            f"{run.predicted:,.0f}" if run.predicted else "",
            f"{run.error:+.0%}" if run.error is not None else "",
            f"{run.evidence.waiting:.0%}",
            f"{run.evidence.first_batch:,.2f} s",
            "-" if run.peak_memory is None else f"{run.peak_memory / 1e6:,.0f} MB",
        )
        for name, run in result.named_runs()
    ]


def prediction_rows(result: Profile) -> list[tuple[str, ...]]:
    """A row for each topology that was not run, under PREDICTION_TITLES."""
    return [
        (str(one.topology), str(one.cores), f"{one.rate:,.0f}", f"{one.waiting:.0%}")
        for one in result.predictions
    ]


def stage_rows(stages: Stages) -> list[tuple[str, ...]]:
    """A row for each part of a sample's time, under STAGE_TITLES, in microseconds."""
    rows: list[tuple[str, ...]] = []
    total = max(stages.total, 1e-9)
    for name in ("read", "decode", "transform", "batch"):
        part = getattr(stages, name)
        times = [f"{value:,.1f}" for value in (part.wall, part.cpu, part.p50, part.p99)]
        rows.append((name, *times, f"{part.wall / total:.0%}"))
    rest = ("plan, hand over", stages.outside), ("nothing to do", stages.waiting)
    for name, value in (*rest, ("total", stages.total)):
        rows.append((name, f"{value:,.1f}", "", "", "", f"{value / total:.0%}"))
    rows.append(("of it for a core", f"{stages.delay:,.1f}", "", "", "", ""))
    rows.append(("of it for the lock", f"{stages.lock:,.1f}", "", "", "", ""))
    return rows


def stage_note(seen: Evidence, stages: Stages) -> str:
    """What recording the stages took."""
    return (
        f"A sample has {stages.bytes / 1e3:,.1f} kB. {stages.recorded:.0%} of the samples were "
        f"recorded, which took {stages.overhead:.1%} of the time; watching took "
        f"{seen.watching:.1%} of a core."
    )


def compare(result: Profile) -> str:
    """The best run beside the baseline; empty without one."""
    if result.baseline is None:
        return ""
    name, run = result.baseline
    ratio = result.runs[result.best].evidence.rate / run.evidence.rate
    return f"{ratio:.2f} × {name}, on the same shards with the same crop."


def conditions(result: Profile) -> str:
    """What was held equal, without the source."""
    settings = result.settings
    crop = f"RandomResizedCrop({settings.size})" if settings.size else "no transform"
    cache = "cold" if settings.cold else "warm"
    return (
        f"{result.samples:,} samples in {result.shards:,} shards, {settings.transform or crop}, "
        f"batches of {settings.batch_size}, page cache {cache}, {settings.seconds:g} s a run, "
        f"{cores(result.cores)}"
    )
