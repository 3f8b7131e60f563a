"""Python programs and command lines that start at once.

Programs run in forks of the fork server, which has torch, command lines in the process of the test.
What a test says of the start itself, such as what is imported, is for processes of their own.
"""

from __future__ import annotations

import atexit
import gc
import logging
import multiprocessing
import os
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from io import BytesIO, TextIOWrapper
from pathlib import Path
from types import ModuleType

import pytest

from shardio.cli import main

_FORKING = multiprocessing.get_context("forkserver")


def run(
    program: Path | str, *words: object, strict: bool = False, seconds: float = 170
) -> subprocess.CompletedProcess[str]:
    """Run a program as `python` would, and wait until it ends.

    Args:
        program: file, or code.
        words: arguments of the program.
        strict: whether warnings are errors.
        seconds: limit of time.
    """
    command = [str(program) if isinstance(program, Path) else "-c", *map(str, words)]
    code = program.read_text("utf-8") if isinstance(program, Path) else program
    with tempfile.TemporaryDirectory() as place:
        files = [Path(place, "out"), Path(place, "errors")]
        process = _FORKING.Process(
            target=_live, args=(code, command, [*map(str, files)], {**os.environ}, strict)
        )
        process.start()
        process.join(seconds)
        if process.exitcode is None:
            process.kill()
            process.join()
        assert process.exitcode is not None
        said = [file.read_text("utf-8") if file.exists() else "" for file in files]
        return subprocess.CompletedProcess(command, process.exitcode, *said)


def command(*words: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run a command line of shardio as `shardio` would, in this process."""
    streams = {name: TextIOWrapper(BytesIO(), "utf-8") for name in ("stdout", "stderr")}
    line = ["shardio", *map(str, words)]
    logged = logging.StreamHandler(streams["stderr"])  # as without pytest's handlers
    logged.setLevel(logging.WARNING)
    logging.getLogger("shardio").addHandler(logged)
    code: object = 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", line)
        for name, stream in streams.items():
            patch.setattr(sys, name, stream)
        if cwd:
            patch.chdir(cwd)
        try:
            main()
        except SystemExit as end:
            code = end.code or 0
        finally:
            logging.getLogger("shardio").removeHandler(logged)
    assert isinstance(code, int)
    said = []
    for stream in streams.values():
        stream.seek(0)
        said.append(stream.read())
    return subprocess.CompletedProcess(line, code, *said)


def _live(
    code: str,
    words: Sequence[str],
    files: Sequence[str],
    environment: Mapping[str, str],
    strict: bool,
) -> None:
    gc.freeze()  # a collection would copy all pages
    for descriptor, path in enumerate(files, 1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), descriptor)
    os.environ.clear()
    os.environ.update(environment)
    multiprocessing.set_start_method(None, force=True)  # the default, not that of this process
    sys.argv = [*words]
    main = sys.modules["__main__"] = ModuleType("__main__")  # it stays until the end, as its loops
    if words[0] != "-c":
        sys.path[0], main.__file__ = str(Path(words[0]).parent), words[0]
    if strict:
        warnings.simplefilter("error")
    try:
        exec(compile(code, words[0], "exec"), main.__dict__)  # noqa: S102
    finally:
        atexit._run_exitfuncs()
