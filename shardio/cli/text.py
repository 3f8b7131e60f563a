"""What commands print: sentences, tables and JSON, on any terminal."""

from __future__ import annotations

import codecs
import io
import json
import os
import re
import shutil
import sys
import textwrap
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict
from typing import Any

import click
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

Part = str | Text | Table
"""Part of a page."""

_WIDTH = 80
_ANY_WIDTH = 1 << 16
_BLANKS = re.compile(
    r" +(?=(?:\x1b\[[0-9;]*m| )*$)", re.MULTILINE
)  # also before an escape sequence
_UNITS = ("B", "kB", "MB", "GB", "TB", "PB")
_ESCAPED = "shardio.escaped"
_IN_ASCII = str.maketrans({"─": "-", "×": "x", "µ": "u", "±": "~", "…": "..."})
"""What shardio itself prints beyond ASCII; other characters, as in names, are escaped."""


def escape_output() -> None:
    """Have standard output and error replace or escape what their encoding lacks."""
    codecs.register_error(_ESCAPED, _in_ascii)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=_ESCAPED)


def _in_ascii(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end].translate(_IN_ASCII)
    return text.encode("ascii", "backslashreplace").decode("ascii"), error.end


def say(text: str, *, error: bool = False, as_it_is: bool = False) -> None:
    """Print text, on a terminal in lines that fit it.

    Args:
        text: sentences.
        error: whether they go to standard error.
        as_it_is: whether the text is no sentence, and no line is divided.
    """
    stream = sys.stderr if error else sys.stdout
    if stream.isatty() and not as_it_is:
        text = _fitted(text, terminal_width(error=error))
    click.echo(text, file=stream)  # without a file, it would be UTF-8 where the encoding is ASCII


def terminal_width(*, error: bool = False) -> int:
    """Return the columns of the terminal of standard output, or error; 80 without one.

    COLUMNS overrides it.
    """
    stream, usual = sys.stderr if error else sys.stdout, os.terminal_size((_WIDTH, 24))
    with suppress(OSError, ValueError):
        usual = os.get_terminal_size(stream.fileno())
    return shutil.get_terminal_size(usual).columns or _WIDTH


def _fitted(text: str, width: int) -> str:
    """Divide the lines of a text between words: a path, or another long word, stays whole."""
    wrapper = textwrap.TextWrapper(
        width, break_long_words=False, break_on_hyphens=False, replace_whitespace=False
    )
    lines = []
    for line in text.split("\n"):
        wrapper.subsequent_indent = line[: len(line) - len(line.lstrip())]
        lines.append(wrapper.fill(line))
    return "\n".join(lines)


def size_text(count: int) -> str:
    """Format bytes, as 57.9 kB."""
    value, unit = float(count), 0
    while value >= 999.95 and unit < len(_UNITS) - 1:
        value, unit = value / 1000, unit + 1
    return f"{value:,.1f} {_UNITS[unit]}" if unit else f"{count} B"


def say_json(result: Any, **more: Any) -> None:
    """Print a dataclass as JSON.

    Args:
        result: instance of a dataclass.
        **more: further values.
    """
    say(json.dumps(asdict(result) | more), as_it_is=True)


def table(*titles: str, left: int = 1, tight: bool = False) -> Table:
    """Make a table of text and numbers.

    Args:
        *titles: titles of the columns.
        left: number of columns of text; the others hold numbers, aligned to the right.
        tight: whether the table begins at the left edge, for many columns.
    """
    made = Table(box=SIMPLE_HEAD)
    if tight:
        made = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for place, title in enumerate(titles):
        made.add_column(title, justify="left" if place < left else "right", overflow="fold")
    return made


def page(parts: Iterable[Part]) -> str:
    """Lay out texts and tables in 80 columns, or those of a narrower terminal.

    On a terminal no word, as a path, is divided: a table whose words do not fit becomes a list of
    its rows. No line ends in blanks, which rich fills tables with. Names in the texts are no markup
    of rich.
    """
    written = io.StringIO()
    is_terminal = sys.stdout.isatty()
    console = Console(
        file=written,
        force_terminal=is_terminal,
        width=min(terminal_width(), _WIDTH) if is_terminal else _WIDTH,
        highlight=False,
        markup=False,
        emoji=False,
    )
    for part in parts:
        console.print(_whole_words(part, console) if is_terminal else part, soft_wrap=is_terminal)
    return _BLANKS.sub("", written.getvalue()).rstrip("\n")


def _whole_words(part: Part, console: Console) -> Text | Table:
    """Return a part of a page without words that a terminal would have to divide."""
    if isinstance(part, Table):
        wide = console.options.update(width=_ANY_WIDTH)
        for column in part.columns:
            sizes = [
                Measurement.get(console, wide, each) for each in (column.header, *column.cells)
            ]
            column.min_width = max(size.minimum for size in sizes)
            column.no_wrap = column.min_width == max(size.maximum for size in sizes)
        if Measurement.get(console, wide, part).minimum <= console.width:
            return part
        return _whole_words(_list_rows(part), console)
    text = part if isinstance(part, Text) else Text(part)
    return Text(_fitted(text.plain, console.width), text.style)


def _list_rows(made: Table) -> str:
    """Return a table as text, a line for each cell."""
    titles = [column.header for column in made.columns]
    rows = zip(*(column.cells for column in made.columns), strict=True)
    return "\n" + "\n".join(
        "".join(f"{title}: {cell}\n" for title, cell in zip(titles, row, strict=True) if cell)
        for row in rows
    )
