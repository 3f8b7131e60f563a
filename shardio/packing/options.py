"""The options of `pack` and `reshard`: each once, with its default and its checks.

They say what to write (OutputOptions), and which samples to take (PackOptions, ReshardOptions).
Functions take them one by one, as keywords; see shardio.options.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from os import PathLike
from typing import Any, ClassVar, Literal, get_args

from shardio.checks import one_of, require, whole_number
from shardio.errors import UsageError, argument, quoted
from shardio.fields.base import FieldType
from shardio.fields.defaults import given_types, named_types
from shardio.fields.limits import MAX_PIXELS
from shardio.packing.dedupe import Dedupe, Likeness
from shardio.packing.engine import EngineName, make_engine
from shardio.packing.job import PackJob, Progress
from shardio.packing.plan import ImageEncoding, ImageStorage, Sharding, Splits, as_split
from shardio.packing.sources.rows import check_delimiter, check_encoding
from shardio.packing.sources.rules import check_classes, parse_features, parse_fields
from shardio.packing.sources.vectors import TargetType
from shardio.storage.base import Storage
from shardio.storage.location import Options

OnError = Literal["raise", "skip"]
Predicate = Callable[[str, Mapping[str, Any]], Any]
"""Called with a key and the decoded fields, which are read when they are looked at."""

_DISTANCE = 4  # bits


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputOptions:
    """How shards are written.

    Attributes:
        shards: number of shards, whose numbers of samples differ by at most one. Splits share them.
        samples_per_shard: maximum number of samples in a shard, in place of `shards`.
        shard_size: maximum number of bytes of a shard, in place of `shards`.
        split: fractions by name, as {"train": 0.9, "val": 0.1}; each part becomes a packed
            folder inside the output.
        stratify: whether to divide the samples of each class in these fractions.
        shuffle: whether to order the samples at random; otherwise they stay in the source's order.
        seed: seed of the order and the splits.
        on_error: "raise", or "skip" to leave bad samples out and list them in skipped.jsonl.
        allow_empty: whether to accept tars with members none of which is a field of a sample.
        jobs: number of processes; by default one a core. The bytes are the same for any number.
        engine: "local", or "ray" to run on a Ray cluster.
        progress: function that is called with the number of samples before each pass over them,
            and returns a function that is called with the number of those done since.
        storage: storage of the output, see shardio.storage.base; None chooses it by the scheme of
            a URL. Shards are made in the temporary directory and published one by one, the
            manifest last.
        storage_options: settings of the stores of URLs, as ShardDataset takes them.

    Raises:
        UsageError: a value is invalid.
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
    storage: Storage | None = None
    storage_options: Options | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "seed", whole_number("seed", self.seed))
        one_of("on_error", self.on_error, get_args(OnError))
        mapped = self.split is None or isinstance(self.split, Mapping)
        require(mapped, "split", self.split, "a mapping, as {'train': 0.9, 'val': 0.1}")
        if self.stratify and self.split is None:
            raise UsageError(
                f"{argument('stratify')} requires {argument('split')}",
                remedy=f"give it {as_split()}",
            )

    @property
    def rereads(self) -> bool:
        """Whether files of a source are not read once each, from front to back."""
        return self.shuffle or self.split is not None or self.on_error == "skip"

    def make_job(
        self,
        *,
        check: bool = False,
        types: Mapping[str, FieldType] | None = None,
        images: ImageEncoding | None = None,
        dedupe: Dedupe | None = None,
    ) -> PackJob:
        """Make the job that they ask for.

        Args:
            check: whether to look at data, see SampleTask.
            types: types of a user by field name; other fields have their default types.
            images: encoding of the images; None stores them as they are.
            dedupe: treatment of duplicates; None does not look for any.
        """
        splits = None
        if self.split is not None:
            splits = Splits(fractions=self.split, stratify=self.stratify)
        return PackJob(
            sharding=Sharding(
                shards=self.shards,
                samples_per_shard=self.samples_per_shard,
                shard_size=self.shard_size,
            ),
            splits=splits,
            shuffle=self.shuffle,
            seed=self.seed,
            images=images or ImageEncoding(),
            check=check,
            types=types or {},
            skip=self.on_error == "skip",
            dedupe=dedupe,
            engine=make_engine(self.engine, self.jobs),
            progress=self.progress,
            storage=self.storage,
            storage_options=self.storage_options,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class PackOptions(OutputOptions):
    """How samples are packed.

    Attributes, beside those of OutputOptions:
        labels: whether to pack labels.
        classes: names of the classes in the order of their numbers; by default those that
            occur, sorted. A class that is not among them is an error.
        fields: files of a sample, as "jpg;png,json,txt?": fields with commas between them, each
            with alternatives after semicolons, and a question mark where samples may lack it. By
            default each image is a sample, with the files beside it if all images have files of the
            same fields, see shardio.packing.sources.neighbours. For samples of a program: the
            mapping that ShardDataset takes, whose field types count as `types`.
        types: field types by field name, as {"wav": Audio(rate=16000)}, for any source; other
            fields have those that the source records, or their default types. They decode the data
            while these are packed, encode the values of a program, and stand in the manifest. A
            field that no sample has is an error.
        manifest: table of the samples, CSV, TSV, JSON Lines or Parquet, whose paths start
            from the source. A table may be the source itself; its paths start from its folder.
        coco: COCO's annotations of the images in the source, a JSON file; by default the file
            `_annotations.coco.json` in it, if there is one.
        encoding: encoding of its text; by default UTF-8, or UTF-16 or UTF-32 if it starts so.
        delimiter: character between the cells of CSV and TSV, "tab" for a tab; by default the
            comma, semicolon, tab or pipe that the header has.
        columns: columns that become the field json; by default all that have no other use.
        path_columns: columns of paths, or of files as Parquet embeds them, each as "column" or
            "field=column".
        label_column: column of labels.
        key_column: column of keys.
        split_column: column of names of splits, in place of `split`; all splits number the classes
            alike.
        target_columns: columns of numbers to predict, each as "column" or "field=column,column";
            they become arrays, scalars of one column and vectors of several.
        target_dtype: dtype of the arrays of targets, "float32" or "float64".
        multilabel_columns: columns of sets of classes, each as "field=column,column", which hold
            0 and 1, or as "column", which lists classes; they become arrays of 0 and 1, uint8.
        features: fields of features in TFRecord files, as ["jpg=image/encoded",
            "cls=image/class/label"]; "__key__=NAME" makes keys of a feature, "=NAME" leaves one
            out. By default image/encoded or image is the image, image/class/label or label the
            class number, and bytes that are called like a field are that field.
        store: "original" stores image files, "raw" decodes each image once and stores uint8
            [H, W, 3] as `.npy`.
        resize: new length of the shorter side, or (height, width) to cut the largest centred part
            of that aspect ratio out and resize it. Smaller images are not enlarged by a number.
        max_side: maximum length of the longer side.
        quality: quality from 1 to 100 at which all JPEG and WebP files are encoded anew; by
            default only those that are resized are, at 90.
        dedupe: "exact" leaves out samples whose images are the same, byte for byte, as those of
            one before; "perceptual" also images that look alike. They are listed in
            duplicates.jsonl.
        dedupe_distance: bits of a 64-bit perceptual hash in which alike images may differ, 0 to
            16, by default 4.
        keep_duplicates: whether to pack them all the same, those that are alike in one split.
        max_pixels: maximum number of pixels of an image. Larger ones are bad samples, and so are
            files that ask for far more work than real images of their size; a greater number
            raises all these limits in proportion, see shardio.fields.limits.

    Raises:
        UsageError: a value is invalid.
    """

    TABLE_OPTIONS: ClassVar[tuple[str, ...]] = (
        *("encoding", "delimiter", "columns", "target_columns", "target_dtype"),
        *("multilabel_columns", "path_columns", "split_column"),
        *("label_column", "key_column"),
    )
    SOURCE_OPTIONS: ClassVar[tuple[str, ...]] = (
        *("labels", "classes", "fields", "manifest", "coco", "features"),
        *TABLE_OPTIONS,
    )

    labels: bool = True
    classes: Sequence[str] | None = None
    fields: str | Mapping[str, str | FieldType] | None = None
    types: Mapping[str, FieldType] | None = None
    manifest: str | PathLike[str] | None = None
    coco: str | PathLike[str] | None = None
    encoding: str | None = None
    delimiter: str | None = None
    columns: Sequence[str] | None = None
    path_columns: Sequence[str] = ()
    label_column: str | None = None
    key_column: str | None = None
    split_column: str | None = None
    target_columns: Sequence[str] = ()
    target_dtype: TargetType = "float32"
    multilabel_columns: Sequence[str] = ()
    features: Sequence[str] = ()
    store: ImageStorage = "original"
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
        if isinstance(self.fields, str):
            parse_fields(self.fields)
        self.types_by_field()
        pairs = parse_features(self.features)
        if pair := next((pair for pair in pairs if not pair.feature), None):
            raise UsageError(
                f"'{pair.field}=' names no feature",
                where=argument("features"),
                remedy="write it as jpg=image/encoded",
            )
        for name in ("columns", "path_columns", "target_columns", "multilabel_columns"):
            if isinstance(getattr(self, name), str):
                raise UsageError(f"{name} must be a list of names", remedy="write it as ['a']")
        check_encoding(self.encoding)
        object.__setattr__(self, "delimiter", check_delimiter(self.delimiter))
        one_of("target_dtype", self.target_dtype, get_args(TargetType))
        if self.manifest is not None and self.fields is not None:
            raise UsageError(
                f"{argument('manifest')} and {argument('fields')} exclude each other",
                remedy=f"leave {argument('fields')} out; the table names the files of a sample",
            )
        if self.split is not None and self.split_column is not None:
            raise UsageError(
                f"{argument('split')} and {argument('split_column')} exclude each other",
                remedy="give one of them",
            )
        if self.dedupe is not None:
            one_of("dedupe", self.dedupe, get_args(Likeness))
        if self.dedupe is None and self.keep_duplicates:
            raise UsageError(
                f"{argument('keep_duplicates')} requires {argument('dedupe')}",
                remedy=f"give {argument('dedupe', 'exact')} or {argument('dedupe', 'perceptual')}",
            )
        if self.dedupe != "perceptual" and self.dedupe_distance is not None:
            raise UsageError(
                f"{argument('dedupe_distance')} requires {argument('dedupe', 'perceptual')}",
                remedy="leave it out or give both",
            )

    @property
    def resizes(self) -> bool:
        """Whether images may be stored at another size."""
        return self.resize is not None or self.max_side is not None

    def given_for_source(self) -> list[str]:
        """List the options of sources that differ from their defaults."""
        defaults = {field.name: field.default for field in fields(self)}
        return [
            name
            for name in self.SOURCE_OPTIONS
            if (value := getattr(self, name)) != defaults[name] and value != []
        ]

    def types_by_field(self) -> dict[str, FieldType]:
        """Return the given types by field name, those of `fields` and of `types`.

        Raises:
            UsageError: they are not types, or a field has two.
        """
        entries = {} if isinstance(self.fields, str) else given_types(self.fields)
        types = named_types(self.types)
        if both := sorted(entries.keys() & types.keys()):
            raise UsageError(
                f"{quoted(both[0])} has a type in {argument('fields')} and one in "
                f"{argument('types')}",
                remedy="leave one out",
            )
        return {**entries, **types}

    def require_table(self) -> None:
        """Raise UsageError if options of tables are given, as there is no table."""
        if {*self.given_for_source()} & {*self.TABLE_OPTIONS}:
            *names, last = map(argument, self.TABLE_OPTIONS)
            raise UsageError(
                f"{', '.join(names)} and {last} require {argument('manifest')}",
                remedy=f"name the table with {argument('manifest')}, or as the source",
            )

    def make_pack_job(self) -> PackJob:
        """Make the job that they ask for."""
        dedupe = None
        if self.dedupe is not None:
            distance = _DISTANCE if self.dedupe_distance is None else self.dedupe_distance
            dedupe = Dedupe(likeness=self.dedupe, distance=distance, keep=self.keep_duplicates)
        images = ImageEncoding(
            store=self.store,
            resize=self.resize,
            max_side=self.max_side,
            quality=self.quality,
            max_pixels=self.max_pixels,
        )
        job = self.make_job(check=True, types=self.types_by_field(), images=images, dedupe=dedupe)
        return replace(job, named=frozenset(named_types(self.types)))


@dataclass(frozen=True, slots=True, kw_only=True)
class ReshardOptions(OutputOptions):
    """How samples are divided anew; in their order, unless `shuffle` is set.

    Attributes, beside those of OutputOptions:
        keys: keys of the samples to take; one that no shard has is an error.
        where: function called with each key and its decoded fields, which are read when they are
            looked at; samples for which it is true are taken.
        max_pixels: maximum number of pixels of an image that `where` looks at, see
            shardio.fields.limits.

    Raises:
        UsageError: a value is invalid.
    """

    shuffle: bool = False
    keys: Iterable[str] | None = None
    where: Predicate | None = None
    max_pixels: int = MAX_PIXELS

    def __post_init__(self) -> None:
        OutputOptions.__post_init__(self)
        whole_number("max_pixels", self.max_pixels, least=1)
