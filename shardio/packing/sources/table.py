"""A table of paths and labels: a row a sample.

The columns that have no other use become the field `json`. A table is read once for the names of
its columns, if they are not in its header, once for the names of classes, if labels are names and
no list was given, and once for the samples; see shardio.packing.sources.rows.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Container, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from shardio.errors import PackError, SituationError, UsageError, argument, quoted, type_argument
from shardio.fields.base import Bytes
from shardio.fields.defaults import type_of
from shardio.fields.text import integer_in
from shardio.packing.layout import is_split_name
from shardio.packing.sources.base import (
    FromFile,
    FromMemory,
    Origin,
    Problem,
    SourceField,
    SourceSample,
    UnpackableError,
    is_name,
    key_fault,
    log_notice,
)
from shardio.packing.sources.rows import Row, Table, is_table
from shardio.packing.sources.rules import (
    FieldRule,
    LabelEncoder,
    check_classes,
    infer_labels,
    label_fields,
)
from shardio.packing.sources.vectors import (
    ClassSets,
    Flags,
    Targets,
    Vector,
    VectorColumns,
    choose_vectors,
)
from shardio.storage.local import refuse_url, url_fault

if TYPE_CHECKING:
    from shardio.fields.base import FieldType
    from shardio.packing.options import PackOptions

_PATHS = ("path", "file_name", "filename", "file", "image")
_LABELS = ("label", "class")
_NOTHING = (None, "")
_EXACT, _INT64 = 1 << 53, 1 << 63  # from _EXACT on floats skip whole numbers
_BESIDE = re.compile(
    r"(?:.*_)?(?:(?P<mask>masks?|seg|segmentations?|labels?)|(?P<depth>depth))(?:_.*)?",
    re.IGNORECASE,
)
"""Names of columns that may name files beside the image's."""
_SURROGATE = re.compile("[\ud800-\udfff]")


class PathColumn(NamedTuple):
    """A column of paths.

    Attributes:
        field: field that its files become; None names it after the file's extension or format.
        column: name of the column.
    """

    field: str | None
    column: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Columns:
    """The columns of a table that are looked at.

    Attributes:
        paths: columns of paths, of which the first gives the key.
        label: column of class names or numbers; None for samples without label.
        key: column of keys; None makes them of the paths.
        split: column of the names of splits; None where the table does not divide the samples.
        targets: columns of numbers to predict, which become arrays.
        multilabel: columns of sets of classes, which become arrays.
        extra: columns that become the field json.
    """

    paths: tuple[PathColumn, ...]
    label: str | None
    key: str | None
    split: str | None
    targets: tuple[VectorColumns, ...]
    multilabel: tuple[VectorColumns, ...]
    extra: frozenset[str]

    def every(self) -> frozenset[str]:
        """Names of all of them."""
        vectors = (name for each in (*self.targets, *self.multilabel) for name in each.columns)
        named = (*(column for _, column in self.paths), self.label, self.key, self.split)
        return self.extra | {*vectors} | {name for name in named if name is not None}


