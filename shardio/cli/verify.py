"""shardio verify."""

from __future__ import annotations

import json
import sys
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from shardio.cli.progress import progress_bar
from shardio.packing.findings import Verification
from shardio.packing.output import DROPPED_NAME
from shardio.packing.repair import RepairSummary, repair
from shardio.packing.verify import verify as verify_source

_MOST_LINES = 50


@click.command(
    epilog="Example: shardio verify out/    or, to save what is whole: "
    "shardio verify out/ --deep --fix new/"
)
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
@click.option("--jobs", type=click.IntRange(min=1), help="Processes; by default one a core.")
@click.option("--json", "as_json", is_flag=True, help="Print all findings as JSON.")
def verify(path: str, deep: bool, new: str | None, jobs: int | None, as_json: bool) -> None:
    """Check the shards of PATH, byte by byte.

    PATH is a packed folder, a folder of splits, or tars of others, with an index or without.
    Manifest, indexes, tars, names and keys are held against each other. The exit code is 1 if
    there are problems, also if they were fixed in NEW; notes are no problems.
    """
    with _progress("verifying, MB", as_json) as progress:
        found = verify_source(path, deep=deep, jobs=jobs, progress=progress)
    fixed = None
    if new is not None and not found.sound:
        with _progress("repairing", as_json) as progress:
            fixed = repair(path, new, deep=deep, jobs=jobs, progress=progress)
    if as_json:
        summary = asdict(found) | {"sound": found.sound}
        click.echo(json.dumps(summary | {"fixed": fixed and asdict(fixed)}))
    else:
        _show(found, fixed, new or "")
    if not found.sound:
        sys.exit(1)


def _progress(title: str, as_json: bool) -> AbstractContextManager[Any]:
    return nullcontext() if as_json else progress_bar(title)


def _show(found: Verification, fixed: RepairSummary | None, new: str) -> None:
    lines = [_printable(str(finding)) for finding in found.findings]
    for line in lines[:_MOST_LINES]:
        click.echo(line)
    if len(lines) > _MOST_LINES:
        click.echo(f"and {len(lines) - _MOST_LINES:,} more; --json has all")
    if fixed is not None:
        listed = f"; {Path(new, DROPPED_NAME)} lists {fixed.dropped:,} losses" * bool(fixed.dropped)
        click.echo(f"{new}: {fixed.samples:,} whole samples in {fixed.shards:,} shards{listed}")
    problems = len(found.problems)
    verdict = f"{problems:,} problem{'s' * (problems != 1)}" if problems else "sound"
    click.echo(
        f"{found.shards:,} shards, {found.samples:,} samples, {found.bytes / 1e6:,.1f} MB: "
        f"{verdict}"
    )


def _printable(text: str) -> str:
    """A finding on one line, undecodable bytes of names escaped."""
    encoding = sys.stdout.encoding or "utf-8"
    return text.replace("\n", "\\n").encode(encoding, "backslashreplace").decode(encoding)
