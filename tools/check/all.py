"""Run campaigns one after another, each in a fork of a process that has imported torch.

Usage: python tools/check/all.py [CAMPAIGN ...] [--seconds SECONDS] [--seed SEED] ...

Without names, all campaigns run. Options are those of a campaign. If a campaign finds something
wrong, the others still run. The exit code is then 1, and the last line names the campaign.
"""

from __future__ import annotations

import importlib
import os
import runpy
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

FOLDER = Path(__file__).parent
PRELOADED = ("torch.utils.data", "cv2", "PIL.Image")
"""What takes seconds to import. Not shardio: fuzz.py watches how it is imported."""


def names() -> list[str]:
    """Return the names of all campaigns."""
    paths = sorted(FOLDER.glob("*.py"))
    return [path.stem for path in paths if "\n    campaign.main(" in path.read_text("utf-8")]


def fork(name: str, options: Sequence[str]) -> int:
    """Run a campaign in a fork and return its exit code."""
    print(f"\n== {name}", flush=True)
    child = os.fork()
    if child == 0:
        _run(name, options)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code < 0:
        print(f"{name}: killed by {signal.Signals(-code).name}")
    return code


def _run(name: str, options: Sequence[str]) -> NoReturn:
    path = str(FOLDER / f"{name}.py")
    sys.argv = [path, *options]
    code = 1
    try:
        runpy.run_path(path, run_name="__main__")
    except SystemExit as ending:
        code = ending.code if isinstance(ending.code, int) else 1
        if isinstance(ending.code, str):
            print(ending.code, file=sys.stderr)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def main(words: Sequence[str]) -> int:
    """Run the campaigns that are named, with the options that follow."""
    first = next((place for place, word in enumerate(words) if word.startswith("-")), len(words))
    for module in PRELOADED:
        importlib.import_module(module)
    wrong = [name for name in words[:first] or names() if fork(name, words[first:])]
    if wrong:
        print(f"\nwrong: {' '.join(wrong)}")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
