"""The rows of tables: CSV, TSV, JSON Lines and Parquet.

JSON Lines and Parquet have types, which rows keep; the cells of CSV are text. Rows are read one
after another and never held together.

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

The delimiter is the one that the header has. A header with two of them is refused, since a comma
there may be part of a name as well. Text is UTF-8, or UTF-16 or UTF-32 if it starts as these do;
any other encoding must be named, because every byte is a letter of Latin-1. Bytes that are not
UTF-8 pass as lone surrogates, which whoever makes text of a cell refuses: they may be the name of
a file.
"""

from __future__ import annotations

import codecs
import csv
import json
import re
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from shardio.errors import PackError, SituationError, UsageError, argument, quoted
from shardio.fields.text import unique_names

if TYPE_CHECKING:
    import pyarrow as pa

_LIMIT = 1 << 27  # bytes of a cell
_DELIMITERS = {",": "comma", ";": "semicolon", "\t": "tab", "|": "pipe"}
_QUOTED = re.compile(r'"[^"]*(?:"|$)')
_BATCH = 4096  # rows that are read at once
_LARGE_BATCH = 64  # if they hold bytes, as of pictures
_OBJECTS = (".jsonl", ".ndjson")


class Row(NamedTuple):
    """One row of a table.

    Attributes:
        number: number of the row, counted from 1.
        line: number of its first line in the file, counted from 1; None in Parquet.
        values: cells by column.
        inside: lines within quoted cells that have as many cells as the header, by line number.
    """

    number: int
    line: int | None
    values: dict[str, Any]
    inside: dict[int, dict[str, str]]


@dataclass(frozen=True)
class Table:
    """A file of rows.

    Attributes:
        path: path of the file; its extension says what it is.
        encoding: encoding of its text; None for UTF-8, or UTF-16 or UTF-32 if it starts as these.
        delimiter: character between the cells of CSV and TSV; None for that of the header.

    Raises:
        UsageError: the extension is unknown, or an argument does not apply to such files.
        PackError: the path is not that of a file.
    """

    path: Path
    encoding: str | None = None
    delimiter: str | None = None

    def __post_init__(self) -> None:
        kind = self.path.suffix.lower()
        if kind not in _READERS:
            raise UsageError(f"a manifest is a file {', '.join(_READERS)}", where=self.path)
        if self.path.exists() and not self.path.is_file():
            raise PackError("it is not a file", where=self.path, remedy="name a table")
        if self.encoding is not None and kind == ".parquet":
            raise SituationError(
                "encoding does not apply to Parquet", where=self.path, remedy="leave it out"
            )
        if self.delimiter is not None and kind not in (".csv", ".tsv"):
            raise SituationError(
                "delimiter applies to CSV and TSV", where=self.path, remedy="leave it out"
            )

    @cached_property
    def columns(self) -> tuple[str, ...]:
        """Names of the columns: of the header, the schema, or all objects of JSON Lines.

        Raises:
            PackError: the table cannot be read, or has no rows.
            UsageError: pyarrow is missing, or the text is of another encoding.
        """
        names: dict[str, None] = {}
        last = 0
        for row in self._read(()):
            names.update(dict.fromkeys(row.values))
            last = row.number
            if last and self.path.suffix.lower() not in _OBJECTS:
                break
        if not last:
            raise PackError(
                "the table has no rows", where=self.path, remedy="name one with a header and rows"
            )
        return tuple(names)

    def rows(self, columns: Collection[str] | None = None) -> Iterator[Row]:
        """Read the table row by row.

        Args:
            columns: columns that are looked at; other ones of Parquet are not read. None for all.

        Raises:
            PackError: it cannot be read as what its extension says.
            UsageError: pyarrow is missing, or the text is of another encoding.
        """
        return (row for row in self._read(columns) if row.number)

    def _read(self, columns: Collection[str] | None) -> Iterator[Row]:
        """Read the rows; the columns that a table itself names come before them as row 0."""
        number = 0
        try:
            for row in _READERS[self.path.suffix.lower()](self, columns):
                number = row.number
                yield row
        except UnicodeDecodeError as error:
            raise self._undecodable(error) from error
        except (ValueError, RecursionError, OverflowError, NotImplementedError) as error:
            # JSONDecodeError is a ValueError, and so are most errors of pyarrow
            if isinstance(error, UsageError):
                raise
            raise PackError(
                str(error), where=f"{self.path}, row {number + 1}", remedy="fix the row"
            ) from error

    def class_names(self, column: str) -> tuple[str, ...] | None:
        """Names of the class numbers in a column; None if the table gives them none.

        Parquet files of the Hugging Face hub have them, as the feature ClassLabel.

        Raises:
            PackError: the table cannot be read, or what it says of the column is not a list of
                names.
            UsageError: pyarrow is missing.
        """
        if self.path.suffix.lower() != ".parquet":
            return None
        self.columns  # noqa: B018  raises what reading raises
        from pyarrow import parquet  # noqa: PLC0415  an extra

        about = (parquet.read_schema(self.path).metadata or {}).get(b"huggingface")
        if about is None:
            return None
        try:
            feature = json.loads(about)["info"]["features"][column]
            if feature.get("_type") != "ClassLabel":
                return None
            names = feature["names"]
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return None  # a column that was added since, or metadata of another version
        if isinstance(names, list) and all(isinstance(name, str) for name in names) and names:
            return tuple(names)
        raise PackError(
            f"the class names of its column {quoted(column)} are not a list of names",
            where=self.path,
            remedy=f"list them with {argument('classes')}",
        )

    def lines(self) -> Iterator[str]:
        """Read the lines of the text, with their line breaks.

        Raises:
            UnicodeDecodeError: the bytes are not of the encoding.
            UsageError: they start as those of another encoding do.
        """
        encoding = self._encoding()
        errors = "surrogateescape" if encoding == "utf-8-sig" else "strict"
        with self.path.open(encoding=encoding, errors=errors, newline="") as stream:
            yield from stream

    def _encoding(self) -> str:
        with self.path.open("rb") as stream:
            found = json.detect_encoding(stream.read(4))
        given = None if self.encoding is None else codecs.lookup(self.encoding).name
        if found == "utf-8" and given not in (None, "utf-8"):
            return str(given)
        if given is None or given[:6].rstrip("-") == found[:6].rstrip("-"):  # utf-8, utf-16, utf-32
            return "utf-8-sig" if found == "utf-8" else found
        raise SituationError(
            f"it starts as text in {found.upper()} does, not in {self.encoding}",
            where=self.path,
            remedy=f"leave {argument('encoding')} out",
        )

    def _undecodable(self, error: UnicodeDecodeError) -> PackError:
        """Find the line of bytes that do not decode; the stream that met them reads ahead."""
        encoding = self._encoding()
        decoder = codecs.getincrementaldecoder(encoding)()
        line, size = 1, 1 << 16
        with self.path.open("rb") as stream:
            while piece := stream.read(size):
                state = decoder.getstate()
                try:
                    line += decoder.decode(piece).count("\n")
                except UnicodeDecodeError:
                    if size == 1:
                        break
                    stream.seek(-len(piece), 1)
                    decoder.setstate(state)
                    size = 1
        return PackError(
            f"it is not text in {encoding.upper()}: {error.reason}",
            where=f"{self.path}, line {line}",
            remedy=f"name its {argument('encoding')}, or save it as UTF-8",
        )


