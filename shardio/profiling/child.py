"""A measuring process: asked with JSON, it answers in a file, and nothing of it outlives this.

Its standard output is the user's, whose transform or step may print. It leads a session of its own,
so that it can be ended with all the workers that it forked.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from shardio.errors import ShardioError
from shardio.storage.temporary import temporary_folder

_ROOT = str(Path(__file__).parents[2])
_SAFE = ["-P"] if sys.version_info >= (3, 11) else []
"""The current folder's queue.py is not the standard library's."""
_LONGEST = 107 - len("/pymp-12345678/listener-12345678")
"""Bytes of a folder's path in which multiprocessing has room for its sockets."""
_CODE = """
import sys
if sys.argv[1] not in sys.path:
    sys.path.insert(0, sys.argv[1])
from shardio.profiling.run import main
main(*sys.argv[2:])
"""


def ask(request: dict[str, Any]) -> dict[str, Any]:
    """What a new process answers; see run.answer.

    Raises:
        ShardioError: what it raised, or it ended without an answer.
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
        raise ShardioError(found["error"])
    return found


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
