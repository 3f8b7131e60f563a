"""A core whose pixels are not those that Python decodes is not used."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import shardio
from shardio.native import is_active, status

SOURCES = Path(shardio.__file__).parent / "native"

pytestmark = pytest.mark.skipif(not is_active(), reason=f"the native core is {status()}")

FAULTS = {
    "another transform": ("jpeg.c", "JDCT_ISLOW", "JDCT_IFAST", "a JPEG 4:2:0 to other pixels"),
    "another upsampling": ("jpeg.c", "upsampling = TRUE", "upsampling = FALSE", "a JPEG 4:2:0 to"),
    "blind to shrinking": ("resample.c", "axis->offset / shrink,", "1,", "4:2:0 at 1/2 of its"),
    "a pixel too bright": ("png.c", "left[channel] = row", "left[channel] += row", "a PNG to"),
    "no progressive files": ("jpeg.c", "|| marker == 0xC2", "", "not decode a progressive JPEG"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_core_that_decodes_wrongly_is_not_used(fault: str, tmp_path: Path) -> None:
    sources = tmp_path / "native"
    shutil.copytree(SOURCES, sources, ignore=shutil.ignore_patterns("_core*", "__pycache__"))
    name, code, changed, said = FAULTS[fault]
    text = (sources / name).read_text()
    assert text.count(code) == 1
    (sources / name).write_text(text.replace(code, changed))
    command = [sys.executable, str(sources / "build.py"), "--require"]
    subprocess.run(command, check=True, env={**os.environ, "CFLAGS": "-O0"})
    library = sources / "_core.so"
    done = subprocess.run(
        [sys.executable, "-m", "shardio", "--version"],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "SHARDIO_NATIVE": str(library)},
    )
    second = done.stdout.splitlines()[1]
    assert second.startswith(f"native core: off, {library}, built with libjpeg-turbo ")
    assert said in second