def is_table(path: str) -> bool:
    """Tell whether a path is called like a table."""
    return Path(path).suffix.lower() in _READERS


def check_encoding(name: str | None) -> None:
    """Raise UsageError for what is not the name of an encoding of text."""
    try:
        "".encode("utf-8" if name is None else name or "?")
    except (LookupError, TypeError, ValueError):
        raise UsageError(
            "there is no such encoding",
            where=argument("encoding", name),
            remedy="write it as latin-1 or cp1252",
        ) from None


def check_delimiter(text: str | None) -> str | None:
    """Return a delimiter; "tab" stands for a tab.

    Raises:
        UsageError: it is not one character, or one that cells need.
    """
    if text in ("tab", "\\t"):
        return "\t"
    if text is not None and (not isinstance(text, str) or len(text) != 1 or text in '"\r\n'):
        raise UsageError(
            "it must be one character",
            where=argument("delimiter", text),
            remedy="write it as ';' or 'tab'",
        )
    return text


def _read_csv(table: Table, _columns: Collection[str] | None) -> Iterator[Row]:
    delimiter = table.delimiter or _find_delimiter(table)
    number, names = 0, None
    for first, lines, cells in _records(table.lines(), delimiter):
        if names is None:
            names = _check_names(cells)
            yield Row(0, first, dict.fromkeys(names), {})
            continue
        if len(cells) != len(names):
            raise ValueError(
                f"line {first} has {len(cells)} cells, the header {len(names)}"
                f"{_other_delimiter(delimiter, lines[0])}"
            )
        inside: dict[int, dict[str, str]] = {}
        for at, line in enumerate(lines[1:], start=first + 1):
            parts = line.rstrip("\r\n").split(delimiter)
            if len(parts) == len(names):
                inside[at] = dict(zip(names, parts, strict=True))
        number += 1
        yield Row(number, first, dict(zip(names, cells, strict=True)), inside)


def _find_delimiter(table: Table) -> str:
    """Find the delimiter of the header."""
    usual = "\t" if table.path.suffix.lower() == ".tsv" else ","
    header = next((line for line in table.lines() if line.strip("\r\n")), "")
    bare = _QUOTED.sub("", header)
    found = [each for each in _DELIMITERS if each in bare]
    if len(found) > 1 and not (usual == "\t" and "\t" in found):
        raise SituationError(
            f"its header has both {' and '.join(_DELIMITERS[each] for each in found)}, and one of "
            "them is the delimiter",
            where=table.path,
            remedy=f"say which, as {argument('delimiter', found[0])}, or put names with another "
            "one in quotes",
        )
    return usual if usual in found or not found else found[0]


