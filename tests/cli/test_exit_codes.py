"""Exit codes: 2 if the arguments are wrong, with the files they load; 1 if the data do not fit."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from shardio.cli import _COMMANDS, main

OUT = {
    "pack": ["new", "--shards", "1"],
    "reshard": ["new", "--shards", "1"],
    "convert": ["new", "--to", "tfrecord"],
    "plan": ["--batch-size", "4"],
    "replay": ["--batch-size", "4", "--step", "0", "--to", "new"],
}
"""What each command needs beside its source."""

WRONG = [
    *[(command, "packed", ["--no-such-option"]) for command in _COMMANDS],
    *[(command, "gopher://host/x", []) for command in _COMMANDS],
    ("cache", "nothing", []),
    ("cache", "ls", ["--limit", "1GB"]),
    ("cache", "ls", ["--cache-dir", "s3://bucket/cache"]),
    ("cache", "prune", ["--limit", "much"]),
    ("pack", "in", ["--split", "a=2"]),
    ("pack", "in", ["--shard-size", "5MB"]),
    ("pack", "in", ["--feature", "x"]),
    ("pack", "in", ["--manifest", "table.xls"]),
    ("pack", "in", ["--engine", "ray", "--jobs", "2"]),
    ("reshard", "packed", ["--stratify"]),
    ("reshard", "packed", ["--match", "("]),
    ("convert", "packed", ["--feature", "x"]),
    ("convert", "packed", ["--to", "dali", "--feature", "x=y"]),
    ("info", "packed", ["--preview", "sheet.jpg"]),
    ("verify", "packed", ["--fix", "gopher://host/new"]),
    ("plan", "packed", ["--global-batch-size", "4"]),
    ("plan", "packed", ["--ranks", "3", "--nodes", "2"]),
    ("plan", "packed", ["--batch-size", str(1 << 63)]),
    ("plan", "packed", ["--ranks", str(1 << 62)]),
    ("plan", "packed", ["--workers", str(1 << 70)]),
    ("replay", "packed", ["--batch-size", str(1 << 70)]),
    ("plan", "packed", ["--ranks", "2", "--tail", "short"]),
    ("replay", "packed", ["--rank", "1"]),
    ("pack", "in", ["--classes", "nothing"]),
    ("reshard", "packed", ["--keys", "nothing"]),
    ("profile", "packed", ["--train", "mine.py"]),
    *[("profile", "packed", [option, "nothing.py:f"]) for option in ("--train", "--transform")],
    *[("profile", "packed", [option, "table.csv:f"]) for option in ("--train", "--transform")],
    ("profile", "packed", ["--html", "s3://bucket/report.html"]),
]
MET = [
    *[(command, "nothing", []) for command in _COMMANDS if command != "cache"],
    *[(command, "empty", []) for command in _COMMANDS if command not in ("cache", "pack")],
    *[("cache", each, ["--cache-dir", "nothing"]) for each in ("ls", "prune", "clear")],
    ("cache", "ls", ["--cache-dir", "table.csv"]),
    ("pack", "in", ["--manifest", "nothing.csv"]),
    ("pack", "in", ["--manifest", "table.csv", "--label-column", "none"]),
    ("pack", "packed", ["--no-labels"]),
    ("pack", "in", ["--shards", "9"]),
    ("convert", "packed", ["--feature", "none=x"]),
    ("info", "packed", ["--sample", "none"]),
    ("info", "packed", ["--sample", "9999"]),
    ("plan", "packed", ["--tail", "drop", "--batch-size", "9999"]),
    ("replay", "packed", ["--step", "9999"]),
    ("replay", "packed", ["--to", "in"]),
    ("profile", "packed", ["--batch-size", "9999"]),
    ("profile", "packed", ["--html", "nothing/report.html"]),
]
CASES = [*[(2, *case) for case in WRONG], *[(1, *case) for case in MET]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, images: Path, packed: Path) -> Path:
    made = tmp_path_factory.mktemp("codes")
    (made / "in" / "a").mkdir(parents=True)
    image = next(images.rglob("*.*"))
    (made / "in" / "a" / f"0{image.suffix}").write_bytes(image.read_bytes())
    (made / "table.csv").write_text(f"path,label\na/0{image.suffix},a\n")
    (made / "packed").symlink_to(packed)
    (made / "empty").mkdir()
    return made


@pytest.mark.parametrize(("code", "command", "source", "options"), CASES, ids=str)
def test_wrong_usage_is_2_and_a_problem_is_1(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    code: int,
    command: str,
    source: str,
    options: list[str],
) -> None:
    monkeypatch.chdir(folder)
    needed = [*OUT.get(command, [])]
    for option in {*needed} & {*options}:
        place = needed.index(option)
        del needed[place : place + 2]
    monkeypatch.setattr(sys, "argv", ["shardio", command, source, *needed, *options])
    with pytest.raises(SystemExit) as ended:
        main()
    said = capsys.readouterr().err
    assert ended.value.code == code, said
    assert code == 2 or said.count("shardio: ") == 1
    assert not (folder / "new").exists()


def test_every_command_has_cases_of_both() -> None:
    for code in (1, 2):
        assert {case[1] for case in CASES if case[0] == code} == {*_COMMANDS}
