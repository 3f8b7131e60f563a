"""Tell torch's own errors after the kill of a DataLoader worker from others."""

from __future__ import annotations

import re
import traceback
from pathlib import Path

import shardio

_SHARDIO = Path(shardio.__file__).parent
_KILLED = re.compile(r"DataLoader worker \(pid")
_IGNORED = re.compile(
    r"^Exception ignored in: .*\nTraceback .*\n(?:(?: .*)?\n)*"
    r"RuntimeError: DataLoader worker \(pid.*\n",
    re.MULTILINE,
)
_OF_SHARER = re.compile(
    r"^Traceback .*\n  File \".*/multiprocessing/resource_sharer\.py\", line \d+, in _serve\n"
    r"(?: .*\n)*\S.*\n",
    re.MULTILINE,
)


def is_of_signal_handler(error: str, message: str) -> bool:
    """Return whether an error is that of torch's signal handler, which may interrupt any code."""
    return error == "RuntimeError" and _KILLED.match(message) is not None


def is_of_torch(error: BaseException) -> bool:
    """Return whether torch, and not code of shardio, raised an error for a killed worker.

    One comes from torch's signal handler. Others come from the connection over which this process
    requests the memory of a tensor. An error that another worker passed on is not one of them.
    """
    if is_of_signal_handler(type(error).__name__, str(error)):
        return True
    frames = traceback.extract_tb(error.__traceback__)
    ours = any(Path(frame.filename).is_relative_to(_SHARDIO) for frame in frames)
    passed_on = "in DataLoader worker process" in str(error)
    return isinstance(error, (EOFError, ConnectionError)) and not ours and not passed_on


def waits_for_torch(stack: str) -> bool:
    """Tell whether a worker waits for torch to give it work, as py-spy says where it stands.

    A worker that is forked just before its trainer is killed takes the process that inherits it
    for its trainer, and torch has it wait for ever.
    """
    return "_worker_loop (torch/" in stack and "(shardio/" not in stack


def without_pythons(output: str) -> str:
    """What was printed, but for what Python itself prints of processes that were killed.

    It does so where the handler raises in a destructor, and in a worker whose trainer dies while it
    asks the worker for memory.
    """
    return _OF_SHARER.sub("", _IGNORED.sub("", output))
