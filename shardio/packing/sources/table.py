"""A table of paths and labels: CSV, TSV, JSON Lines or Parquet, a row a sample.

The columns that are neither paths nor label nor key become the field `json`. CSV knows no types,
so there its values are text. A table is read once for the names of classes, if labels are names
and no list was given, and once for the samples; its rows are never held together.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple

from shardio.errors import PackError, SituationError, UsageError, quoted
from shardio.packing.fields import FieldRule, is_name, key_fault
from shardio.packing.labels import Labels, integer_in, label_fields, labels_of
from shardio.packing.samples import (
    FromFile,
    FromMemory,
    Problem,
    SourceField,
    SourceSample,
    text_of,
)
from shardio.packing.sources.rows import Row, read_rows
from shardio.storage.local import refuse_url, url_fault

_PATHS = ("path", "file_name", "filename", "file", "image")
_LABELS = ("label", "class")
_NOTHING = (None, "")
_SURROGATE = re.compile("[\ud800-\udfff]")


class PathColumn(NamedTuple):
    """A column of paths.

    Attributes:
        field: that its files become; None names it after the file's extension or format.
        column: its name.
    """

    field: str | None
    column: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Columns:
    """Which columns of a table mean what.

    Attributes:
        paths: one or more; the first gives the key.
        label: of class names or numbers; None for samples without label.
        key: of keys; None makes them of the paths.
    """

    paths: tuple[PathColumn, ...]
    label: str | None
    key: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """The samples that a table lists.

    Attributes:
        path: of the table.
        root: folder that its paths start from.
        columns: what they mean.
        labels: what labels mean; None without a column of them.
    """

    path: Path
    root: str
    columns: Columns
    labels: Labels | None

    @property
    def name(self) -> str:
        """What errors call it."""
        return str(self.path)

    @property
    def classes(self) -> tuple[str, ...] | None:
        """Names of the classes by label; None where labels are numbers."""
        return self.labels.classes if self.labels else None

    def samples(self) -> Iterator[SourceSample | Problem]:
        """All samples, in the order of the rows.

        Raises:
            PackError: the table cannot be read.
        """
        rule = FieldRule()
        for row in read_rows(self.path):
            self._refuse_rows_inside(row)
            try:
                sample: SourceSample | Problem = self._sample(row.values, rule)
            except _RowError as error:
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
                    f"{self.path}, row {row.number}: its line {line} lies inside a quoted cell "
                    f"and is a row of its own, of {path!r}; a quote is missing or too many"
                )

    def _sample(self, row: dict[str, Any], rule: FieldRule) -> SourceSample:
        fields: dict[str | None, bytes] = {}
        key, renamed = "", False
        for given, column in self.columns.paths:
            path = self._path(row, column, optional=bool(fields))
            if path is None:
                continue
            found = rule.look_at(path)
            if found is None:  # a rule without wanted fields finds every file
                continue
            if not fields:
                key, renamed = found.key, found.renamed
            field = given or found.field
            if field in fields:
                raise _RowError(f"two of its columns hold the field {field!r}; name it otherwise")
            fields[field] = path.encode("utf-8", "surrogateescape")
        if self.columns.key is not None:
            key, renamed = _text(row, self.columns.key), True
        if fault := key_fault(key):
            raise _RowError(fault)
        label = self._label(row)
        files = [SourceField(name, FromFile(path)) for name, path in fields.items()]
        return SourceSample(
            key=key,
            name=text_of(next(iter(fields.values()))),
            fields=(*label_fields(label), *files, *self._extra(row)),
            label=label,
            renamed=renamed,
        )

    def _path(self, row: dict[str, Any], column: str, *, optional: bool) -> str | None:
        if optional and row.get(column) in _NOTHING:
            return None
        text = _text(row, column)
        if fault := url_fault(text):
            raise _RowError(fault)
        path = os.path.normpath(text)
        if "\0" in path or not is_name(path):
            raise _RowError(f"its column {column!r} holds {path!r}, which no file can be called")
        if os.path.isabs(path):  # noqa: PTH117  text
            inside = os.path.relpath(path, self.root)
            return path if inside.startswith("..") else inside
        if path.partition("/")[0] == "..":
            raise _RowError(f"{path} leads out of {self.root}; name a folder above as SRC")
        return path

    def _label(self, row: dict[str, Any]) -> int | None:
        if self.labels is None or self.columns.label is None:
            return None
        name = _label_name(row, self.columns.label)
        label = self.labels.number(name)
        if label is None:
            raise _RowError(self.labels.fault(name))
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
            raise _RowError(f"JSON cannot hold its other columns ({error})") from error
        if not text.isascii():
            _refuse_bytes(rest)
        return (SourceField("json", FromMemory(text.encode())),)


class _RowError(Exception):
    """Why a row is no sample."""


def open_table(
    path: str | os.PathLike[str],
    *,
    root: str,
    paths: Sequence[str],
    label: str | None,
    key: str | None,
    classes: tuple[str, ...] | None,
    with_labels: bool,
) -> Table:
    """Open a table of samples.

    Args:
        path: of the table; its extension says its format.
        root: folder that its paths start from.
        paths: columns of paths, each as `column` or `field=column`; none takes the first of
            path, file_name, filename, file and image that there is.
        label: column of labels; None takes `label` or `class`, if there is one.
        key: column of keys; None makes them of the paths.
        classes: names of the classes; None takes those that occur.
        with_labels: False leaves labels out.

    Raises:
        PackError: the table cannot be read, or has no rows.
        UsageError: it has no such column.
    """
    refuse_url(path)
    path = Path(path)
    first = next(read_rows(path), None)
    if first is None:
        raise PackError(f"{path}: the table has no rows; name one with a header and rows")
    present = [*first.values]
    chosen = tuple(map(_parse_path_column, paths)) or _default_paths(path, present)
    if label is None and with_labels:
        label = next((name for name in _LABELS if name in present), None)
        others = set(present) - {column for _, column in chosen} - {key, ""}
        if label is None and (classes is not None or others):
            raise SituationError(
                f"{path}: which column holds the labels? It has {', '.join(present)}; name it "
                "(--label-column), or pack without labels (--no-labels)"
            )
    if not with_labels and label is not None:
        raise UsageError("a column of labels is named, and no labels shall be packed")
    for column in (*(column for _, column in chosen), label, key):
        if column is not None and column not in present:
            raise SituationError(
                f"{path}: there is no column {column!r}; its columns are {', '.join(present)}"
            )
    labels = None
    if label is not None:
        labels = Labels(classes) if classes else labels_of(_label_names(path, label))
    columns = Columns(paths=chosen, label=label, key=key)
    return Table(path=path, root=root, columns=columns, labels=labels)


def _label_name(row: dict[str, Any], column: str) -> str:
    """The label of a row as text; of a number the same text for each of its spellings and types."""
    value = row.get(column)
    if isinstance(value, int | float | Decimal) and not isinstance(value, bool):
        number = integer_in(str(value))
        if number is None:
            raise _RowError(f"its label {quoted(value)} is no whole number of 64 bits")
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
        f"{path}: which column holds paths? It has {', '.join(present)}; pass "
        f"--path-column {present[0] if present else 'NAME'}"
    )


def _label_names(path: Path, column: str) -> Iterator[tuple[int, str]]:
    for row in read_rows(path):
        with suppress(_RowError):  # a problem of that row, which listing the samples tells
            yield row.number, _label_name(row.values, column)


def _text(row: dict[str, Any], column: str) -> str:
    value = row.get(column)
    if not isinstance(value, str) or not value:
        raise _RowError(f"its column {column!r} holds {quoted(value)}, no text")
    return value


def _refuse_bytes(row: dict[str, Any]) -> None:
    """Raise _RowError if a cell or a column's name is not UTF-8, with the first byte of it."""
    for column, value in row.items():
        shown = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        for text in (column, shown):
            if found := _SURROGATE.search(text):
                place, code = len(text[: found.start()].encode()), ord(found[0])
                is_byte = 0xDC80 <= code <= 0xDCFF  # as the error handler surrogateescape has it
                what = f"0x{code - 0xDC00:02x}" if is_byte else f"U+{code:04X}"
                raise _RowError(
                    f"its column {quoted(column)} is not UTF-8 text: {what} at byte {place}; save "
                    "the table as UTF-8"
                )
