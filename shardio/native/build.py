"""Compile the native core. This runs before anything is installed, so Python alone is enough.

A hash of all sources and flags is compiled into the library, which is not built again while they
are the same. The environment may set CC, CFLAGS, LDFLAGS and, on macOS, ARCHFLAGS; SHARDIO_JPEG is
a folder with a libjpeg-turbo whose libjpeg.a becomes part of the library.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

_SOURCES = Path(__file__).resolve().parent
LIBRARY = _SOURCES / "_core.so"

# Without contraction, compilers that fuse a product and a sum round as all others do.
_COMPILE = ["-O3", "-std=c11", "-D_GNU_SOURCE", "-Werror=implicit", "-fPIC"]
_COMPILE += ["-fvisibility=hidden", "-ffp-contract=off"]
# What another library of the process exports under the same name is never taken instead.
_LINK = ["-shared", "-Wl,--exclude-libs,ALL", "-Wl,-Bsymbolic"]
_COMPLETE = ["-Wl,-z,defs"]  # but for sanitizers, which are found when the library is loaded
_MISSING = "apt install gcc libjpeg-dev"
if sys.platform == "darwin":
    _LINK, _COMPLETE = ["-shared", "-Wl,-exported_symbol,_shardio_*"], []
    _MISSING = 'brew install jpeg-turbo, export SHARDIO_JPEG="$(brew --prefix jpeg-turbo)"'
_SANITIZE = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
_SANITIZE += ["-fno-omit-frame-pointer", "-g"]


class _NotBuiltError(Exception):
    """Why there is no library, in a sentence."""


def build(library: Path = LIBRARY, *, sanitize: bool = False) -> str:
    """Compile the core, unless the library is there and has the same sources and flags.

    Where that is not possible, the reason is written beside where the library would be, and an
    older library is removed.

    Args:
        library: file to write
        sanitize: whether the library stops at errors that AddressSanitizer and
            UndefinedBehaviorSanitizer find

    Returns:
        Reason why the core cannot be built, in a sentence; empty if it is there.
    """
    reason = ""
    try:
        with tempfile.TemporaryDirectory() as folder:
            _build(library, Path(folder), sanitize=sanitize)
    except _NotBuiltError as error:
        reason = str(error)
    except OSError as error:
        reason = f"{error.filename or library}: {error.strerror}"
    with suppress(OSError):
        if reason:
            library.unlink(missing_ok=True)
            library.with_suffix(".txt").write_text(f"{reason}\n", encoding="utf-8")
        else:
            library.with_suffix(".txt").unlink(missing_ok=True)
    return reason


def _build(library: Path, folder: Path, *, sanitize: bool) -> None:
    compiler = [*_compiler(), *_COMPILE, *_words("ARCHFLAGS"), *_words("CFLAGS")]
    libraries = ["-ljpeg", "-lm", *_words("LDFLAGS")]
    archives: list[Path] = []
    if jpeg := os.environ.get("SHARDIO_JPEG"):
        archives = sorted(Path(jpeg).glob("lib*/**/libjpeg.a"))[:1]
        if not archives:
            raise _NotBuiltError(f"SHARDIO_JPEG is {jpeg}, which has no libjpeg.a in lib")
        compiler += [f"-I{jpeg}/include"]
        libraries[0] = str(archives[0])
    flags = _SANITIZE if sanitize else _COMPLETE

    machine = [platform.system(), platform.machine()]
    known = hashlib.sha256(repr([machine, compiler, flags, libraries]).encode())
    sources = sorted(_SOURCES.glob("*.c"))
    for path in [*sources, *sorted(_SOURCES.glob("*.h")), *archives]:
        known.update(path.read_bytes())
    with suppress(FileNotFoundError):
        if known.hexdigest().encode() in library.read_bytes():
            return
    built = folder / library.name
    names = [f'-DSHARDIO_BUILD="{known.hexdigest()}"', *map(str, sources), *libraries]
    if errors := _errors([*compiler, *_LINK, *flags, *names, "-o", str(built)]):
        raise _NotBuiltError(_explain(compiler, folder / "probe.c", errors))
    library.parent.mkdir(parents=True, exist_ok=True)
    partial = library.with_name(f"{library.name}.{os.getpid()}")
    shutil.copyfile(built, partial)
    partial.replace(library)


def _compiler() -> list[str]:
    if named := _words("CC"):
        if shutil.which(named[0]) is None:
            raise _NotBuiltError(f"the C compiler {named[0]}, which CC names, was not found")
        return named
    for name in ("cc", "gcc", "clang"):
        if shutil.which(name):
            return [name]
    raise _NotBuiltError(_not_found("C compiler"))


def _words(variable: str) -> list[str]:
    return shlex.split(os.environ.get(variable, ""))


def _errors(command: list[str]) -> str:
    """Run a compiler; what it said if it failed."""
    done = subprocess.run(  # noqa: S603  the compiler of whoever installs
        command, capture_output=True, text=True, errors="replace", check=False,
        env={**os.environ, "LC_ALL": "C"},
    )  # fmt: skip
    return done.stderr.strip() or f"exit code {done.returncode}" if done.returncode else ""


def _explain(compiler: list[str], probe: Path, errors: str) -> str:
    """Say what the compiler lacks, or else what it said first."""
    for header in ("stdio.h", "jpeglib.h"):
        probe.write_text(f"#include <stdio.h>\n#include <{header}>\n")
        if said := _errors([*compiler, "-c", str(probe), "-o", str(probe.with_suffix(".o"))]):
            if header == "stdio.h":
                return f"the C compiler {compiler[0]} does not work ({said.splitlines()[0]})"
            return _not_found(header)
    lines = errors.splitlines()
    first = next((one for one in lines if re.search("error|cannot find|undefined", one)), lines[0])
    return f"{compiler[0]} did not compile the core: {first.replace(f'{_SOURCES}{os.sep}', '')}"


def _not_found(what: str) -> str:
    return f"no {what} was found when shardio was built; {_MISSING}, then install shardio again"


def main() -> None:
    """Build as the arguments say; exit code 1 only if the core is required and cannot be built."""
    parser = argparse.ArgumentParser(description="Build the native core of shardio.")
    parser.add_argument("--require", action="store_true", help="fail if it cannot be built")
    parser.add_argument("--sanitize", action="store_true", help="with sanitizers; needs --out")
    parser.add_argument("--out", type=Path, help="library to write, instead of the one in use")
    options = parser.parse_args()
    if options.sanitize and not options.out:
        parser.error("--sanitize needs --out, since Python alone does not load such a library")
    if reason := build((options.out or LIBRARY).resolve(), sanitize=options.sanitize):
        sys.stderr.write(f"native core: not built, {reason}\n")
        sys.exit(int(options.require))


if __name__ == "__main__":
    main()