def _other_delimiter(delimiter: str, line: str) -> str:
    others = [name for each, name in _DELIMITERS.items() if each in line and each != delimiter]
    used = _DELIMITERS.get(delimiter, repr(delimiter))
    return f"; the delimiter is {used}, and {argument('delimiter')} sets another" if others else ""


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
    cell = rf'(?:"[^"]*(?:""[^"]*)*"|[^"{re.escape(delimiter)}\r\n]*)'
    grammar = re.compile(rf"{cell}(?:{re.escape(delimiter)}{cell})*[\r\n]*")
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


def _check_names(names: list[str]) -> list[str]:
    again = next((name for name in names if names.count(name) > 1), None)
    if again is not None:
        raise ValueError(f"two columns have the same name {again!r}")
    return names


def _read_json_lines(table: Table, _columns: Collection[str] | None) -> Iterator[Row]:
    number = 0
    for line, text in enumerate(table.lines(), start=1):
        if not text.strip():
            continue
        number += 1
        row = json.loads(text, object_pairs_hook=unique_names)
        if not isinstance(row, dict):
            raise ValueError("it is not a JSON object")  # noqa: TRY004  data, not an argument
        yield Row(number, line, row, {})


def _read_parquet(table: Table, columns: Collection[str] | None) -> Iterator[Row]:
    try:
        from pyarrow import parquet  # noqa: PLC0415  an extra
    except ImportError as error:
        raise SituationError(
            "reading Parquet needs pyarrow",
            where=table.path,
            remedy="pip install 'shardio[parquet]'",
        ) from error
    number = 0
    with parquet.ParquetFile(table.path) as file:
        schema = file.schema_arrow
        chosen = [name for name in _check_names(schema.names) if columns is None or name in columns]
        yield Row(0, None, dict.fromkeys(schema.names), {})
        large = any("binary" in str(schema.field(name).type) for name in chosen)
        for batch in file.iter_batches(_LARGE_BATCH if large else _BATCH, columns=chosen):
            cells = {
                name: _python_values(table, name, batch.column(name), number) for name in chosen
            }
            for at in range(len(batch)):
                number += 1
                yield Row(number, None, {name: cells[name][at] for name in chosen}, {})


def _python_values(table: Table, column: str, array: pa.Array, before: int) -> list[Any]:
    """Make Python's values of a column, and ISO 8601 text of times, whose range Python lacks.

    Args:
        table: the table.
        column: name of the column.
        array: some of its values.
        before: number of rows before them.

    Raises:
        PackError: a value is none that Python has.
    """
    try:
        return _to_python(array)
    except (ValueError, OverflowError, NotImplementedError) as error:
        if len(array) > 1:
            return [
                _python_values(table, column, array.slice(at, 1), before + at)[0]
                for at in range(len(array))
            ]
        raise PackError(
            f"its column {quoted(column)} holds a value of the type {array.type} that cannot be "
            f"kept ({error})",
            where=f"{table.path}, row {before + 1}",
            remedy=f"write it as text or numbers, or choose other {argument('columns')}",
        ) from error


def _to_python(array: pa.Array) -> list[Any]:
    zoned = _with_times(array.type, as_text=False)
    text = _with_times(array.type, as_text=True)
    if text == array.type:
        values: list[Any] = array.to_pylist()
        return values
    values = array.cast(zoned).cast(text).to_pylist()
    if "<value out of range" in str(values):
        raise ValueError("it is out of range")
    return values


def _with_times(kind: pa.DataType, *, as_text: bool) -> pa.DataType:
    """Return a type with its times, at any depth, as text or in UTC."""
    import pyarrow as pa  # noqa: PLC0415  an extra

    types = pa.types
    if types.is_timestamp(kind) or types.is_date(kind) or types.is_time(kind):
        if as_text:
            return pa.string()
        return pa.timestamp(kind.unit, "UTC") if types.is_timestamp(kind) and kind.tz else kind
    if types.is_list(kind) or types.is_large_list(kind):
        inner = _with_times(kind.value_type, as_text=as_text)
        if inner == kind.value_type:
            return kind
        return pa.list_(inner) if types.is_list(kind) else pa.large_list(inner)
    if types.is_struct(kind):
        fields = [kind.field(at) for at in range(kind.num_fields)]
        made = [(each.name, _with_times(each.type, as_text=as_text)) for each in fields]
        return kind if made == [(each.name, each.type) for each in fields] else pa.struct(made)
    return kind


_READERS = {
    ".csv": _read_csv,
    ".tsv": _read_csv,
    ".jsonl": _read_json_lines,
    ".ndjson": _read_json_lines,
    ".parquet": _read_parquet,
}
