"""Packing: what users call."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from os import PathLike, fspath
from pathlib import Path
from typing import Any, get_args

from shardio.errors import PackError, UsageError
from shardio.packing.dedupe import Dedupe, Likeness
from shardio.packing.job import Job, PackSummary, Progress, Source, run_job
from shardio.packing.options import EngineName, Measure, OnError, check_output, make_engine
from shardio.packing.plan import Shape, Splits
from shardio.packing.sources.open import SourceOptions, open_source
from shardio.packing.sources.values import Values
from shardio.packing.store import Store, StoreKind

_DISTANCE = 4  # bits


def pack(
    source: str | PathLike[str] | Iterable[Mapping[str, Any]],
    out: str | PathLike[str],
    *,
    shards: int | None = None,
    samples_per_shard: int | None = None,
    shard_size: int | None = None,
    split: Mapping[str, float] | None = None,
    stratify: bool = False,
    shuffle: bool = True,
    seed: int = 0,
    labels: bool = True,
    classes: Sequence[str] | None = None,
    fields: str | None = None,
    manifest: str | PathLike[str] | None = None,
    path_columns: Sequence[str] = (),
    label_column: str | None = None,
    key_column: str | None = None,
    features: Sequence[str] = (),
    store: StoreKind = "original",
    resize: int | tuple[int, int] | None = None,
    max_side: int | None = None,
    quality: int | None = None,
    dedupe: Likeness | None = None,
    dedupe_distance: int | None = None,
    keep_duplicates: bool = False,
    on_error: OnError = "raise",
    jobs: int | None = None,
    engine: EngineName = "local",
    progress: Progress | None = None,
) -> PackSummary:
    """Pack samples into tar shards.

    A pack that was interrupted, by whatever, is finished by the same call again.

    Args:
        source: a folder with one subfolder a class, or a flat folder without labels; folders
            inside are searched too, dot files are left out. Or tars (a folder of them, one, a
            glob or a pattern), whose members are taken as they are. Or TFRecord files of
            tf.train.Example messages (a folder of them, one, a glob or a pattern); numbers and
            texts that are no field of their own go into the field json. Or an iterable of
            samples, mappings from fields to bytes, paths or values, with their "__key__".
        out: a new or empty folder for the shards.
        shards: how many; their sizes differ by at most one sample. Splits share them.
        samples_per_shard: in place of `shards`, the most samples of a shard.
        shard_size: in place of `shards`, the most bytes of a shard.
        split: fractions by name, as {"train": 0.9, "val": 0.1}; each part becomes a packed
            folder inside `out`.
        stratify: divide each class so.
        shuffle: order the samples at random; otherwise as the source has them, by path.
        seed: of the order and the splits.
        labels: False packs without labels.
        classes: names of the classes in the order of their numbers; by default those that
            occur, sorted. A class that is not among them is an error.
        fields: which files are one sample, as "jpg;png,json,txt?": fields with commas, each
            with alternatives, and a question mark where samples may lack it. By default each
            image is a sample.
        manifest: a table of the samples, CSV, TSV, JSON Lines or Parquet, whose paths start
            from `source`.
        path_columns: its columns of paths, each as "column" or "field=column".
        label_column: its column of labels.
        key_column: its column of keys.
        features: which features of TFRecord files are which fields, as ["jpg=image/encoded",
            "cls=image/class/label"]; "__key__=NAME" makes keys of a feature, "=NAME" leaves one
            out. By default image/encoded or image is the image, image/class/label or label the
            class number, and bytes that are called like a field are it.
        store: "original" stores image files, "raw" decodes each image once and stores uint8
            [H, W, 3] as `.npy`.
        resize: a number that the shorter side shrinks to, or (height, width) to cut the largest
            centred part of that aspect ratio out and resize it.
        max_side: what the longer side shrinks to.
        quality: 1 to 100, encodes all JPEG and WebP files anew; by default 90 for those that are
            resized.
        dedupe: "exact" leaves out samples whose images are the same, byte for byte, as those of
            one before; "perceptual" also images that look alike. They are listed in
            duplicates.jsonl.
        dedupe_distance: bits of a 64-bit perceptual hash in which alike images may differ, 0 to
            16, by default 4.
        keep_duplicates: pack them all the same, those that are alike in one split.
        on_error: "raise", or "skip" to leave bad files out and list them in skipped.jsonl.
        jobs: processes; by default one a core. The bytes are the same for any number.
        engine: "local", or "ray" to run on a Ray cluster.
        progress: called with the number of samples; what it returns is called with how many
            more are done.

    Raises:
        UsageError: an argument cannot be meant.
        PackError: a file cannot be packed, the source is empty, or the output is taken.
        TFRecordError: a TFRecord file is damaged, so that records are lost.
        OSError: the output cannot be written.
    """
    shape = Shape(shards=shards, samples_per_shard=samples_per_shard, shard_size=shard_size)
    storing = Store(kind=store, resize=resize, max_side=max_side, quality=quality)
    options = SourceOptions(
        labels=labels,
        classes=classes,
        fields=fields,
        manifest=manifest,
        path_columns=path_columns,
        label_column=label_column,
        key_column=key_column,
        features=features,
        read_labels=stratify,
    )
    check_output(out, seed=seed, on_error=on_error, split=split, stratify=stratify)
    job = Job(
        shape=shape,
        splits=None if split is None else Splits(fractions=split, stratify=stratify),
        shuffle=shuffle,
        seed=seed,
        store=storing,
        check=True,
        skip=on_error == "skip",
        dedupe=_dedupe(dedupe, dedupe_distance, keep=keep_duplicates),
        measure=None if shard_size is None else Measure(_root_of(source)),
        engine=make_engine(engine, jobs),
        progress=progress,
    )
    return run_job(Path(out), job, _opener(source, Path(out), split or (), options))


def _dedupe(likeness: Likeness | None, distance: int | None, *, keep: bool) -> Dedupe | None:
    if likeness not in (None, *get_args(Likeness)):
        raise UsageError(f"dedupe={likeness!r}: it must be 'exact' or 'perceptual'")
    if likeness is None and keep:
        raise UsageError("keep_duplicates is of dedupe; say which samples are the same")
    if likeness != "perceptual" and distance is not None:
        raise UsageError("dedupe_distance is of dedupe='perceptual'")
    distance = _DISTANCE if distance is None else distance
    return likeness and Dedupe(likeness=likeness, distance=distance, keep=keep)


def _root_of(source: str | PathLike[str] | Iterable[Mapping[str, Any]]) -> str:
    return fspath(source) if isinstance(source, str | PathLike) else "."


def _opener(
    source: str | PathLike[str] | Iterable[Mapping[str, Any]],
    out: Path,
    parts: Iterable[str],
    options: SourceOptions,
) -> Callable[[Path], Source]:
    if not isinstance(source, str | PathLike):
        options.refuse_for_values()
        return lambda work: Values(source, work, options.class_names())
    root = fspath(source)
    real = Path(root).resolve()
    for target in (out, *(out / part for part in parts)):
        if real in (target.resolve(), *target.resolve().parents):
            raise PackError(f"{out}: the output lies inside the source; name a folder outside it")
    return lambda _: open_source(root, options)