@dataclass(frozen=True, slots=True, kw_only=True)
class TableSource:
    """The samples that a table lists.

    Attributes:
        table: the table.
        root: folder that its paths start from.
        columns: columns that are looked at.
        labels: meaning of the labels; None without a column of them.
        vectors: fields that are arrays.
        classes: names of the classes by number; None where labels are numbers.
        splits: names of the splits, in the order in which the rows name them.
    """

    described: ClassVar[str] = "a table"
    remedy: ClassVar[str] = "fix or remove the row, or the file that it names"
    options: ClassVar[tuple[str, ...]] = (
        *("labels", "classes", "manifest", "encoding", "delimiter", "columns"),
        *("path_columns", "label_column", "key_column", "split_column"),
        *("target_columns", "target_dtype", "multilabel_columns"),
    )

    table: Table
    root: str
    columns: Columns
    labels: LabelEncoder | None
    vectors: tuple[Vector, ...]
    classes: tuple[str, ...] | None
    splits: tuple[str, ...]

    @classmethod
    def claims(cls, path: str, options: PackOptions) -> bool:
        """See PathSource."""
        return options.manifest is not None or (is_table(path) and not Path(path).is_dir())

    @classmethod
    def open(cls, path: str, options: PackOptions) -> TableSource:
        """See PathSource; the paths of a table that is the source itself start from its folder."""
        given = os.fspath(path if options.manifest is None else options.manifest)
        refuse_url(given)
        table = Table(Path(given), options.encoding, options.delimiter)
        columns = _choose_columns(table, options)
        classes = check_classes(options.classes)
        labels = None
        if columns.label is not None:
            named = None if classes else table.class_names(columns.label)
            if classes:
                labels = LabelEncoder(classes)
            elif named:
                labels = LabelEncoder(None, named=check_classes(named))
            else:
                labels = infer_labels(_label_names(table, columns.label))
        names = (labels.classes or labels.named) if labels else None
        if labels is None and columns.multilabel:
            names = classes or _columns_as_classes(columns.multilabel)
        return cls(
            table=table,
            root=path if options.manifest is not None else str(table.path.parent),
            columns=columns,
            labels=labels,
            vectors=_make_vectors(table, columns, classes, options),
            classes=names,
            splits=() if columns.split is None else _split_names(table, columns.split),
        )

    @property
    def name(self) -> str:
        """See Source."""
        return str(self.table.path)

    def samples(self) -> Iterator[SourceSample | Problem]:
        """Yield all samples, in the order of the rows.

        Raises:
            PackError: the table cannot be read.
        """
        rule = FieldRule()
        for row in self.table.rows(self.columns.every()):
            place = f"{self.name}, row {row.number}"
            self._refuse_rows_inside(row, place)
            try:
                sample: SourceSample | Problem = self._sample(row, place, rule)
            except UnpackableError as error:
                sample = Problem.of(place, error)
            yield sample

    def _refuse_rows_inside(self, row: Row, place: str) -> None:
        """Raise PackError if a quoted cell of a row holds a line that is a row itself.

        Such a line names a file of the source, or one of the same kind as the row's own.
        """
        column = self.columns.paths[0].column
        for line, values in row.inside.items():
            path = values[column].strip('"')
            kind = os.path.splitext(path)[1]  # noqa: PTH122  text
            alike = kind and kind == os.path.splitext(row.values[column])[1]  # noqa: PTH122  text
            if alike or (path and os.path.exists(os.path.join(self.root, path))):  # noqa: PTH110, PTH118
                raise PackError(
                    f"its line {line} lies inside a quoted cell and is a row of its own, "
                    f"of {path!r}",
                    where=place,
                    remedy="a quote is missing or too many",
                )

    def _sample(self, row: Row, place: str, rule: FieldRule) -> SourceSample:
        fields: dict[str | None, Origin] = {}
        key, path, renamed = "", "", False
        for given, column in self.columns.paths:
            found = self._origin(row, column, optional=bool(fields))
            if found is None:
                continue
            origin, name = found
            match = rule.match(name or f"{row.number - 1:09d}")
            if match is None:  # a rule without specs matches every path
                continue
            if not fields:
                key, renamed = match.key, match.renamed
                path = name if isinstance(origin, FromFile) else place
            field = given or (match.field if isinstance(origin, FromFile) else None)
            if field in fields:
                raise UnpackableError(
                    f"two of its columns hold the field {field!r}", remedy="name it otherwise"
                )
            fields[field] = origin
        if self.columns.key is not None:
            key, renamed = _key(row, self.columns.key), True
        if fault := key_fault(key):
            raise UnpackableError(fault)
        label = self._label(row)
        return SourceSample(
            key=key,
            path=path,
            fields=(
                *label_fields(label),
                *(SourceField(name, origin) for name, origin in fields.items()),
                *(vector.encode(row.values) for vector in self.vectors),
                *self._extra(row),
            ),
            label=label,
            renamed=renamed,
            place=place,
            split="" if self.columns.split is None else _split(row, self.columns.split),
        )

    def _origin(self, row: Row, column: str, *, optional: bool) -> tuple[Origin, str] | None:
        """Return the data that a column names or holds, and their path; None if it is empty.

        Parquet files of the Hugging Face hub hold files as {bytes, path}, or the bytes alone. The
        path of embedded bytes is only a name, and may be missing.
        """
        value = row.values.get(column)
        if isinstance(value, Mapping) and value.keys() <= {"bytes", "path"}:
            data, value = value.get("bytes"), value.get("path")
        else:
            data, value = (value, None) if isinstance(value, bytes) else (None, value)
        if data is not None:
            if not isinstance(data, bytes):
                raise UnpackableError(f"its column {column!r} holds no bytes, but {quoted(data)}")
            name = os.path.normpath(value) if value and isinstance(value, str) else ""
            if os.path.isabs(name):  # noqa: PTH117  text
                name = os.path.basename(name)  # noqa: PTH119  text
            return FromMemory(data), name
        if optional and value in _NOTHING:
            return None
        path = self._path(value, column)
        return FromFile(path.encode("utf-8", "surrogateescape")), path

    def _path(self, value: Any, column: str) -> str:
        text = _checked_text(value, column)
        if fault := url_fault(text):
            raise UnpackableError(fault)
        path = os.path.normpath(text)
        if "\0" in path or not is_name(path):
            raise UnpackableError(
                f"its column {column!r} holds {path!r}, which no file can be called"
            )
        if os.path.isabs(path):  # noqa: PTH117  text
            inside = os.path.relpath(path, self.root)
            return path if inside.startswith("..") else inside
        if path.partition("/")[0] == "..":
            raise UnpackableError(
                f"{path} leads out of {self.root}", remedy="name a folder above as SRC"
            )
        return path

    def _label(self, row: Row) -> int | None:
        if self.labels is None or self.columns.label is None:
            return None
        name = _label_name(row, self.columns.label)
        label = self.labels.encode(name)
        if label is None:
            raise UnpackableError(self.labels.fault(name))
        return label

    def _extra(self, row: Row) -> tuple[SourceField, ...]:
        rest = {
            name: value
            for name, value in row.values.items()
            if name in self.columns.extra and (name or value not in _NOTHING)
        }
        if not rest:
            return ()
        try:
            text = _to_json(rest)
        except (TypeError, ValueError, RecursionError):
            name = next(name for name, value in rest.items() if not _is_json(value))
            raise UnpackableError(
                f"its column {quoted(name)} holds {quoted(rest[name])}, which JSON cannot hold",
                remedy=f"choose the columns that the field json has ({argument('columns')}), name "
                f"an image in bytes with {argument('path_columns')}, or write it as text or null",
            ) from None
        if not text.isascii():
            _refuse_bytes(rest, row.line)
        return (SourceField("json", FromMemory(text.encode())),)


