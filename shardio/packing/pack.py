"""Packing: what users call."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from os import PathLike, fspath
from pathlib import Path
from typing import Any

from shardio.errors import PackError, UsageError
from shardio.packing.job import PackSummary, Source, run_job
from shardio.packing.labels import check_classes
from shardio.packing.options import PackOptions, with_options
from shardio.packing.sources.open import open_source
from shardio.packing.sources.values import Values
from shardio.storage.folder import Folder


@with_options(PackOptions)
def pack(
    source: str | PathLike[str] | Iterable[Mapping[str, Any]],
    out: str | PathLike[str],
    options: PackOptions,
) -> PackSummary:
    """Pack samples into tar shards.

    As with `shardio.pack("images", "out", shards=8)`. A pack that was interrupted, by whatever,
    is finished by the same call again.

    Args:
        source: a folder with one subfolder a class, or a flat folder without labels; folders
            inside are searched too, dot files are left out. Or tars (a folder of them, one, a
            glob or a pattern), whose members are taken as they are. Or TFRecord files of
            tf.train.Example messages (a folder of them, one, a glob or a pattern); numbers and
            texts that are no field of their own go into the field json. Or an iterable of
            samples, mappings from fields to bytes, paths or values, with their "__key__".
        out: a folder without shards for the shards.
        options: as keywords; PackOptions says what each means.

    Raises:
        UsageError: an argument cannot be meant.
        PackError: a file cannot be packed, the source is empty, or the output is taken.
        TFRecordError: a TFRecord file is damaged, so that records are lost.
        OSError: the output cannot be written.
    """
    if isinstance(source, str | PathLike):
        root = fspath(source)
        job = options.pack_job(root)
        _refuse_inside(Path(root), Path(out), options)
        open_: Callable[[Folder], Source] = lambda _: open_source(root, options)  # noqa: E731
    else:
        job = options.pack_job(".")
        _refuse_for_values(options)
        classes = check_classes(options.classes)
        open_ = lambda work: Values(source, work, classes)  # noqa: E731
    return run_job(out, job, open_)


def _refuse_inside(source: Path, out: Path, options: PackOptions) -> None:
    """Raise PackError if the output, or a part of it, lies inside the source."""
    real = source.resolve()
    for target in (out, *(out / part for part in options.split or ())):
        if real in (target.resolve(), *target.resolve().parents):
            raise PackError(f"{out}: the output lies inside the source; name a folder outside it")


def _refuse_for_values(options: PackOptions) -> None:
    """Raise UsageError if something is said that samples of a program have no use for."""
    files = (options.fields, options.manifest, *options.features)
    if not options.labels or any(each is not None for each in files):
        raise UsageError(
            "samples of a program have the fields that they have; leave fields, manifest, "
            "features and labels out"
        )
