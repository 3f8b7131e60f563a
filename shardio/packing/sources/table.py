"""A table of paths and labels: CSV, TSV, JSON Lines or Parquet, a row a sample.

The columns that are neither paths nor label nor key become the field `json`. JSON Lines and Parquet
have types, which rows keep; the cells of CSV are text. A table is read once for the names of
classes, if labels are names and no list was given, and once for the samples; its rows are never
held together.

A stray quote in a CSV opens a cell that swallows the following rows, and Python's csv module
accepts it as soon as some later quote closes the cell. Quoted line breaks are legal, so their
presence proves nothing. Two rules keep rows from being lost:

- Every record must follow the grammar of RFC 4180: a cell is either quoted as a whole, with the
  quotes inside it doubled, or holds no quote. Each record then has an even number of quotes, so one
  quote too many or too few, anywhere in a file, is always an error.
- Two stray quotes may cancel each other. What they enclose are whole rows, so a line that lies
  inside a record and has as many cells as the header is reported beside it (`Row.inside`). Whether
  it is prose or a row depends on what the columns mean, which only the reader of the rows knows.

Captions with line breaks are therefore read whatever they hold, and cells that some program
wrote with quotes in the middle (`5" nails`, unquoted) are refused instead of guessed at.
"""

from __future__ import annotations

import csv
import json
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from shardio.errors import PackError, SituationError, UsageError, quoted
from shardio.packing.sources.base import (
    FromFile,
    FromMemory,
    Problem,
    SourceField,
    SourceSample,
    UnpackableError,
    is_name,
    key_fault,
    text_of,
)
from shardio.packing.sources.rules import (
    FieldRule,
    LabelEncoder,
    check_classes,
    infer_labels,
    integer_in,
    label_fields,
)
from shardio.storage.local import refuse_url, url_fault

if TYPE_CHECKING:
    from shardio.packing.options import PackOptions

_LIMIT = 1 << 27  # bytes of a cell


class Row(NamedTuple):
    """One row of a table.

    Attributes:
        number: number of the row, counted from 1.
        values: cells by column.
        inside: lines within quoted cells that have as many cells as the header, by line number.
    """

    number: int
    values: dict[str, Any]
    inside: dict[int, dict[str, str]]


def read_rows(path: Path) -> Iterator[Row]:
    """Read a table row by row.

    Raises:
        PackError: it cannot be read as what its extension says.
        UsageError: the extension is unknown, or pyarrow is missing.
    """
    readers = {
        ".csv": _read_csv,
        ".tsv": _read_csv,
        ".jsonl": _read_json_lines,
        ".ndjson": _read_json_lines,
        ".parquet": _read_parquet,
    }
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise UsageError(f"a manifest is a file {', '.join(readers)}", where=path)
    if path.exists() and not path.is_file():
        raise PackError("it is not a file", where=path, remedy="name a table")
    number = 0
    try:
        for row in reader(path):
            number = row.number
            yield row
    except (ValueError, RecursionError, OverflowError, NotImplementedError) as error:
        # JSONDecodeError is a ValueError, and so are most errors of pyarrow
        raise PackError(
            str(error), where=f"{path}, row {number + 1}", remedy="mend the row"
        ) from error


def _read_csv(path: Path) -> Iterator[Row]:
    delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
    number, names = 0, None
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as stream:
        for first, lines, cells in _records(stream, delimiter):
            if names is None:
                names = _column_names(cells)
                continue
            if len(cells) != len(names):
                raise ValueError(f"line {first} has {len(cells)} cells, the header {len(names)}")
            inside: dict[int, dict[str, str]] = {}
            for at, line in enumerate(lines[1:], start=first + 1):
                parts = line.rstrip("\r\n").split(delimiter)
                if len(parts) == len(names):
                    inside[at] = dict(zip(names, parts, strict=True))
            number += 1
            yield Row(number, dict(zip(names, cells, strict=True)), inside)


def _records(
    stream: Iterable[str], delimiter: str
) -> Iterator[tuple[int, tuple[str, ...], list[str]]]:
    """Yield the number of a record's first line, its lines and its cells; skip empty lines.

    Raises:
        ValueError: the quotes do not follow the grammar.
    """
    lines: list[str] = []

    def keep() -> Iterator[str]:
        for line in stream:
            lines.append(line)
            yield line

    csv.field_size_limit(_LIMIT)
    records = csv.reader(keep(), delimiter=delimiter, strict=True)
    cell = rf'(?:"[^"]*(?:""[^"]*)*"|[^"{delimiter}\r\n]*)'
    grammar = re.compile(rf"{cell}(?:{delimiter}{cell})*[\r\n]*")
    while True:
        first = records.line_num + 1
        lines.clear()
        try:
            cells = next(records, None)
        except csv.Error as error:
            raise ValueError(
                f"the record that starts at line {first} does not read as CSV ({error}); a quote "
                f"in the lines {first} to {first + len(lines) - 1} is missing or too many"
            ) from None
        if cells is None:
            return
        record = "".join(lines)
        if '"' in record and not grammar.fullmatch(record):
            raise ValueError(
                f"line {first}: a quote stands inside a cell that does not begin with one; put "
                "the whole cell in quotes, and write the quotes inside it twice"
            )
        if cells:
            yield first, tuple(lines), cells


