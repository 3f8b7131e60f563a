"""The site is whole: it builds without a warning, and its reference leaves nothing out."""

from __future__ import annotations

import inspect
import os
import re
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import click
import cv2
import numpy as np
import pytest

import shardio
from shardio import errors
from shardio.cli import commands

ROOT = Path(__file__).parents[2]
SITE = ROOT / "docs" / "pages"


def test_the_readme_is_one_screen() -> None:
    assert len((ROOT / "README.md").read_text("utf-8").splitlines()) <= 150


def test_the_reference_has_every_public_name() -> None:
    page = (SITE / "reference" / "python.md").read_text("utf-8")
    listed = re.findall(r"^::: shardio\.(\w+)", page, re.MULTILINE)
    assert {*listed, *errors_of_the_page(), "ops", "ShardioError"} == {*shardio.__all__}


def errors_of_the_page() -> dict[str, list[str]]:
    """The rows of the page on errors: class, other classes, cause and remedy."""
    page = (SITE / "reference" / "errors.md").read_text("utf-8")
    rows = [
        [cell.strip() for cell in row.split("|")]
        for row in re.findall(r"^\| (`\w+` \|.*) \|$", page, re.MULTILINE)
    ]
    return {row[0].strip("`"): row[1:] for row in rows}


def test_every_error_has_its_bases_a_cause_and_a_remedy() -> None:
    page = errors_of_the_page()
    for error in vars(errors).values():
        if isinstance(error, type) and issubclass(error, shardio.ShardioError):
            if error is shardio.ShardioError:
                continue
            also, cause, remedy = page.pop(error.__name__)
            bases = {base.__name__ for base in error.__bases__} - {"ShardioError"}
            assert {*re.findall(r"`(\w+)`", also)} == bases, error
            assert cause, error
            assert remedy, error
    assert not page


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


def test_pictures_and_measured_numbers_are_those_of_the_program() -> None:
    program = runpy.run_path(str(ROOT / "tools" / "make_pictures.py"))
    kept = {path.name: path.read_text("utf-8") for path in (SITE / "pictures").glob("*.svg")}
    assert kept == program["pictures"]()
    assert program["mixing"]() in (SITE / "explanation" / "shuffle.md").read_text("utf-8")


def test_the_contact_sheet_is_that_of_the_program(tmp_path: Path) -> None:
    pytest.importorskip("sklearn", reason="scikit-learn is not installed")
    program = runpy.run_path(str(ROOT / "tools" / "make_pictures.py"))
    program["sheet"](tmp_path / "sheet.png")
    drawn, kept = (
        np.asarray(cv2.imread(str(folder / "sheet.png")), np.int64)
        for folder in (tmp_path, SITE / "pictures")
    )
    assert np.abs(drawn - kept).mean() < 1  # letters differ between versions of OpenCV


def test_a_chart_has_a_bar_for_each_row_of_its_table(built: Path) -> None:
    for name in ("benchmarks", "benchmarks-tasks", "benchmarks-pipelines"):
        page = (built / f"{name}.html").read_text("utf-8")
        tables = re.findall(
            r"<!-- chart.*\n\|.*\n\|.*\n((?:\|.*\n)+)", (SITE / f"{name}.md").read_text("utf-8")
        )
        charts = re.findall(r'<div class="chart">.*?</div>', page, re.DOTALL)
        assert len(charts) == len(tables) > 0
        for chart, table in zip(charts, tables, strict=True):
            rows = [row.strip("| ").split(" | ")[:2] for row in table.splitlines()]
            rates = {label: float(text.split()[0].replace(",", "")) for label, text in rows}
            bars = re.findall(r'>([^<]+)</text><rect [^>]*?width="([\d.]+)"', chart)
            longest, most = max(float(length) for _, length in bars), max(rates.values())
            drawn = {label: float(length) / longest for label, length in bars}
            assert drawn == {
                label: pytest.approx(rate / most, abs=0.01) for label, rate in rates.items()
            }
            assert [*drawn.values()] == sorted(drawn.values(), reverse=True)


def test_the_page_of_arguments_has_a_row_for_each_argument_of_a_dataset() -> None:
    page = (SITE / "reference" / "arguments.md").read_text("utf-8")
    rows = [line.split(" | ")[:2] for line in page.splitlines() if line.startswith("| `")]
    found = {name: value for names, value in rows for name in re.findall("`(.*?)`", names)}
    arguments = dict(inspect.signature(shardio.ShardDataset).parameters)
    del arguments["source"]
    defaults = {name: f"`{each.default!r}`" for name, each in arguments.items()}
    assert found == {name: value.replace("'", '"') for name, value in defaults.items()}
