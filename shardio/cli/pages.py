"""Pages that commands print: sentences and tables."""

from __future__ import annotations

import io
import re
import sys
from collections.abc import Iterable

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from shardio.cli.text import fitted
from shardio.processes import WIDTH, terminal_width

Part = str | Text | Table
"""Part of a page."""

_ANY_WIDTH = 1 << 16
_BLANKS = re.compile(
    r" +(?=(?:\x1b\[[0-9;]*m| )*$)", re.MULTILINE
)  # also before an escape sequence


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
        width=min(terminal_width(), WIDTH) if is_terminal else WIDTH,
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
    return Text(fitted(text.plain, console.width), text.style)


def _list_rows(made: Table) -> str:
    """Return a table as text, a line for each cell."""
    titles = [column.header for column in made.columns]
    rows = zip(*(column.cells for column in made.columns), strict=True)
    return "\n" + "\n".join(
        "".join(f"{title}: {cell}\n" for title, cell in zip(titles, row, strict=True) if cell)
        for row in rows
    )