def _column_names(cells: list[str]) -> list[str]:
    again = next((name for name in cells if cells.count(name) > 1), None)
    if again is not None:
        raise ValueError(f"two columns have the same name {again!r}")
    return cells


def _read_json_lines(path: Path) -> Iterator[Row]:
    with path.open(encoding="utf-8-sig", errors="surrogateescape") as stream:
        lines = (line for line in stream if line.strip())
        for number, line in enumerate(lines, start=1):
            row = json.loads(line)
            if not isinstance(row, dict):
                raise ValueError("it is not a JSON object")  # noqa: TRY004  data, not an argument
            yield Row(number, row, {})


def _read_parquet(path: Path) -> Iterator[Row]:
    try:
        from pyarrow import parquet  # noqa: PLC0415  an extra
    except ImportError as error:
        raise SituationError(
            "reading Parquet needs pyarrow", where=path, remedy="pip install 'shardio[parquet]'"
        ) from error
    number = 0
    with parquet.ParquetFile(path) as table:
        for batch in table.iter_batches(4096):
            for row in batch.to_pylist():
                number += 1
                yield Row(number, row, {})


_PATHS = ("path", "file_name", "filename", "file", "image")
_LABELS = ("label", "class")
_NOTHING = (None, "")
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
    """

    paths: tuple[PathColumn, ...]
    label: str | None
    key: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class TableSource:
    """The samples that a table lists.

    Attributes:
        path: path of the table.
        root: folder that its paths start from.
        columns: columns that are looked at.
        labels: meaning of the labels; None without a column of them.
    """

    described: ClassVar[str] = "a table"
    remedy: ClassVar[str] = "fix or remove the row, or the file that it names"
    options: ClassVar[tuple[str, ...]] = (
        *("labels", "classes", "manifest"),
        *("path_columns", "label_column", "key_column"),
    )

    path: Path
    root: str
    columns: Columns
    labels: LabelEncoder | None

    @classmethod
    def claims(cls, path: str, options: PackOptions) -> bool:  # noqa: ARG003  as all sources
        """See PathSource."""
        return options.manifest is not None

    @classmethod
    def open(cls, path: str, options: PackOptions) -> TableSource:
        """See PathSource."""
        manifest = os.fspath(options.manifest or "")  # it is given, or the table is not claimed
        refuse_url(manifest)
        table = Path(manifest)
        first = next(read_rows(table), None)
        if first is None:
            raise PackError(
                "the table has no rows", where=table, remedy="name one with a header and rows"
            )
        columns = _choose_columns(table, [*first.values], options)
        classes = check_classes(options.classes)
        labels = None
        if columns.label is not None:
            labels = (
                LabelEncoder(classes)
                if classes
                else infer_labels(_label_names(table, columns.label))
            )
        return cls(path=table, root=path, columns=columns, labels=labels)

    @property
    def name(self) -> str:
        """See Source."""
        return str(self.path)

    @property
    def classes(self) -> tuple[str, ...] | None:
        """See Source; None where labels are numbers."""
        return self.labels.classes if self.labels else None

    def samples(self) -> Iterator[SourceSample | Problem]:
        """Yield all samples, in the order of the rows.

        Raises:
            PackError: the table cannot be read.
        """
        rule = FieldRule()
        for row in read_rows(self.path):
            self._refuse_rows_inside(row)
            try:
                sample: SourceSample | Problem = self._sample(row.values, rule)
            except UnpackableError as error:
                sample = Problem(path=f"{self.path}, row {row.number}", reason=str(error))
            yield sample

    def _refuse_rows_inside(self, row: Row) -> None:
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
                    where=f"{self.path}, row {row.number}",
                    remedy="a quote is missing or too many",
                )

    def _sample(self, row: dict[str, Any], rule: FieldRule) -> SourceSample:
        fields: dict[str | None, bytes] = {}
        key, renamed = "", False
        for given, column in self.columns.paths:
            path = self._path(row, column, optional=bool(fields))
            if path is None:
                continue
            found = rule.match(path)
            if found is None:  # a rule without specs matches every path
                continue
            if not fields:
                key, renamed = found.key, found.renamed
            field = given or found.field
            if field in fields:
                raise UnpackableError(
                    f"two of its columns hold the field {field!r}", remedy="name it otherwise"
                )
            fields[field] = path.encode("utf-8", "surrogateescape")
        if self.columns.key is not None:
            key, renamed = _text(row, self.columns.key), True
        if fault := key_fault(key):
            raise UnpackableError(fault)
        label = self._label(row)
        files = [SourceField(name, FromFile(path)) for name, path in fields.items()]
        return SourceSample(
            key=key,
            path=text_of(next(iter(fields.values()))),
            fields=(*label_fields(label), *files, *self._extra(row)),
            label=label,
            renamed=renamed,
        )

    def _path(self, row: dict[str, Any], column: str, *, optional: bool) -> str | None:
        if optional and row.get(column) in _NOTHING:
            return None
        text = _text(row, column)
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

    def _label(self, row: dict[str, Any]) -> int | None:
        if self.labels is None or self.columns.label is None:
            return None
        name = _label_name(row, self.columns.label)
        label = self.labels.encode(name)
        if label is None:
            raise UnpackableError(self.labels.fault(name))
        return label

    def _extra(self, row: dict[str, Any]) -> tuple[SourceField, ...]:
        known: set[str | None] = {column for _, column in self.columns.paths}
        known |= {self.columns.label, self.columns.key}
        rest = {
            name: value
            for name, value in row.items()
            if name not in known and (name or value not in _NOTHING)
        }
        if not rest:
            return ()
        try:
            text = json.dumps(rest, ensure_ascii=False, allow_nan=False)
        except (TypeError, ValueError, RecursionError) as error:
            raise UnpackableError(f"JSON cannot hold its other columns ({error})") from error
        if not text.isascii():
            _refuse_bytes(rest)
        return (SourceField("json", FromMemory(text.encode())),)


def _choose_columns(table: Path, present: list[str], options: PackOptions) -> Columns:
    """Choose the columns that the options name, or those with usual names.

    Raises:
        UsageError: there is no such column, or it is not clear which is which.
    """
    key, label = options.key_column, options.label_column
    paths = tuple(map(_parse_path_column, options.path_columns)) or _default_paths(table, present)
    if label is None and options.labels:
        label = next((name for name in _LABELS if name in present), None)
        others = set(present) - {column for _, column in paths} - {key, ""}
        if label is None and (options.classes is not None or others):
            raise SituationError(
                f"which column holds the labels? It has {', '.join(present)}",
                where=table,
                remedy="name it (--label-column), or pack without labels (--no-labels)",
            )
    if not options.labels and label is not None:
        raise UsageError(
            "label_column names a column, but labels=False packs no labels",
            remedy="leave one of them out",
        )
    for column in (*(column for _, column in paths), label, key):
        if column is not None and column not in present:
            raise SituationError(
                f"there is no column {column!r}",
                where=table,
                remedy=f"its columns are {', '.join(present)}",
            )
    return Columns(paths=paths, label=label, key=key)


def _label_name(row: dict[str, Any], column: str) -> str:
    """Return the label of a row as text, the same for each spelling and type of a number."""
    value = row.get(column)
    if isinstance(value, int | float | Decimal) and not isinstance(value, bool):
        number = integer_in(str(value))
        if number is None:
            raise UnpackableError(f"its label {quoted(value)} is not a whole number of 64 bits")
        return str(number)
    name = _text(row, column)
    _refuse_bytes({column: name})
    return name


def _parse_path_column(text: str) -> PathColumn:
    field, equals, column = text.partition("=")
    return PathColumn(field.lower(), column) if equals else PathColumn(None, text)


def _default_paths(path: Path, present: list[str]) -> tuple[PathColumn, ...]:
    for name in _PATHS:
        if name in present:
            return (PathColumn(None, name),)
    raise SituationError(
        f"which column holds paths? It has {', '.join(present)}",
        where=path,
        remedy=f"pass --path-column {present[0] if present else 'NAME'}",
    )


def _label_names(path: Path, column: str) -> Iterator[tuple[int, str]]:
    for row in read_rows(path):
        with suppress(UnpackableError):  # a problem of that row, which listing the samples tells
            yield row.number, _label_name(row.values, column)


def _text(row: dict[str, Any], column: str) -> str:
    value = row.get(column)
    if not isinstance(value, str) or not value:
        raise UnpackableError(f"its column {column!r} holds {quoted(value)}, not a text")
    return value


def _refuse_bytes(row: dict[str, Any]) -> None:
    """Raise UnpackableError, with the first wrong byte, for a cell or column that is not UTF-8."""
    for column, value in row.items():
        shown = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        for text in (column, shown):
            if found := _SURROGATE.search(text):
                place, code = len(text[: found.start()].encode()), ord(found[0])
                is_byte = 0xDC80 <= code <= 0xDCFF  # as the error handler surrogateescape has it
                what = f"0x{code - 0xDC00:02x}" if is_byte else f"U+{code:04X}"
                raise UnpackableError(
                    f"its column {quoted(column)} is not UTF-8 text: {what} at byte {place}",
                    remedy="save the table as UTF-8",
                )
