"""Names from archives, as they are printed: escaped, on one line, and cut."""

from __future__ import annotations

import sys
import tarfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest

import shardio
from shardio.cli import main
from shardio.errors import ShardioError, quoted, shown
from shardio.indexing.catalog import open_catalog

ESCAPE, NEW_LINE, REVERSED, UNDECODABLE = "\x1b[31m", "\n", "\u202e", "\udcff"
KEYS = {
    "terminal": f"a{ESCAPE}{NEW_LINE}{REVERSED}{UNDECODABLE}b",
    "long": "k" * 10_000,
    "long with blanks": "key " * 2500,
}
FIELDS = {"terminal": f"x{ESCAPE}{NEW_LINE}{REVERSED}y", "long": "f" * 60_000}

Run = Callable[..., str]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    """Runs a command, checks what it prints, and gives it back."""

    def run(*arguments: str | Path) -> str:
        monkeypatch.setattr(sys, "argv", ["shardio", *map(str, arguments)])
        said = ""
        try:
            main()
        except SystemExit as error:
            said = str(error.code)
        printed = "".join(capfd.readouterr()) + said
        check(printed)
        return printed

    return run


def check(printed: str) -> None:
    lines = printed.split("\n")
    assert all(line.isprintable() for line in lines)
    assert max(map(len, lines)) < 2000
    assert len(printed) < 20_000


def make(path: Path, key: str, field: str, data: bytes = b"broken") -> Path:
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:
        for name in (f"{key}.{field}", f"{key}.jpg", f"{key}.cls"):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, BytesIO(data))
    return path


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("field", FIELDS)
def test_commands_print_names_escaped_and_cut(
    key: str, field: str, tmp_path: Path, run: Run
) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    make(folder / "a.tar", KEYS[key], FIELDS[field])
    begins = {"terminal": "a\\x1b[31m\\n\\u202e\\udcffb", "long": "kkkk"}.get(key, "key key")
    assert begins in run("info", folder)
    assert begins in run("verify", folder, "--deep", "--jobs", "1")
    assert "indexed 1 sample " in run("index", folder)
    run("info", folder)
    run("plan", folder, "--batch-size", "1")
    run("replay", folder, "--batch-size", "1", "--step", "0", "--to", tmp_path / "replayed")
    run("convert", folder, tmp_path / "indexes", "--to", "dali")
    run("reshard", folder, tmp_path / "new", "--shards", "1")
    run("verify", folder, "--deep", "--fix", tmp_path / "fixed", "--jobs", "1")


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("field", FIELDS)
def test_errors_of_datasets_show_names_escaped_and_cut(
    key: str, field: str, tmp_path: Path
) -> None:
    name = f"{FIELDS[field]}.png"
    shard = make(tmp_path / "a.tar", KEYS[key], name)
    for fields in ({"image": name}, {"image": f"{name};jpg"}, {"image": "none"}):
        with pytest.raises(ShardioError) as raised:
            list(shardio.ShardDataset(shard, fields=fields, batch_size=1))
        check(str(raised.value))


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("field", FIELDS)
def test_errors_of_scans_show_names_escaped_and_cut(key: str, field: str, tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:
        info = tarfile.TarInfo(f"{KEYS[key]}.{FIELDS[field]}")
        info.type = tarfile.SYMTYPE
        archive.addfile(info)
    with pytest.raises(ShardioError) as raised:
        open_catalog(path)
    check(str(raised.value))


def test_a_name_is_shown_whole_while_it_is_short() -> None:
    for name in ("a", "naïve", "x" * 198):
        assert shown(name) == name
        assert quoted(name) == repr(name)


def test_of_a_long_name_the_ends_are_shown() -> None:
    numbers = "".join(map(str, np.arange(1000)))
    assert shown(numbers) == f"{numbers[:100]}...{numbers[-100:]}"
    assert quoted(numbers) == f"'{numbers[:99]}...{numbers[-99:]}'"


def test_a_message_keeps_its_lines_and_cuts_what_no_message_needs() -> None:
    error = ShardioError(f"worker 0:\n  {ESCAPE}{'x' * 1000} is bad; remove it")
    assert str(error) == f"worker 0:\n  \\x1b[31m{'x' * 92}...{'x' * 100} is bad; remove it"
