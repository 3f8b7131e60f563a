"""A timeline for Perfetto (https://ui.perfetto.dev).

The Trace Event Format of Chromium's about:tracing: complete events ("X"), times in microseconds.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from shardio.errors import SituationError
from shardio.profiling.observing import Received
from shardio.profiling.records import ThreadRecords

_STAGES = "read", "decode", "transform"


def write_trace(path: str, received: Sequence[Received], records: Sequence[ThreadRecords]) -> None:
    """Write a timeline: the loop's waits and steps, each thread's chunks and their samples.

    Raises:
        UsageError: the file cannot be written.
    """
    events = [*_loop(received)]
    for thread in records:
        events += _thread(thread)
    try:
        Path(path).write_text(json.dumps({"traceEvents": events}), "utf-8")
    except OSError as error:
        raise SituationError(f"{path} cannot be written: {error.strerror}") from error


def _loop(received: Sequence[Received]) -> Iterator[dict[str, Any]]:
    process = os.getpid()
    yield _name("process_name", process, 0, "training loop")
    yield _name("thread_name", process, process, "the loop")
    for row in received:
        yield _event("wait", process, process, row.asked, row.came - row.asked)
    for row, following in pairwise(received):
        yield _event("step", process, process, row.came, following.asked - row.came)


def _thread(thread: ThreadRecords) -> Iterator[dict[str, Any]]:
    process, number = thread.process, thread.thread
    if process != os.getpid():
        yield _name("process_name", process, 0, "worker")
    yield _name("thread_name", process, number, "makes batches")
    for chunk in thread.chunks:
        samples = {"samples": int(chunk["samples"]), "bytes": int(chunk["bytes"])}
        yield _event("chunk", process, number, chunk["start"], chunk["wall"][0], samples)
    for sample in thread.samples:
        start = int(sample["start"])
        for stage, wall in zip(_STAGES, sample["wall"].tolist(), strict=False):
            if wall:
                yield _event(stage, process, number, start, wall)
            start += wall


def _event(
    name: str, process: int, thread: int, start: int, wall: int, arguments: Any = None
) -> dict[str, Any]:
    event = {
        "name": name,
        "ph": "X",
        "pid": process,
        "tid": thread,
        "ts": int(start) / 1e3,
        "dur": int(wall) / 1e3,
    }
    return event | {"args": arguments} if arguments else event


def _name(kind: str, process: int, thread: int, name: str) -> dict[str, Any]:
    return {"name": kind, "ph": "M", "pid": process, "tid": thread, "args": {"name": name}}