def _to_json(value: Any) -> str:
    """Write JSON.

    Raises:
        TypeError, ValueError, RecursionError: JSON cannot hold the value.
    """
    return json.dumps(value, ensure_ascii=False, allow_nan=False, default=_json_number)


def _json_number(value: Any) -> int | float:
    """Return the number of JSON that a decimal number is.

    Raises:
        TypeError: it is something else, or has more digits than numbers of JSON keep.
    """
    if isinstance(value, Decimal) and value.is_finite():
        if value == value.to_integral_value():
            return int(value)
        if Decimal(repr(float(value))) == value:
            return float(value)
    raise TypeError


def _is_json(value: Any) -> bool:
    try:
        _to_json(value)
    except (TypeError, ValueError, RecursionError):
        return False
    return True


def _columns_as_classes(multilabel: tuple[VectorColumns, ...]) -> tuple[str, ...] | None:
    """Name the classes of a single field after its columns; None if one column lists them."""
    columns = multilabel[0].columns
    return columns if len(multilabel) == 1 and len(columns) > 1 else None


def _make_vectors(
    table: Table, columns: Columns, classes: tuple[str, ...] | None, options: PackOptions
) -> tuple[Vector, ...]:
    vectors: list[Vector] = [
        Targets(field=each.field, columns=each.columns, dtype=options.target_dtype)
        for each in columns.targets
    ]
    for each in columns.multilabel:
        if len(each.columns) > 1:
            vectors.append(Flags(field=each.field, columns=each.columns))
        else:
            rows = (row.values for row in table.rows(each.columns))
            vectors.append(ClassSets.of(each, classes, rows))
    return tuple(vectors)


