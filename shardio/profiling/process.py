"""A measuring process: a request goes in as JSON, an answer or an error comes out as JSON.

Memory and start-up of a loader are its own only in a process of its own. Its standard output is the
user's, whose transform or step may print, so the answer is a file. It leads a session of its own,
so that it can be ended with all the workers that it forked, and it ends when its parent does.

An error crosses as values: class, what happened, where, what to do. Whoever raises it again reads
no sentence and no traceback.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from shardio.errors import ShardioError
from shardio.storage.temporary import temporary_folder

_SECONDS_BETWEEN_LOOKS = 0.5  # for the parent
_VALUES = "what", "where", "remedy", "shard", "offset", "key", "field"

_ROOT = str(Path(__file__).parents[2])
_SAFE = ["-P"] if sys.version_info >= (3, 11) else []
"""The current folder's queue.py is not the standard library's."""
_LONGEST = 107 - len("/pymp-12345678/listener-12345678")
"""Bytes of a folder's path in which multiprocessing has room for its sockets."""
_CODE = """
import sys
if sys.argv[1] not in sys.path:
    sys.path.insert(0, sys.argv[1])
from shardio.profiling.process import main
main(*sys.argv[2:])
"""


def ask(request: dict[str, Any]) -> dict[str, Any]:
    """Have a new process measure something, and return its answer; see measure.answer.

    Raises:
        ShardioError: the process raised it, or ended without an answer.
    """
    with _end_in_order(), temporary_folder(_LONGEST) as place:
        answer = Path(place, "answer.json")
        words = _ROOT, json.dumps(request), str(answer), str(os.getpid())
        process = subprocess.Popen(  # noqa: S603  our own module
            [sys.executable, *_SAFE, "-c", _CODE, *words],
            stdout=subprocess.DEVNULL,
            start_new_session=True,
            env={**os.environ, "TMPDIR": place},
        )
        try:
            code = process.wait()
        except BaseException:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            raise
        if not answer.exists():
            raise ShardioError(f"the measuring process {_ending(code)} and gave no result")
        found: dict[str, Any] = json.loads(answer.read_text("utf-8"))
    if "error" in found:
        raise _error_of(found["error"])
    return found


def main(request: str, place: str, parent: str) -> None:
    """Measure what a request asks for, and write the answer.

    Args:
        request: JSON, see measure.answer.
        place: path of the file to write, in a folder that is the parent's to remove.
        parent: number of the parent process; this process and its workers end when it does.
    """
    folder = str(Path(place).parent)
    threading.Thread(target=_end_with_parent, args=(int(parent), folder), daemon=True).start()
    try:
        from shardio.profiling.measure import answer  # noqa: PLC0415  needs torch

        found = answer(json.loads(request))
    except Exception as error:  # of a user's code, too
        found = {"error": _values_of(as_ours(error))}
    written = Path(f"{place}.part")
    written.write_text(json.dumps(found), "utf-8")
    written.rename(place)


def as_ours(error: Exception) -> ShardioError:
    """Return an error of shardio as it is, and any other as one that names its class."""
    if isinstance(error, ShardioError):
        return error
    text = " ".join(str(error).split())
    return ShardioError(
        f"the measuring process met {type(error).__name__}" + f": {text}" * bool(text)
    )


def _values_of(error: ShardioError) -> dict[str, Any]:
    classes = [kind.__name__ for kind in type(error).__mro__]
    return {"classes": classes, **{name: getattr(error, name) for name in _VALUES}}


def _error_of(values: dict[str, Any]) -> ShardioError:
    known = {kind.__name__: kind for kind in _tree(ShardioError)}
    kind = next(known[name] for name in values.pop("classes") if name in known)
    return kind(**values)


def _tree(kind: type[ShardioError]) -> list[type[ShardioError]]:
    return [kind, *(one for part in kind.__subclasses__() for one in _tree(part))]


def _end_with_parent(parent: int, folder: str) -> None:
    while os.getppid() == parent:
        time.sleep(_SECONDS_BETWEEN_LOOKS)
    shutil.rmtree(folder, ignore_errors=True)
    os.killpg(os.getpid(), signal.SIGKILL)


@contextmanager
def _end_in_order() -> Iterator[None]:
    """Have SIGTERM unwind what is inside, unless the program handles it in its own way."""
    if (
        threading.current_thread() is not threading.main_thread()
        or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
    ):
        yield
        return

    def leave(number: int, _: object) -> None:
        signal.signal(number, signal.SIG_IGN)  # a second one would interrupt the unwinding
        sys.exit(128 + number)

    signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _ending(code: int) -> str:
    if code >= 0:
        return f"ended with code {code}"
    want = ", perhaps for want of memory," if code == -signal.SIGKILL else ""
    return f"was ended by {signal.Signals(-code).name}{want}"
