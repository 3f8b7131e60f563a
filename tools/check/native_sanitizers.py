"""Run the tests of the native core with AddressSanitizer and UndefinedBehaviorSanitizer, on Linux.

    python tools/check/native_sanitizers.py                      # tests/native and tests/fields
    python tools/check/native_sanitizers.py tests/reading -n 2   # whatever pytest takes

The library is built with both into `build/core.so` and loaded in place of the one in use. Leaks are
not looked for, as Python itself has many; tools/check/native_fuzz.py looks for those of the core.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

TREE = Path(__file__).resolve().parents[2]
LIBRARY = TREE / "build" / "core.so"
TESTS = ("-q", "tests/native", "tests/fields")
NOT_HERE = (
    "tests/native/test_install.py",
    "tests/native/test_trial.py",
    "tests/native/test_fuzz.py",
)
"""What builds libraries of its own."""


def runtime(name: str) -> str:
    """Return the path of a library of the compiler."""
    command = ["cc", f"-print-file-name={name}"]
    found = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()  # noqa: S603
    if not Path(found).is_absolute():
        sys.exit(f"native_sanitizers: the compiler has no {name}")
    return found


def main() -> None:
    """Build the library and run the tests."""
    build = [sys.executable, str(TREE / "shardio" / "native" / "build.py")]
    build += ["--require", "--sanitize", "--out", str(LIBRARY)]
    subprocess.run(build, check=True)  # noqa: S603
    variables = {
        "SHARDIO_NATIVE": str(LIBRARY),
        "LD_PRELOAD": f"{runtime('libasan.so')} {runtime('libstdc++.so')}",
        "ASAN_OPTIONS": "detect_leaks=0:allocator_may_return_null=1",
    }
    given = sys.argv[1:] or TESTS
    tests = ["-m", "pytest", *given, *(f"--ignore={path}" for path in NOT_HERE)]
    done = subprocess.run(  # noqa: S603
        [sys.executable, *tests], check=False, cwd=TREE, env={**os.environ, **variables}
    )
    sys.exit(done.returncode)


if __name__ == "__main__":
    main()
