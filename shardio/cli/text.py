"""What commands print: sentences and JSON, on any terminal."""

from __future__ import annotations

import codecs
import io
import json
import sys
import textwrap
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

import click

from shardio.errors import shown
from shardio.processes import terminal_width

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
        text = fitted(text, terminal_width(error=error))
    click.echo(text, file=stream)  # without a file, it would be UTF-8 where the encoding is ASCII


def fitted(text: str, width: int) -> str:
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


def fields_text(types: Iterable[tuple[str, str]]) -> str:
    """List names of fields, each with its type if this is called otherwise."""
    named = (shown(name) if name == kind else f"{shown(name)} ({kind})" for name, kind in types)
    return ", ".join(named) or "none"


def say_json(result: Any, **more: Any) -> None:
    """Print a dataclass as JSON.

    Args:
        result: instance of a dataclass.
        **more: further values.
    """
    say(json.dumps(asdict(result) | more), as_it_is=True)