def _choose_columns(table: Table, options: PackOptions) -> Columns:
    """Choose the columns that the options name, or those with usual names.

    Raises:
        UsageError: there is no such column, or it is not clear which is which.
    """
    present = table.columns
    key, label, split = options.key_column, options.label_column, options.split_column
    paths = tuple(map(_parse_path_column, options.path_columns)) or _default_paths(table, present)
    targets = choose_vectors(argument("target_columns"), options.target_columns, present)
    multilabel = choose_vectors(argument("multilabel_columns"), options.multilabel_columns, present)
    vectors = [*targets, *multilabel]
    used = {column for _, column in paths} | {key, split, ""}
    used |= {column for each in vectors for column in each.columns}
    if not options.labels and label is not None:
        raise UsageError(
            f"{argument('label_column')} names a column, but {argument('labels', False)} packs no "
            "labels",
            remedy="leave one of them out",
        )
    for column in (*(column for _, column in paths), label, key, split, *(options.columns or ())):
        if column is not None and column not in present:
            raise SituationError(
                f"there is no column {column!r}",
                where=table.path,
                remedy=f"its columns are {', '.join(present)}",
            )
    if label is None and options.labels:
        label = _find_label(table, options, used, paths, vectors)
    names = [*(field for field, _ in paths if field), *(each.field for each in vectors)]
    if again := next((name for name in names if names.count(name) > 1), None):
        raise UsageError(f"two options name the field {again!r}", remedy="name one otherwise")
    if not options.path_columns and options.columns is None:
        both = _path_options(table, present, paths[0].column)
        if both:
            log_notice(
                str(table.path),
                f"only the files of its column {paths[0].column} are packed; {both} packs both",
            )
    _refuse_plain_masks(table, paths, options.types_by_field())
    extra = {*present} - used - {label} | {""} if options.columns is None else {*options.columns}
    return Columns(
        paths=paths,
        label=label,
        key=key,
        split=split,
        targets=targets,
        multilabel=multilabel,
        extra=frozenset(extra),
    )


def _find_label(
    table: Table,
    options: PackOptions,
    used: Container[str | None],
    paths: Sequence[PathColumn],
    vectors: Sequence[VectorColumns],
) -> str | None:
    """Return the column of labels by its name; None if the samples need none.

    Raises:
        SituationError: some columns have no use, and none has a usual name.
    """
    others = [name for name in table.columns if name not in used]
    label = next((name for name in _LABELS if name in others), None)
    if label is None and not vectors and (options.classes is not None or others):
        both = "" if options.path_columns else _path_options(table, table.columns, paths[0].column)
        by_split = f"divide by the column split ({argument('split_column', 'split')}), "
        raise SituationError(
            f"which column holds the labels? It has {', '.join(table.columns)}",
            where=table.path,
            remedy=f"name it ({argument('label_column')}), {by_split * ('split' in others)}"
            f"{f'pack both files ({both}), ' * bool(both)}"
            f"or pack without labels ({argument('labels', False)})",
        )
    return label


def _label_name(row: Row, column: str) -> str:
    """Return the label of a row as text, the same for each spelling and type of a number."""
    value = row.values.get(column)
    if isinstance(value, float) and _EXACT <= abs(value) < _INT64:
        raise UnpackableError(
            f"its label {value!r} is a floating-point number, which does not hold every whole "
            "number beyond 2**53",
            remedy="write it as an integer, without a point or an exponent",
        )
    if isinstance(value, int | float | Decimal) and not isinstance(value, bool):
        number = integer_in(str(value))
        if number is None:
            raise UnpackableError(
                f"its label {quoted(value)} is not a whole number of 64 bits",
                remedy=f"{argument('target_columns')} packs numbers to predict",
            )
        return str(number)
    name = _text(row, column)
    _refuse_bytes({column: name}, row.line)
    return name


def _parse_path_column(text: str) -> PathColumn:
    field, equals, column = text.partition("=")
    return PathColumn(field.lower(), column) if equals else PathColumn(None, text)


def _default_paths(table: Table, present: tuple[str, ...]) -> tuple[PathColumn, ...]:
    for name in _PATHS:
        if name in present:
            return (PathColumn(None, name),)
    first = present[0] if present else "NAME"
    raise SituationError(
        f"which column holds paths? It has {', '.join(present)}",
        where=table.path,
        remedy="pass "
        + (_path_options(table, present, first) or argument("path_columns", [first])),
    )


