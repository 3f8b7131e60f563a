"""Fuzz the native core: does any input make it read or write beside its memory, crash or hang?

    python tools/check/native_fuzz.py                       # ten minutes for each entry point
    python tools/check/native_fuzz.py jpeg png --seconds 60
    python tools/check/native_fuzz.py --seconds 60 --grow   # and keep what reaches new code

The targets are the functions of native_fuzz.c: orientation, JPEG, PNG, resizing, the call that
fills samples from a file, the one that checks the JPEGs of a pack, and inflating, which must take
and refuse the same streams as zlib. All is built with
AddressSanitizer and UndefinedBehaviorSanitizer. With clang, libFuzzer changes the inputs, guided by
coverage; with another compiler, they are changed at random. Both begin with the inputs in
tests/native/corpus. An input that fails is kept in build/fuzz, and the exit code is 1;
`build/fuzz/native_fuzz FILE` repeats it, with FUZZ_TARGET set.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

TREE = Path(__file__).resolve().parents[2]
SOURCES = TREE / "shardio" / "native"
CORPUS = TREE / "tests" / "native" / "corpus"
BUILT = TREE / "build" / "fuzz"
TARGETS = ("exif", "jpeg", "png", "resize", "fill", "pack", "inflate")
MOST_KEPT = 36 << 10  # bytes of the inputs of a target in the repository
LONGEST = 4096  # bytes of an input
_SANITIZE = ["-fno-sanitize-recover=all", "-fno-omit-frame-pointer", "-g", "-O1"]


@dataclass(frozen=True)
class Fuzzer:
    """A program that attacks a target.

    Attributes:
        program: path of the program.
        guided: whether it is libFuzzer.
    """

    program: Path
    guided: bool

    def run(self, target: str, seconds: int, found: Path) -> tuple[int, str]:
        """Attack a target.

        Args:
            target: name of the target.
            seconds: time.
            found: folder for inputs that fail and, in its folder "new", those that reach new code.

        Returns:
            Number of inputs, and what the program said if it failed.
        """
        new = found / "new"
        new.mkdir(parents=True, exist_ok=True)
        seeds = CORPUS / target
        command = [str(self.program), str(seconds), *map(str, sorted(seeds.iterdir()))]
        if self.guided:
            options = [f"-max_total_time={seconds}", f"-max_len={LONGEST}", "-timeout=20"]
            options += ["-rss_limit_mb=2048", f"-artifact_prefix={found}/", "-print_final_stats=1"]
            command = [str(self.program), *options, str(new), str(seeds)]
        done = _run(*command, FUZZ_TARGET=target)
        said = done.stdout + done.stderr
        runs = re.search(r"(?:Done |number_of_executed_units: )(\d+)", said)
        return int(runs[1]) if runs else 0, said if done.returncode else ""


def _run(*command: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(  # noqa: S603  a compiler, or what it made
        command, capture_output=True, text=True, errors="replace", check=False,
        env={**os.environ, **variables},
    )  # fmt: skip


def build(
    folder: Path = BUILT, *, sources: Path = SOURCES, compilers: Sequence[str] = ("clang", "cc")
) -> Fuzzer | str:
    """Build the program, by clang if it is there.

    Args:
        folder: folder of the program.
        sources: folder of the core's sources.
        compilers: compilers to try.

    Returns:
        The program, or the reason why there is none, in a sentence.
    """
    folder.mkdir(parents=True, exist_ok=True)
    program, said = folder / "native_fuzz", "no C compiler was found"
    files = [*map(str, sorted(sources.glob("*.c"))), str(Path(__file__).with_suffix(".c"))]
    common = ["-std=c11", "-D_GNU_SOURCE", "-ffp-contract=off", '-DSHARDIO_BUILD=""']
    common += [f"-I{sources}", *_SANITIZE, *files, "-ljpeg", "-lz", "-lm", "-o", str(program)]
    for compiler in filter(shutil.which, compilers):
        kind = "fuzzer," if compiler == "clang" else ""
        options = [f"-fsanitize={kind}address,undefined", *([] if kind else ["-DWITH_DRIVER"])]
        done = _run(compiler, *options, *common)
        if done.returncode == 0:
            return Fuzzer(program, guided=bool(kind))
        said = f"{compiler}: {done.stderr.strip()}"
    return said


def grow(fuzzer: Fuzzer, target: str, new: Path) -> None:
    """Keep the inputs that reach code which the others do not, the smallest ones first."""
    with tempfile.TemporaryDirectory() as merged:
        seeds = str(CORPUS / target)
        done = _run(str(fuzzer.program), "-merge=1", merged, seeds, str(new), FUZZ_TARGET=target)
        done.check_returncode()
        kept = {path.name: path.read_bytes() for path in (CORPUS / target).iterdir()}
        room = MOST_KEPT - sum(map(len, kept.values()))
        for path in sorted(Path(merged).iterdir(), key=lambda path: path.stat().st_size):
            data = path.read_bytes()
            if data not in kept.values() and (room := room - len(data)) > 0:
                name = hashlib.sha256(data).hexdigest()[:12]
                (CORPUS / target / name).write_bytes(data)


def main() -> None:
    """Attack the targets that are named."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=", ".join(TARGETS))
    parser.add_argument("--seconds", type=int, default=600, help="for each target")
    parser.add_argument("--grow", action="store_true", help="keep inputs that reach new code")
    options = parser.parse_args()
    if unknown := {*options.targets} - {*TARGETS}:
        parser.error(f"{', '.join(sorted(unknown))}: the targets are {', '.join(TARGETS)}")
    fuzzer = build()
    if isinstance(fuzzer, str):
        sys.exit(f"native_fuzz: not built, {fuzzer}")
    failed = 0
    for target in options.targets or TARGETS:
        runs, said = fuzzer.run(target, options.seconds, BUILT / target)
        print(f"{target}: {runs:,} inputs{', one of which failed' if said else ''}", flush=True)
        if said:
            failed += 1
            print(said[-4000:])
        elif options.grow and fuzzer.guided:
            grow(fuzzer, target, BUILT / target / "new")
    sys.exit(min(failed, 1))


if __name__ == "__main__":
    main()
