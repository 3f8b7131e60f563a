"""Seconds of fuzzing, or none: the inputs that once reached new code, where clang is missing."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from native_fuzz import CORPUS, SOURCES, TARGETS, build

SECONDS = 2  # of each target; native_fuzz.py takes as many as it is given


@pytest.mark.timeout(400)
def test_no_input_makes_the_core_read_or_write_beside_its_memory(tmp_path: Path) -> None:
    fuzzer = build(tmp_path / "built")
    if isinstance(fuzzer, str):
        pytest.skip(f"the fuzzer cannot be built: {fuzzer:.300}")
    for target in TARGETS:
        seconds = SECONDS if fuzzer.guided else 1
        runs, said = fuzzer.run(target, seconds, tmp_path / target)
        assert said == ""
        assert runs >= len([*(CORPUS / target).iterdir()]) > 5


@pytest.mark.timeout(400)
@pytest.mark.parametrize("compiler", ["clang", "cc"])
def test_the_fuzzer_notices_a_core_that_reads_beside_its_memory(
    compiler: str, tmp_path: Path
) -> None:
    sources = tmp_path / "native"
    shutil.copytree(SOURCES, sources, ignore=shutil.ignore_patterns("_core*", "__pycache__"))
    text, check = (sources / "exif.c").read_text(), "directory > size - 2"
    assert check in text
    (sources / "exif.c").write_text(text.replace(check, "0"))
    fuzzer = build(tmp_path / "built", sources=sources, compilers=(compiler,))
    if isinstance(fuzzer, str):
        pytest.skip(f"the fuzzer cannot be built: {fuzzer:.300}")
    _, said = fuzzer.run("exif", 60, tmp_path / "found")
    assert "ERROR: AddressSanitizer: " in said