def _refuse_plain_masks(
    table: Table, paths: tuple[PathColumn, ...], types: Mapping[str, FieldType]
) -> None:
    """Raise SituationError if masks or depth beside images would be pictures or bytes unasked.

    A column is known by its name. A field that says so, or a type, asks for pictures.
    """
    for field, column in paths if len(paths) > 1 else ():
        found = _BESIDE.fullmatch(column)
        if found is None or (field and (field in types or not isinstance(type_of(field), Bytes))):
            continue
        cells = (row.values.get(column) for row in table.rows([column]))
        cell = next((each for each in cells if each not in _NOTHING), None)
        path = cell.get("path") if isinstance(cell, Mapping) else cell
        end = os.path.splitext(str(path))[1].lower().strip(".")  # noqa: PTH122  text
        if not field and end in types:
            continue
        end = end if end in ("png", "npy") else "png"
        kind = f"the field {quoted(field)}, plain bytes" if field else "pictures"
        named = [f"{each.field}={each.column}" if each.field else each.column for each in paths]
        at = paths.index((field, column))
        as_told, as_is = (
            argument("path_columns", [*named[:at], f"{name}={column}", *named[at + 1 :]])
            for name in (f"{found.lastgroup}.{end}", end)
        )
        keep = f"{type_argument(field, 'Bytes()')} for bytes" if field else f"{as_is} for pictures"
        raise SituationError(
            f"the files of its column {quoted(column)} would become {kind}, and its name says "
            f"{found.lastgroup}",
            where=table.path,
            remedy=f"pass {as_told}, or {keep}",
        )


def _path_options(table: Table, present: tuple[str, ...], image: str) -> str:
    """Return the options that pack the files of several columns; empty if only one names files.

    Args:
        table: the table.
        present: names of its columns.
        image: column of the images.
    """
    beside = {
        name: str(found.lastgroup)
        for name in present
        if name != image and (found := _BESIDE.fullmatch(name))
    }
    row = next(table.rows((*beside,)), None) if beside else None
    values = {} if row is None else row.values
    named = [
        f"{field}{end}={name}"
        for name, field in beside.items()
        if (end := os.path.splitext(str(values.get(name)))[1].lower()) in (".png", ".npy")  # noqa: PTH122  text
    ]
    return argument("path_columns", [image, *named]) if named else ""


def _label_names(table: Table, column: str) -> Iterator[tuple[int, str]]:
    for row in table.rows([column]):
        with suppress(UnpackableError):  # a problem of that row, which listing the samples tells
            yield row.number, _label_name(row, column)


def _key(row: Row, column: str) -> str:
    value = row.values.get(column)
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return _text(row, column)


def _split(row: Row, column: str) -> str:
    name = _key(row, column)
    if not is_split_name(name) or name != name.strip():
        raise UnpackableError(
            f"its column {column!r} holds {quoted(name)}, which cannot name the folder of a split",
            remedy="write it as train or val",
        )
    return name


def _split_names(table: Table, column: str) -> tuple[str, ...]:
    found: dict[str, None] = {}
    for row in table.rows([column]):
        with suppress(UnpackableError):  # a problem of that row, which listing the samples tells
            found[_split(row, column)] = None
    return tuple(found)


def _text(row: Row, column: str) -> str:
    return _checked_text(row.values.get(column), column)


def _checked_text(value: Any, column: str) -> str:
    if value in _NOTHING:
        raise UnpackableError(f"its column {column!r} is empty")
    if not isinstance(value, str) or not value:
        raise UnpackableError(f"its column {column!r} holds {quoted(value)}, not a text")
    return value


def _refuse_bytes(cells: Mapping[str, Any], line: int | None) -> None:
    """Raise UnpackableError, with the first wrong byte, for a cell or column that is not UTF-8."""
    for column, value in cells.items():
        for text in (column, value if isinstance(value, str) else _to_json(value)):
            if found := _SURROGATE.search(text):
                place, code = len(text[: found.start()].encode()), ord(found[0])
                is_byte = 0xDC80 <= code <= 0xDCFF  # as the error handler surrogateescape has it
                what = f"0x{code - 0xDC00:02x}" if is_byte else f"U+{code:04X}"
                raise UnpackableError(
                    f"its column {quoted(column)} is not UTF-8 text: {what} at byte {place}"
                    + (f" of the cell, in line {line} of the file" if line else ""),
                    remedy="save the table as UTF-8"
                    + (
                        f", or name its encoding, as {argument('encoding', 'latin-1')}"
                        if is_byte
                        else ""
                    ),
                )
