"""The profile as text: the verdict first, then tables, in 80 columns."""

from __future__ import annotations

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.padding import Padding
from rich.table import Table

from shardio.profiling.evidence import Stages
from shardio.profiling.phrases import cores
from shardio.profiling.profile import Profile
from shardio.profiling.words import RUN_TITLES, compare, conditions, run_rows

_WIDTH = 80


def show_profile(result: Profile) -> None:
    """Print a profile."""
    console = Console(width=_WIDTH, highlight=False)
    verdict, best = result.verdict, result.runs[result.best]
    console.print(f"[bold]{_sentence(verdict.sentence)}[/bold]", end="\n")
    console.print(_facts(result))
    if verdict.changes:
        console.print(_changes(result))
    console.print(_runs(result))
    console.print(_predictions(result))
    if best.evidence.stages is not None:
        console.print(f"A sample in {best.topology}, in µs:")
        console.print(_stages(best.evidence.stages, best.evidence.watching))
    console.print("The limits of this machine with these shards:")
    console.print(_limits(result))
    text = f"{result.settings.source}: {conditions(result)}."
    console.print(text, style="dim", markup=False)


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:] + "."


def _facts(result: Profile) -> Padding:
    best, verdict = result.runs[result.best], result.verdict
    facts = []
    if result.ceiling:
        facts.append(f"{best.evidence.rate / result.ceiling:.0%} of its ceiling")
    facts.append(f"{best.evidence.ready:.0%} of its batches were ready when asked for")
    if verdict.rate_without:
        facts.append(f"{verdict.rate_without:,.0f} samples/s if it were removed")
    if result.needed is not None:
        waits = f"the step waits {best.evidence.waiting:.1%} of the time"
        if best.predicted is not None:
            waits += f" (predicted {max(1 - best.predicted / result.needed, 0):.1%})"
        facts.append(f"{waits} and needs {result.needed:,.0f} samples/s")
    return Padding("; ".join(facts), (0, 0, 0, 2))


def _table(*titles: str) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for number, title in enumerate(titles):
        table.add_column(title, justify="right" if number else "left")
    return table


def _changes(result: Profile) -> Table:
    table = _table("what to change", "expected")
    for change in result.verdict.changes:
        table.add_row(change.text, f"{change.gain:.1f} ×" if change.gain else "")
    return table


def _runs(result: Profile) -> Table:
    table = _table(*RUN_TITLES)
    for row in run_rows(result):
        table.add_row(*row)
    table.caption = compare(result) or None
    return table


def _predictions(result: Profile) -> Table:
    table = _table("predicted, not run", "cores", "samples/s", "waits")
    for one in result.predictions:
        table.add_row(str(one.topology), str(one.cores), f"{one.rate:,.0f}", f"{one.waiting:.0%}")
    return table


def _stages(stages: Stages, watching: float) -> Table:
    table = _table("stage", "wall", "CPU", "p50", "p99", "share")
    for name in ("read", "decode", "transform", "batch"):
        part = getattr(stages, name)
        table.add_row(
            name,
            f"{part.wall:,.1f}",
            f"{part.cpu:,.1f}",
            f"{part.p50:,.1f}",
            f"{part.p99:,.1f}",
            f"{part.wall / stages.total:.0%}",
        )
    for name in ("outside", "waiting", "total"):
        value = getattr(stages, name)
        title = {"outside": "plan, hand over", "waiting": "nothing to do"}.get(name, name)
        table.add_row(title, f"{value:,.1f}", "", "", "", f"{value / stages.total:.0%}")
    table.add_row("of it for a core", f"{stages.delay:,.1f}", "", "", "", "")
    table.add_row("of it for the lock", f"{stages.lock:,.1f}", "", "", "", "")
    table.caption = (
        f"{stages.bytes / 1e3:,.1f} kB a sample; {stages.recorded:.0%} of the samples were "
        f"recorded, which took {stages.overhead:.1%} of the time; watching took {watching:.1%} "
        "of a core"
    )
    return table


def _limits(result: Profile) -> Table:
    limits = result.ceilings
    table = _table("part", "limit")
    cold = "not measured: the page cache cannot be dropped for these files"
    table.add_row("storage, cold", cold if limits.cold is None else _speed(limits.cold))
    table.add_row("page cache", _speed(limits.warm))
    if limits.decode_one and limits.decode_all:
        table.add_row("decode and transform, one core", f"{limits.decode_one:,.0f} samples/s")
        text = f"decode and transform, {cores(result.cores)}"
        table.add_row(text, f"{limits.decode_all:,.0f} samples/s")
    table.add_row("copy in memory, one core", _speed(limits.copy))
    size = result.settings.batch_size
    table.add_row("hand-over from a worker", f"{limits.handover * size:,.0f} samples/s")
    if limits.to_device is not None:
        table.add_row("copy to the GPU", _speed(limits.to_device))
    return table


def _speed(bytes_per_second: float) -> str:
    return f"{bytes_per_second / 1e6:,.0f} MB/s"
