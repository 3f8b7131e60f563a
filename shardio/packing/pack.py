"""From a folder of images to a packed folder: list, plan, run, publish.

The same input gives the same bytes, so a pack that was killed is finished by running it again.
The manifest comes last, so a folder without it is not packed.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from os import PathLike, fspath
from pathlib import Path
from typing import Any, Literal, get_args

from shardio.errors import PackError, UsageError
from shardio.index.manifest import INDEX_FOLDER, Manifest, write_manifest
from shardio.packing.engine import find_problems, run_tasks
from shardio.packing.output import RENAMED_NAME, SKIPPED_NAME, hold_folder
from shardio.packing.plan import plan_shards
from shardio.packing.shard import PackedShard, refusal
from shardio.packing.sources import (
    Problem,
    SourceSample,
    find_classes,
    list_files,
    make_samples,
)
from shardio.packing.store import Store, StoreKind
from shardio.storage.atomic import atomic_file, sync_folder

OnError = Literal["raise", "skip"]
Progress = Callable[[int], Callable[[], None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class PackSummary:
    """What was packed.

    Attributes:
        samples: in all shards.
        shards: written.
        bytes: of all shards.
        classes: found; None without labels.
        skipped: files left out, listed in skipped.jsonl.
        renamed: samples whose key is not their path, listed in renamed.jsonl.
        image_sizes: how many different sizes the stored pixels have; None for files stored as
            they are.
        seconds: it took.
    """

    samples: int
    shards: int
    bytes: int
    classes: int | None
    skipped: int
    renamed: int
    image_sizes: int | None
    seconds: float


def pack(
    source: str | PathLike[str],
    out: str | PathLike[str],
    *,
    shards: int,
    shuffle: bool = True,
    seed: int = 0,
    labels: bool = True,
    store: StoreKind = "original",
    resize: int | tuple[int, int] | None = None,
    on_error: OnError = "raise",
    progress: Progress | None = None,
) -> PackSummary:
    """Pack a folder of images into tar shards.

    Args:
        source: a folder with one subfolder a class, or a flat folder without labels; folders
            inside are searched too, dot files are left out.
        out: a new or empty folder for the shards.
        shards: how many; their sizes differ by at most one sample.
        shuffle: order the samples at random; otherwise by path.
        seed: of the order.
        labels: False packs a folder with subfolders without labels.
        store: "original" stores the files as they are, "raw" decodes each image once and stores
            uint8 [H, W, 3] as `.npy`.
        resize: only with "raw": a number that the shorter side shrinks to, or (height, width)
            to cut the largest centred part of that aspect ratio out and resize it.
        on_error: "raise", or "skip" to leave bad files out and list them in skipped.jsonl.
        progress: called with the number of samples; what it returns is called after each.

    Raises:
        UsageError: an argument cannot be meant.
        PackError: a file cannot be packed, the source is empty, or the output is taken.
        OSError: the output cannot be written.
    """
    start = time.monotonic()
    source, folder = fspath(source), Path(out)
    _check_arguments(shards=shards, seed=seed, on_error=on_error)
    storing = Store(kind=store, resize=resize)
    if not fspath(out):
        raise PackError("the name of the output folder is empty; name a folder")
    if Path(source).resolve() in (folder.resolve(), *folder.resolve().parents):
        raise PackError(f"{folder}: the output lies inside the source; name a folder outside it")
    found = _find_samples(source, labels=labels, store=storing, skip=on_error == "skip")
    tasks = plan_shards(
        found.samples,
        source=source,
        out=str(folder),
        shards=shards,
        seed=seed if shuffle else None,
        store=storing,
    )
    with hold_folder(folder):
        packed = run_tasks(tasks, progress(len(found.samples)) if progress else None)
        _publish(folder, found, packed)
    return _summarise(found, packed, seconds=time.monotonic() - start)


def _check_arguments(*, shards: int, seed: int, on_error: OnError) -> None:
    if not isinstance(seed, int):
        raise UsageError(f"seed={seed!r}: it must be a whole number")
    if on_error not in get_args(OnError):
        raise UsageError(f"on_error={on_error!r}: it must be 'raise' or 'skip'")
    if not isinstance(shards, int) or shards < 1:
        raise PackError(f"shards={shards!r}: it must be a whole number, at least 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Found:
    samples: list[SourceSample]
    problems: list[Problem]
    classes: tuple[str, ...] | None


def _find_samples(source: str, *, labels: bool, store: Store, skip: bool) -> _Found:
    files, no_files = list_files(source)
    classes = find_classes(source) if labels else None
    samples, same_keys = make_samples(files, classes)
    problems = no_files + same_keys
    if problems and not skip:
        raise refusal(problems[0])
    if skip:
        checked = find_problems(source, samples, store)
        samples = [s for s, problem in zip(samples, checked, strict=True) if problem is None]
        problems += [problem for problem in checked if problem is not None]
    return _Found(samples=samples, problems=problems, classes=classes)


def _summarise(found: _Found, packed: list[PackedShard], *, seconds: float) -> PackSummary:
    return PackSummary(
        samples=len(found.samples),
        shards=len(packed),
        bytes=sum(shard.receipt.size for shard in packed),
        classes=len(found.classes) if found.classes else None,
        skipped=len(found.problems),
        renamed=sum(sample.renamed for sample in found.samples),
        image_sizes=len({size for shard in packed for size in shard.sizes}) or None,
        seconds=seconds,
    )


def _publish(folder: Path, found: _Found, packed: list[PackedShard]) -> None:
    """Write what belongs to the shards, the manifest last."""
    problems = sorted(found.problems, key=lambda problem: problem.path)
    _write_ledger(folder / SKIPPED_NAME, [asdict(problem) for problem in problems])
    renamed = [sample for sample in found.samples if sample.renamed]
    _write_ledger(
        folder / RENAMED_NAME, [{"key": sample.key, "path": sample.name} for sample in renamed]
    )
    sync_folder(folder / INDEX_FOLDER)
    sync_folder(folder)
    fields = sorted({field for shard in packed for field in shard.fields})
    receipts = tuple(shard.receipt for shard in packed)
    manifest = Manifest(shards=receipts, fields=tuple(fields), classes=found.classes)
    write_manifest(folder, manifest)
    sync_folder(folder)


def _write_ledger(path: Path, rows: list[dict[str, Any]]) -> None:
    if rows:
        with atomic_file(path) as stream:
            for row in rows:
                stream.write(json.dumps(row).encode("ascii") + b"\n")
