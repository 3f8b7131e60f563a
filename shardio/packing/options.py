"""What users say about packing and resharding: each option once, with its default.

`pack` and `reshard` take these options one by one, as keywords; `with_options` makes them do so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import wraps
from inspect import Parameter, signature
from os import PathLike
from typing import Concatenate, Literal, ParamSpec, TypeVar, get_args

from shardio.checks import one_of, whole_number
from shardio.errors import UsageError
from shardio.fields.limits import MAX_PIXELS
from shardio.packing.dedupe import Dedupe, Likeness
from shardio.packing.engine import Engine, LocalEngine, RayEngine
from shardio.packing.job import Job, Progress
from shardio.packing.plan import Shape, Splits, Store, StoreKind
from shardio.packing.sources.base import Measure, check_classes, parse_fields
from shardio.packing.sources.tars import Predicate
from shardio.packing.sources.tfrecord import parse_pairs

OnError = Literal["raise", "skip"]
EngineName = Literal["local", "ray"]

P = ParamSpec("P")
O = TypeVar("O")  # noqa: E741  for options
S = TypeVar("S")
T = TypeVar("T")
R = TypeVar("R")

_DISTANCE = 4  # bits


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputOptions:
    """How shards are written.

    Attributes:
        shards: how many; their sizes differ by at most one sample. Splits share them.
        samples_per_shard: in place of `shards`, the most samples of a shard.
        shard_size: in place of `shards`, the most bytes of a shard.
        split: fractions by name, as {"train": 0.9, "val": 0.1}; each part becomes a packed
            folder inside the output.
        stratify: divide each class so.
        shuffle: order the samples at random; otherwise as the source has them.
        seed: of the order and the splits.
        on_error: "raise", or "skip" to leave bad samples out and list them in skipped.jsonl.
        allow_empty: of tars, take those that have members, none of which is a field of a sample.
        jobs: processes; by default one a core. The bytes are the same for any number.
        engine: "local", or "ray" to run on a Ray cluster.
        progress: called with the number of samples before each pass over them; what it returns is
            called with how many more are done.

    Raises:
        UsageError: a value cannot be meant.
    """

    shards: int | None = None
    samples_per_shard: int | None = None
    shard_size: int | None = None
    split: Mapping[str, float] | None = None
    stratify: bool = False
    shuffle: bool = True
    seed: int = 0
    on_error: OnError = "raise"
    allow_empty: bool = False
    jobs: int | None = None
    engine: EngineName = "local"
    progress: Progress | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "seed", whole_number("seed", self.seed))
        one_of("on_error", self.on_error, get_args(OnError))
        if self.stratify and self.split is None:
            raise UsageError(
                "stratify is of splits", remedy="give split, as {'train': 0.9, 'val': 0.1}"
            )

    def job(
        self, *, root: str, check: bool, store: Store | None = None, dedupe: Dedupe | None = None
    ) -> Job:
        """The job that they ask for.

        Args:
            root: folder that the paths of samples start from.
            check: look at images, whether they are some and whole.
            store: how images are stored; None stores them as they are.
            dedupe: which samples are the same; None for no looking.
        """
        splits = None
        if self.split is not None:
            splits = Splits(fractions=self.split, stratify=self.stratify)
        return Job(
            shape=Shape(
                shards=self.shards,
                samples_per_shard=self.samples_per_shard,
                shard_size=self.shard_size,
            ),
            splits=splits,
            shuffle=self.shuffle,
            seed=self.seed,
            store=store or Store(),
            check=check,
            skip=self.on_error == "skip",
            dedupe=dedupe,
            measure=None if self.shard_size is None else Measure(root),
            engine=make_engine(self.engine, self.jobs),
            progress=self.progress,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class PackOptions(OutputOptions):
    """How samples are packed.

    Attributes, beside those of OutputOptions:
        labels: False packs without labels.
        classes: names of the classes in the order of their numbers; by default those that
            occur, sorted. A class that is not among them is an error.
        fields: which files are one sample, as "jpg;png,json,txt?": fields with commas, each
            with alternatives, and a question mark where samples may lack it. By default each
            image is a sample.
        manifest: a table of the samples, CSV, TSV, JSON Lines or Parquet, whose paths start
            from the source.
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
        max_pixels: greatest number of pixels of an image. Larger ones are bad samples, and so are
            files that ask for far more work than real images of their size; a greater number
            raises all these limits in proportion, see shardio.fields.limits.

    Raises:
        UsageError: a value cannot be meant.
    """

    labels: bool = True
    classes: Sequence[str] | None = None
    fields: str | None = None
    manifest: str | PathLike[str] | None = None
    path_columns: Sequence[str] = ()
    label_column: str | None = None
    key_column: str | None = None
    features: Sequence[str] = ()
    store: StoreKind = "original"
    resize: int | tuple[int, int] | None = None
    max_side: int | None = None
    quality: int | None = None
    dedupe: Likeness | None = None
    dedupe_distance: int | None = None
    keep_duplicates: bool = False
    max_pixels: int = MAX_PIXELS

    def __post_init__(self) -> None:
        OutputOptions.__post_init__(self)
        check_classes(self.classes)
        parse_fields(self.fields)
        if pair := next((pair for pair in parse_pairs(self.features) if not pair.name), None):
            raise UsageError(
                f"features: '{pair.field}=' names no feature",
                remedy="write it as jpg=image/encoded",
            )
        columns = (*self.path_columns, self.label_column, self.key_column)
        if self.manifest is None and any(columns):
            raise UsageError(
                "columns are of a manifest", remedy="name it with manifest (--manifest)"
            )
        if self.manifest is not None and self.fields is not None:
            raise UsageError(
                "a manifest names the files of a sample itself", remedy="leave fields out"
            )
        if self.dedupe is not None:
            one_of("dedupe", self.dedupe, get_args(Likeness))
        if self.dedupe is None and self.keep_duplicates:
            raise UsageError(
                "keep_duplicates is of dedupe", remedy="say which samples are the same"
            )
        if self.dedupe != "perceptual" and self.dedupe_distance is not None:
            raise UsageError("dedupe_distance is of dedupe='perceptual'")

    def pack_job(self, root: str) -> Job:
        """The job that they ask for; see job."""
        dedupe = None
        if self.dedupe is not None:
            distance = _DISTANCE if self.dedupe_distance is None else self.dedupe_distance
            dedupe = Dedupe(likeness=self.dedupe, distance=distance, keep=self.keep_duplicates)
        store = Store(
            kind=self.store,
            resize=self.resize,
            max_side=self.max_side,
            quality=self.quality,
            max_pixels=self.max_pixels,
        )
        return self.job(root=root, check=True, store=store, dedupe=dedupe)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReshardOptions(OutputOptions):
    """How samples are divided anew; as they are, unless `shuffle` is set.

    Attributes, beside those of OutputOptions:
        keys: of the samples to take; one that no shard has is an error.
        where: called with each key and its decoded fields, which are read when they are looked
            at; takes the samples for which it is true.
        max_pixels: greatest number of pixels of an image that `where` looks at, see
            shardio.fields.limits.

    Raises:
        UsageError: a value cannot be meant.
    """

    shuffle: bool = False
    keys: Iterable[str] | None = None
    where: Predicate | None = None
    max_pixels: int = MAX_PIXELS

    def __post_init__(self) -> None:
        OutputOptions.__post_init__(self)
        whole_number("max_pixels", self.max_pixels, least=1)


def with_options(
    options: Callable[P, O],
) -> Callable[[Callable[[S, T, O], R]], Callable[Concatenate[S, T, P], R]]:
    """Let a function of a source, an output and options take the options as keywords.

    Args:
        options: makes the options of keywords.
    """

    def decorate(function: Callable[[S, T, O], R]) -> Callable[Concatenate[S, T, P], R]:
        @wraps(function)
        def called(source: S, out: T, /, *args: P.args, **kwargs: P.kwargs) -> R:
            return function(source, out, options(*args, **kwargs))

        own = signature(function)
        first = [
            parameter.replace(kind=Parameter.POSITIONAL_ONLY)
            for parameter in [*own.parameters.values()][:2]
        ]
        parameters = [*first, *signature(options).parameters.values()]
        vars(called)["__signature__"] = own.replace(parameters=parameters)
        return called

    return decorate


def make_engine(name: EngineName, jobs: int | None) -> Engine:
    """What runs tasks.

    Raises:
        UsageError: there is no such engine, or no such number of jobs.
    """
    one_of("engine", name, get_args(EngineName))
    if jobs is not None:
        jobs = whole_number("jobs", jobs, least=1)
    if name == "ray" and jobs is not None:
        raise UsageError(
            "jobs is for engine='local'", remedy="a Ray cluster runs as many as it has cores"
        )
    return RayEngine() if name == "ray" else LocalEngine(jobs)
