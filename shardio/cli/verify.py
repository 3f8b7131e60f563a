"""shardio verify."""

from __future__ import annotations

import sys
from dataclasses import asdict

import click

from shardio.cli.progress import progress_bar
from shardio.cli.text import say, say_json
from shardio.cli.values import allow_empty_option, max_pixels_option
from shardio.errors import counted
from shardio.inspection.findings import Verification
from shardio.inspection.repair import RepairSummary, repair
from shardio.inspection.verify import verify as verify_source
from shardio.packing.layout import DROPPED_NAME
from shardio.storage.local import refuse_url

_MOST_LINES = 50


@click.command(epilog="Example: shardio verify out/ --deep --fix new/")
@click.argument("path", type=click.Path())
@click.option("--deep", is_flag=True, help="Decode every image and every other field.")
@click.option(
    "--fix",
    "new",
    metavar="NEW",
    type=click.Path(),
    help="If there are problems, write the samples that are whole to a new folder, and list the "
    "others in NEW/dropped.jsonl.",
)
@allow_empty_option
@max_pixels_option
@click.option("--jobs", type=click.IntRange(min=1), help="Processes; by default one a core.")
@click.option("--json", "as_json", is_flag=True, help="Print all findings as JSON.")
def verify(
    path: str,
    deep: bool,
    new: str | None,
    allow_empty: bool,
    max_pixels: int,
    jobs: int | None,
    as_json: bool,
) -> None:
    """Check the shards of PATH, byte by byte.

    PATH is a packed folder, a folder of splits, or tars of others, with an index or without.
    Manifest, indexes, tars, names and keys are held against each other. The exit code is 1 if
    there are problems, also if they were fixed in NEW; notes are no problems.
    """
    if new is not None:
        refuse_url(new)
    with progress_bar("verifying, MB", hidden=as_json) as progress:
        found = verify_source(
            path,
            deep=deep,
            allow_empty=allow_empty,
            max_pixels=max_pixels,
            jobs=jobs,
            progress=progress,
        )
    if not as_json:
        _show_findings(found)
    fixed = None
    if new is not None and not found.sound:
        with progress_bar("repairing", hidden=as_json) as progress:
            fixed = repair(
                path, new, deep=deep, max_pixels=max_pixels, jobs=jobs, progress=progress
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


def _repaired(fixed: RepairSummary | None, new: str) -> str:
    if fixed is None:
        return f"{new}: not written, as there is nothing to repair"
    losses = f"; {DROPPED_NAME} there lists what is lost ({fixed.dropped:,})" * bool(fixed.dropped)
    return f"{new}: {counted(fixed.samples, 'sample')} in {counted(fixed.shards, 'shard')}{losses}"


def _verdict(found: Verification) -> str:
    problems = len(found.problems)
    verdict = counted(problems, "problem") if problems else "sound"
    counts = f"{counted(found.shards, 'shard')}, {counted(found.samples, 'sample')}"
    return f"{counts}, {found.bytes / 1e6:,.1f} MB: {verdict}"
