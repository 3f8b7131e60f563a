"""What commands print: sentences, tables and JSON, on any terminal."""

from __future__ import annotations

import codecs
import io
import json
import re
import shutil
import sys
from collections.abc import Iterable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

_WIDTH = 80
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


def say(text: str, *, error: bool = False) -> None:
    """Print text; without a file, click would print UTF-8 where the encoding is ASCII."""
    click.echo(text, file=sys.stderr if error else sys.stdout)


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
    say(json.dumps(asdict(result) | more))


def table(*titles: str, left: int = 1, tight: bool = False) -> Table:
    """Make a table of text and numbers.

    Args:
        *titles: titles of the columns.
        left: number of columns of text; the others hold numbers, aligned to the right.
        tight: whether the table begins at the left edge, for many columns.
    """
    from rich.box import SIMPLE_HEAD  # noqa: PLC0415  only for tables
    from rich.table import Table  # noqa: PLC0415

    made = Table(box=SIMPLE_HEAD)
    if tight:
        made = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for place, title in enumerate(titles):
        made.add_column(title, justify="left" if place < left else "right", overflow="fold")
    return made


def page(parts: Iterable[RenderableType]) -> str:
    """Lay out texts and tables in 80 columns, or those of a narrower terminal.

    No line ends in blanks, which rich fills tables with. Names in the texts are no markup of rich.
    """
    from rich.console import Console  # noqa: PLC0415  only for tables

    written = io.StringIO()
    is_terminal = sys.stdout.isatty()
    console = Console(
        file=written,
        force_terminal=is_terminal,
        width=min(shutil.get_terminal_size().columns, _WIDTH) if is_terminal else _WIDTH,
        highlight=False,
        markup=False,
        emoji=False,
    )
    for part in parts:
        console.print(part)
    return _BLANKS.sub("", written.getvalue()).rstrip("\n")
