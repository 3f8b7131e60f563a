"""The words of a profile that the terminal and the page share."""

from __future__ import annotations

from shardio.profiling.phrases import cores
from shardio.profiling.profile import Profile

RUN_TITLES = "measured", "samples/s", "spread", "predicted", "off", "waits", "first", "memory"


def run_rows(result: Profile) -> list[tuple[str, ...]]:
    """A row for each run, under RUN_TITLES."""
    return [
        (
            name,
            f"{run.evidence.rate:,.0f}",
            f"±{run.evidence.spread:.0%}",
            f"{run.predicted:,.0f}" if run.predicted else "",
            f"{run.error:+.0%}" if run.error is not None else "",
            f"{run.evidence.waiting:.0%}",
            f"{run.evidence.first_batch * 1e3:,.0f} ms",
            "-" if run.peak_memory is None else f"{run.peak_memory / 1e6:,.0f} MB",
        )
        for name, run in result.named_runs()
    ]


def compare(result: Profile) -> str:
    """The best run beside the baseline; empty without one."""
    if result.baseline is None:
        return ""
    name, run = result.baseline
    ratio = result.runs[result.best].evidence.rate / run.evidence.rate
    return f"{ratio:.2f} × {name}, on the same shards with the same crop"


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
