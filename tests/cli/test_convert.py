"""shardio convert, and pack of TFRecord files, as typed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from shardio.testing import make_shard
from tests.programs import command as run


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    make_shard(tmp_path / "a.tar", {"x": {"txt": b"one", "cls": b"1"}, "y": {"txt": b"two"}})
    return tmp_path


def test_shards_become_records_and_records_shards(folder: Path) -> None:
    done = run("convert", "a.tar", "records", "--to", "tfrecord", cwd=folder)
    assert done.returncode == 0
    assert done.stdout.startswith("wrote 1 TFRecord file, 120 B, of 2 samples in 1 shard in ")
    assert done.stderr == "converting: 2 of 2\n"
    pairs = ("--feature", "note.txt=txt", "--feature", "=label")
    done = run("pack", "records", "out", "--shards", 1, *pairs, cwd=folder)
    assert done.returncode == 0
    manifest = json.loads((folder / "out/shardio.json").read_text())
    assert manifest["shardio"]["fields"] == ["note.txt"]


def test_the_summary_is_printed_as_json(folder: Path) -> None:
    for to, files in (("wids", 1), ("dali", 1), ("energon", 1), ("tfrecord", 1)):
        done = run("convert", ".", "out", "--to", to, "--json", cwd=folder)
        summary = json.loads(done.stdout)
        assert summary.pop("seconds") > 0
        assert summary.pop("bytes") > 0
        assert summary == {"samples": 2, "shards": 1, "files": files}
        assert done.stderr == ""
    names = sorted(path.name for path in (folder / "out").iterdir())
    assert names == ["a.idx", "a.tar.idx", "a.tfrecord", "shardindex.json"]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["nothing", "out", "--to", "tfrecord"], 1, "shardio: nothing: no such folder or shard"),
        (["a.tar", "--to", "tfrecord"], 2, "TFRecord files require an output folder"),
        (["a.tar", "out"], 2, "Missing option '--to'"),
        (["a.tar", "out", "--to", "zip"], 2, "'zip' is not one of 'tfrecord', 'wids', 'dali'"),
        (["a.tar", "out", "--to", "tfrecord", "--feature", "x"], 2, "'x' is not a pair of a field"),
        (
            ["a.tar", "out", "--to", "dali", "--feature", "x=y"],
            2,
            "--feature is for --to tfrecord only",
        ),
        (["a.tar", "a.tar", "--to", "tfrecord"], 1, "shardio: a.tar: "),
    ],
)
def test_mistakes_get_one_sentence_and_an_exit_code(
    folder: Path, arguments: list[str], code: int, message: str
) -> None:
    done = run("convert", *arguments, cwd=folder)
    assert done.returncode == code
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    assert code == 2 or done.stderr.count("\n") == 1


def test_help_has_an_example(folder: Path) -> None:
    done = run("convert", "--help", cwd=folder)
    assert "Example: shardio convert out/ records/ --to tfrecord" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80
