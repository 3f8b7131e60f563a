"""How the native core is built, installed and found, and what users are told where it is not."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import shardio
from shardio.native import VERSION
from shardio.native.build import build

SOURCES = Path(shardio.__file__).parent / "native"
TREE = SOURCES.parent.parent


@pytest.fixture(scope="module", autouse=True)
def _without_optimisation() -> Iterator[None]:
    """Compile in a third of the time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CFLAGS", "-O0")
        yield


@pytest.fixture(scope="module")
def core(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Library of the sources as they are."""
    library = tmp_path_factory.mktemp("core") / "_core.so"
    if reason := build(library):
        pytest.skip(reason)
    return library


@pytest.fixture
def sources(core: Path, tmp_path: Path) -> Path:
    """Sources to change, of the version alone, and their library."""
    copy = tmp_path / "native"
    copy.mkdir()
    for name in ("build.py", "core.h", "version.c"):
        shutil.copy(SOURCES / name, copy)
    assert compile_in(copy, "--require").returncode == 0, core
    return copy


def run(*command: object, **variables: str) -> Any:
    known = {name: value for name, value in os.environ.items() if name != "SHARDIO_NATIVE"}
    return subprocess.run(
        [*map(str, command)], capture_output=True, text=True, check=False, env=known | variables
    )


def compile_in(sources: Path, *options: object, **variables: str) -> Any:
    """Run build.py as the installation does: it has Python, and nothing else."""
    return run(sys.executable, "-I", "-S", sources / "build.py", *options, **variables)


def without(sources: Path, header: str) -> dict[str, str]:
    """Environment of a machine where a header is no use."""
    (sources / header).write_text("#error missing\n")
    return {"CPATH": str(sources)}


def second_line(native: object) -> str:
    done = run(sys.executable, "-m", "shardio", "--version", SHARDIO_NATIVE=str(native))
    assert (done.returncode, done.stderr) == (0, "")
    first, second = done.stdout.splitlines()
    assert first.startswith("shardio, version ")
    return str(second)


def test_the_version_names_the_libraries_of_the_core(core: Path) -> None:
    assert re.match(r"native core: on, libjpeg-turbo [\d.]+$", second_line(core))


def test_it_is_built_again_only_if_sources_or_flags_changed(sources: Path) -> None:
    library = sources / "_core.so"
    inode = library.stat().st_ino
    os.utime(sources / "version.c")
    assert compile_in(sources).returncode == 0
    assert library.stat().st_ino == inode
    with (sources / "version.c").open("a") as stream:
        stream.write("/* changed */\n")
    assert compile_in(sources).returncode == 0
    changed = library.stat().st_ino
    assert changed != inode
    assert compile_in(sources, CFLAGS="-O1").returncode == 0
    assert library.stat().st_ino != changed


def test_the_sources_compile_without_warnings(core: Path, tmp_path: Path) -> None:
    done = compile_in(
        SOURCES, "--require", "--out", tmp_path / "x.so", CFLAGS="-O1 -Wall -Wextra -Werror"
    )
    assert done.stderr == "", core


@pytest.mark.parametrize(
    ("variables", "reason"),
    [
        ({"PATH": "/nowhere", "CC": ""}, "no C compiler was found when shardio was built; "),
        ({"CC": "nowhere"}, "the C compiler nowhere, which CC names, was not found"),
        ({"CC": "false"}, "the C compiler false does not work (exit code 1)"),
        ({"LACKS": "jpeglib.h"}, "no jpeglib.h was found when shardio was built; "),
        ({"SHARDIO_JPEG": "/nowhere"}, "SHARDIO_JPEG is /nowhere, which has no libjpeg.a in lib"),
        ({"LDFLAGS": "-lnothing"}, "cannot find -lnothing"),
    ],
)
def test_without_a_compiler_or_header_the_reason_is_kept(
    sources: Path, variables: dict[str, str], reason: str
) -> None:
    if "LACKS" in variables:
        variables |= without(sources, variables["LACKS"])
    done = compile_in(sources, **variables)
    assert done.returncode == 0
    assert reason in done.stderr
    assert compile_in(sources, "--require", **variables).returncode == 1
    shown = second_line(sources / "_core.so")  # an older library would fit these sources no more
    assert shown.startswith("native core: off, ")
    assert reason in shown
    assert compile_in(sources).stderr == ""
    assert {path.name for path in sources.glob("_core*")} == {"_core.so"}


def test_an_error_of_the_compiler_is_named(sources: Path) -> None:
    (sources / "version.c").write_text("int a = b;\n")
    done = compile_in(sources)
    assert "cc did not compile the core: version.c:1:9: error: " in done.stderr


@pytest.mark.parametrize(
    ("value", "shown"), [("0", "SHARDIO_NATIVE=0"), ("no", "SHARDIO_NATIVE=no")]
)
def test_a_variable_switches_it_off(value: str, shown: str) -> None:
    assert second_line(value) == f"native core: off, {shown}"


def test_a_library_that_does_not_fit_is_not_used(sources: Path) -> None:
    library = sources / "_core.so"
    text = (sources / "version.c").read_text()
    (sources / "version.c").write_text(text.replace(f"return {VERSION};", "return 99;"))
    assert compile_in(sources, "--require").returncode == 0
    assert "_core.so has version 99, and this shardio needs" in second_line(library)
    (sources / "version.c").write_text("int shardio_nothing;\n")
    assert compile_in(sources, "--require").returncode == 0
    assert "undefined symbol: shardio_core_version" in second_line(library)
    library.write_text("not a library")
    assert "native core: off, " in second_line(library)
    library.unlink()
    assert second_line(library) == (
        f"native core: off, {library} was not built; in a checkout, run make native"
    )


@pytest.mark.parametrize("compiler", ["", "false"])
def test_a_wheel_has_the_core_or_the_reason(core: Path, tmp_path: Path, compiler: str) -> None:
    pytest.importorskip("hatchling")
    for name in ("pyproject.toml", "README.md", "LICENSE", "tools/build_hook.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(TREE / name, tmp_path / name)
    shutil.copytree(SOURCES, tmp_path / "shardio/native", ignore=shutil.ignore_patterns("_core*"))
    shutil.copy(core, tmp_path / "shardio/native")  # of an editable installation: left as it is
    (tmp_path / ".gitignore").write_text("_core.*\n")
    code = "import os, sys, hatchling.build as b; os.chdir(sys.argv[1]); b.build_wheel('.')"
    done = run(sys.executable, "-c", code, tmp_path, CC=compiler)
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    files = {Path(name).name for name in zipfile.ZipFile(wheel).namelist()}
    assert ("py3-none-any" in wheel.name) == (compiler == "false")
    assert wheel.name.startswith("shardio-")
    assert "py3-none-" in wheel.name
    added = "_core.txt" if compiler else "_core.so"
    assert {name for name in files if name.startswith("_core")} == {added}
    assert not {"build.py", "core.h", "version.c"} & files
    assert ("native core: not built, the C compiler false" in done.stderr) == (compiler == "false")
    assert (tmp_path / "shardio/native/_core.so").exists()
