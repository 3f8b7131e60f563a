"""Rows of a table: CSV, TSV, JSON Lines or Parquet.

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

JSON Lines and Parquet have types, which rows keep; the cells of CSV are text.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from shardio.errors import PackError, SituationError, UsageError

_LIMIT = 1 << 27  # bytes of a cell


class Row(NamedTuple):
    """One row of a table.

    Attributes:
        number: position in the table, counted from 1.
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
        raise UsageError(f"{path}: a manifest is a file {', '.join(readers)}")
    if path.exists() and not path.is_file():
        raise PackError(f"{path}: it is not a file; name a table")
    number = 0
    try:
        for row in reader(path):
            number = row.number
            yield row
    except (ValueError, RecursionError, OverflowError, NotImplementedError) as error:
        # JSONDecodeError is a ValueError, and so are most errors of pyarrow
        raise PackError(f"{path}, row {number + 1}: {error}; mend the row") from error


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
    """Yield the number of a record's first line, its lines and its cells; empty lines are none.

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
                raise ValueError("it is no JSON object")  # noqa: TRY004  data, not an argument
            yield Row(number, row, {})


def _read_parquet(path: Path) -> Iterator[Row]:
    try:
        from pyarrow import parquet  # noqa: PLC0415  an extra
    except ImportError as error:
        raise SituationError(
            f"{path}: reading Parquet needs pyarrow; pip install 'shardio[parquet]'"
        ) from error
    number = 0
    with parquet.ParquetFile(path) as table:
        for batch in table.iter_batches(4096):
            for row in batch.to_pylist():
                number += 1
                yield Row(number, row, {})
