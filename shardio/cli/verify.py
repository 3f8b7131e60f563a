"""shardio verify."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

import click
from rich.table import Table

from shardio.cli.pages import Part, page, table
from shardio.cli.progress import progress_bar
from shardio.cli.text import say, say_json
from shardio.cli.values import Command, allow_empty_option, max_pixels_option, store_options
from shardio.errors import counted, shown, without_secrets
from shardio.inspection.findings import ClassShare, FieldStatistics, Verification
from shardio.inspection.repair import RepairSummary, repair
from shardio.inspection.verify import verify as verify_source
from shardio.packing.layout import DROPPED_NAME
from shardio.storage.location import locate

_MOST_LINES = 50
_MOST_CLASSES = 20  # of a field


@click.command(cls=Command, epilog="Example: shardio verify out/ --deep --fix new/")
@click.argument("path", type=click.Path())
@click.option(
    "--deep",
    is_flag=True,
    help="Decode every field, compare masks, depth, boxes and points with the pictures, and show "
    "classes and ranges.",
)
@click.option(
    "--fix",
    "new",
    metavar="NEW",
    type=click.Path(),
    help="If there are problems, write the samples that are whole to a new folder, and list the "
    "others in NEW/dropped.jsonl.",
)
@allow_empty_option
@store_options
@max_pixels_option
@click.option("--jobs", type=click.IntRange(min=1), help="Processes; by default one a core.")
@click.option("--json", "as_json", is_flag=True, help="Print all findings as JSON.")
def verify(
    path: str,
    deep: bool,
    new: str | None,
    allow_empty: bool,
    max_pixels: int,
    storage_options: dict[str, Any] | None,
    jobs: int | None,
    as_json: bool,
) -> None:
    """Check the shards of PATH, byte by byte.

    PATH is a packed folder, a folder of splits, or tars of others, with an index or without; PATH
    and NEW may be URLs.
    Manifest, indexes, tars, names and keys are held against each other. The exit code is 1 if
    there are problems, also if they were fixed in NEW; notes are no problems.
    """
    if new is not None:
        locate(new, options=storage_options).for_writing()  # refuses others at once
    with progress_bar("verifying", hidden=as_json, of_bytes=True) as progress:
        found = verify_source(
            path,
            deep=deep,
            allow_empty=allow_empty,
            max_pixels=max_pixels,
            storage_options=storage_options,
            jobs=jobs,
            progress=progress,
        )
    if not as_json:
        _show_findings(found)
        if found.statistics:
            text = page(_statistics(found.statistics))
            say(re.sub("\n{3,}", "\n\n", text).strip("\n") + "\n", as_it_is=True)
    fixed = None
    if new is not None and not found.sound:
        with progress_bar("repairing", hidden=as_json) as progress:
            fixed = repair(
                path,
                new,
                deep=deep,
                max_pixels=max_pixels,
                storage_options=storage_options,
                jobs=jobs,
                progress=progress,
            )
    if as_json:
        say_json(found, sound=found.sound, fixed=fixed and asdict(fixed))
    else:
        if new is not None:
            say(_repaired(fixed, new))
        say(_verdict(found))
    if not found.sound:
        sys.exit(1)


def _show_findings(found: Verification) -> None:
    for finding in found.findings[:_MOST_LINES]:
        say(str(finding))
    if len(found.findings) > _MOST_LINES:
        say(f"and {len(found.findings) - _MOST_LINES:,} more; --json has all")


def _statistics(fields: Sequence[FieldStatistics]) -> Iterator[Part]:
    """Lay out a table of the fields, and one of the classes of each field that has them."""
    made = table("field", "kind", "samples", "values", "contents", left=2)
    made.columns[4].justify = "left"
    for field in fields:
        values = f"{field.values:,} {field.unit}"
        made.add_row(
            shown(field.name), field.kind, f"{field.samples:,}", values, ", ".join(_contents(field))
        )
    yield made
    for field in fields:
        if field.classes:
            yield f"Classes of {shown(field.name)}:"
            yield _classes(field, field.classes[:_MOST_CLASSES])
            more = len(field.classes) - _MOST_CLASSES
            if more > 0:
                yield f"and {counted(more, 'more class', 'more classes')}; --json has all"


def _contents(field: FieldStatistics) -> Iterator[str]:
    if field.classes is not None:
        least = "" if field.complete else "more than "
        yield least + counted(len(field.classes), "class", "classes")
    if field.low is not None and field.high is not None:
        yield f"{field.low:g} to {field.high:g}"
    for name, values in field.counts.items():
        if values:
            yield f"{_share(values, field.values)} {name}"


def _classes(field: FieldStatistics, classes: Sequence[ClassShare]) -> Table:
    """Show the samples of each class, and its values where a sample has several."""
    several = field.values != field.samples
    made = table("class", "samples", "share", *[field.unit, "share"] * several)
    for each in classes:
        values = [f"{each.values:,}", _share(each.values, field.values)]
        made.add_row(
            str(each.number),
            f"{each.samples:,}",
            _share(each.samples, field.samples),
            *values * several,
        )
    return made


def _share(part: int, whole: int) -> str:
    """Format a share; one that is not zero is not shown as zero, and one not whole not as whole."""
    if not part or part == whole:
        return "100%" if part else "0%"
    return f"{min(max(part / whole, 0.001), 0.999):.1%}"


def _repaired(fixed: RepairSummary | None, new: str) -> str:
    new = without_secrets(new)
    if fixed is None:
        return f"{new}: not written, as there is nothing to repair"
    made = f"{new}: {counted(fixed.samples, 'sample')} in {counted(fixed.shards, 'shard')}"
    if not fixed.dropped:
        return made
    lost = counted(fixed.lost, "sample is", "samples are") if fixed.lost else "no known sample is"
    damaged = f", {counted(fixed.damaged, 'shard is', 'shards are')} damaged or missing" * bool(
        fixed.damaged
    )
    return f"{made}; {lost} lost{damaged}; {DROPPED_NAME} there says what and why"


def _verdict(found: Verification) -> str:
    problems = len(found.problems)
    verdict = counted(problems, "problem") if problems else "sound"
    counts = f"{counted(found.shards, 'shard')}, {counted(found.samples, 'sample')}"
    return f"{counts}, {found.bytes / 1e6:,.1f} MB: {verdict}"
