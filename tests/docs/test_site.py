"""The site is whole: it builds without a warning, and its reference leaves nothing out."""

from __future__ import annotations

import os
import re
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import click
import pytest

import shardio
from shardio.cli import commands

ROOT = Path(__file__).parents[2]
SITE = ROOT / "docs" / "pages"


def test_the_readme_is_one_screen() -> None:
    assert len((ROOT / "README.md").read_text("utf-8").splitlines()) <= 150


def test_the_reference_has_every_public_name() -> None:
    page = (SITE / "reference" / "python.md").read_text("utf-8")
    listed = re.findall(r"^::: shardio\.(\w+)", page, re.MULTILINE)
    errors = re.findall(
        r"^\| `(\w+)`", (SITE / "reference" / "errors.md").read_text("utf-8"), re.MULTILINE
    )
    assert {*listed, *errors, "ops", "ShardioError"} == {*shardio.__all__}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, once: Callable[..., Path]) -> Path:
    pytest.importorskip("mkdocs", reason="mkdocs-material is not installed; `make docs` has it")
    return once("site", build, tmp_path_factory.mktemp("site"))


def build(place: Path) -> Path:
    tools = Path(sys.executable).parent
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(place)]
    done = subprocess.run(
        [*command, "-f", str(ROOT / "docs" / "mkdocs.yml")],
        cwd=ROOT,
        env={**os.environ, "PATH": f"{tools}:{os.environ['PATH']}", "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return place


def test_the_site_builds_without_a_warning_and_has_every_command(built: Path) -> None:
    page = (built / "reference" / "commands.html").read_text("utf-8")
    names = commands.list_commands(click.Context(commands))
    assert [name for name in names if f'id="shardio-{name}' not in page] == []


def test_pages_ask_nothing_of_the_network(built: Path) -> None:
    asked = re.compile(
        r"""<(?:script|link|img|iframe)\b[^>]*\b(?:src|href)=["']?(?:https?:)?//[^>]*"""
    )
    for path in built.rglob("*.html"):
        found = [one for one in asked.findall(path.read_text("utf-8")) if "canonical" not in one]
        assert not found, path


def test_the_pictures_are_those_that_the_program_draws() -> None:
    drawn = runpy.run_path(str(ROOT / "tools" / "make_pictures.py"))["pictures"]()
    kept = {path.name: path.read_text("utf-8") for path in (SITE / "pictures").iterdir()}
    assert kept == drawn
