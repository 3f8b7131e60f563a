"""Progress of long work: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import chain, repeat

from shardio.cli.text import say, size_text
from shardio.processes import new_lock

_NARROW = 50  # columns of a terminal without room for the time
_SECONDS_BETWEEN_LINES = 10.0
_SECONDS_BETWEEN_FRAMES = 0.1


Progress = Callable[[int], Callable[[int], None]]
"""Function that takes the total and returns the function to call with the number of items done
since, from any thread."""


@contextmanager
def progress_bar(
    *titles: str, hidden: bool = False, of_bytes: bool = False
) -> Iterator[Progress | None]:
    """Show progress on standard error.

    Args:
        *titles: descriptions of the passes over the items, the last one of all others too.
        hidden: whether nothing is shown.
        of_bytes: whether the items are bytes.
    """
    if hidden:
        yield None
        return
    named = chain(titles, repeat(titles[-1]))
    if not sys.stderr.isatty():
        lines = _Lines(size_text if of_bytes else "{:,}".format)
        yield lambda total: _Counter(
            total, _SECONDS_BETWEEN_LINES, partial(lines.show, next(named), total)
        ).add
        return
    from rich import progress  # noqa: PLC0415  only for a terminal
    from rich.console import Console  # noqa: PLC0415

    console = Console(stderr=True)
    columns = (
        progress.TextColumn("{task.description}"),
        progress.BarColumn(),
        progress.DownloadColumn() if of_bytes else progress.MofNCompleteColumn(),
        *([progress.TimeRemainingColumn()] if console.width > _NARROW else []),
    )
    with progress.Progress(*columns, console=console, transient=True) as bar:

        def start(total: int) -> Callable[[int], None]:
            task = bar.add_task(next(named), total=total)
            show = lambda done: bar.update(task, completed=done)  # noqa: E731  one expression
            return _Counter(total, _SECONDS_BETWEEN_FRAMES, show).add

        yield start


class _Counter:
    """Counts items from several threads and shows the count at most so often."""

    def __init__(self, total: int, interval: float, show: Callable[[int], None]) -> None:
        self._total = total
        self._interval = interval
        self._show = show
        self._lock = new_lock()
        self._done = 0
        self._next = time.monotonic() + interval

    def add(self, count: int) -> None:
        with self._lock:
            self._done += count
            if time.monotonic() >= self._next or self._done == self._total:
                self._next = time.monotonic() + self._interval
                self._show(self._done)


class _Lines:
    """Lines on standard error; a line that would repeat the last one is left out."""

    def __init__(self, text: Callable[[int], str]) -> None:
        self._text = text
        self._last = ""

    def show(self, title: str, total: int, done: int) -> None:
        line = f"{title}: {self._text(done)} of {self._text(total)}"
        if line != self._last:
            say(line, error=True)
        self._last = line
