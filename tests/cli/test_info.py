"""shardio info, as typed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

import shardio
from shardio.cli import commands
from shardio.testing import make_shard

MakePacked = Callable[[Path, Mapping[str, Mapping[str, bytes]], Sequence[str]], Path]


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(commands, ["info", *map(str, arguments)])


def show(*arguments: str | Path) -> list[str]:
    done = run(*arguments)
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    assert max(len(line) for line in lines if not line.startswith("wrote")) <= 80
    return lines


def cells(lines: list[str]) -> list[list[str]]:
    return [line.split() for line in lines]


def test_info_shows_a_packed_folder(packed: Path) -> None:
    lines = show(packed)
    assert lines[:2] == [
        "600 samples of 10 classes in 8 shards, 1.2 MB, with the fields cls, png (image).",
        "Samples in a shard: 75; its size: 154.6 kB.",
    ]
    rows = cells(lines)
    assert ["cls", "cls", "600", "600", "B", "1", "B", "1", "B"] in rows
    assert ["3", "class03", "60"] in rows
    assert "Samples of a class: 60." in lines
    found = shardio.info(packed).sample
    assert found is not None
    assert f"sample 0: {found.key}" in lines
    assert ["png", *f"{found.fields[1].bytes} B png, 8 × 8".split()] in rows


def test_info_prints_everything_as_json(packed: Path) -> None:
    done = run(packed, "--json", "--sample", "7")
    assert done.stderr == ""
    assert json.loads(done.stdout) == json.loads(json.dumps(asdict(shardio.info(packed, sample=7))))


def test_info_lists_shards_and_all_classes_when_asked(tmp_path: Path) -> None:
    make_shard(tmp_path / "a.tar", {f"{n}": {"cls": b"%d" % n} for n in range(25)})
    make_shard(tmp_path / "b.tar", {"x": {"txt": b"a" * 1000}})
    short, long = show(tmp_path), show(tmp_path, "--classes", "--shards")
    assert ["19", "1"] in cells(short)
    assert ["20", "1"] not in cells(short)
    assert "and 5 more classes; --classes shows all" in "\n".join(short)
    assert ["24", "1"] in cells(long)
    assert "--classes" not in "\n".join(long)
    assert "b.tar" in "".join(long)
    assert "b.tar" not in "".join(short)
    assert ["txt", "txt", "1", "of", "26", *["1.0", "kB"] * 3] in cells(short)
    assert "1 sample has no cls." in short
    assert "2 indexes without checksums." in " ".join(short)


def test_info_shows_class_numbers_without_a_name(make_packed: MakePacked, tmp_path: Path) -> None:
    samples = {f"{number}": {"cls": b"%d" % number} for number in range(3)}
    lines = show(make_packed(tmp_path / "out", samples, ["ant"]))
    assert "2 samples have a class number that is not among the 1 named." in lines
    assert ["2", "(not", "in", "the", "list)", "1"] in cells(lines)


def test_info_compares_splits(images: Path, tmp_path: Path) -> None:
    shardio.pack(images, tmp_path / "out", shards=6, split={"a": 0.5, "b": 0.5}, stratify=True)
    lines = show(tmp_path / "out")
    assert ["a", "300", "50.0%", "3", "617.5", "kB", "10"] in cells(lines)
    assert "b: Samples in a shard: 100; its size: 205.8 kB." in lines
    assert ["4", "class04", "60", "30", "30"] in cells(lines)


def test_info_writes_a_preview(packed: Path, tmp_path: Path) -> None:
    path = tmp_path / "sheet.png"
    lines = show(packed, "--preview", path, "--preview-count", "3")
    assert lines[-1].startswith("wrote the preview to ")
    assert path.read_bytes().startswith(b"\x89PNG")


def test_names_that_no_terminal_can_show_are_escaped(
    make_packed: MakePacked, tmp_path: Path
) -> None:
    key = os.fsdecode(b"[red]caf\xe9\x1b[31m\n") + "long" * 30
    samples = {key: {"txt": "é\x1b[2J\n".encode(), "cls": b"0"}}
    make_packed(tmp_path / "out", samples, ["[bold]\x07é" + "w" * 99])
    command = [sys.executable, "-m", "shardio", "info", "--shards", str(tmp_path / "out")]
    for encoding in ("ascii", "utf-8"):
        environment = {**os.environ, "PYTHONIOENCODING": encoding}
        done = subprocess.run(command, capture_output=True, check=False, env=environment)
        text = done.stdout.decode(encoding)
        assert done.returncode == 0, done.stderr
        assert "[red]caf\\udce9\\x1b[31m\\n" in text
        assert "[bold]\\x07" in text
        assert "\x1b" not in text
        if encoding == "utf-8":
            assert max(map(len, text.splitlines())) <= 80


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["nothing"], 1, "nothing: no such folder or shard"),
        (["out", "--sample", "key"], 1, "no sample has the key 'key'"),
        (["out", "--preview", "a.jpg"], 2, "a.jpg: the preview must be a PNG file"),
        (["out", "--preview-count", "0"], 2, "0 is not in the range"),
    ],
)
def test_mistakes_get_one_sentence_and_an_exit_code(
    tmp_path: Path, packed: Path, arguments: list[str], code: int, message: str
) -> None:
    (tmp_path / "out").symlink_to(packed)
    command = [sys.executable, "-m", "shardio", "info", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == code
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_a_shard_that_an_index_alone_tells_of_is_a_warning(tmp_path: Path) -> None:
    """Without a manifest, nothing else does."""
    samples = [{"__key__": f"{number}", "txt": "sesame"} for number in range(8)]
    shardio.pack(samples, tmp_path / "out", shards=2)
    assert shardio.info(tmp_path / "out").warnings == ()
    (tmp_path / "out/shardio.json").unlink()
    assert shardio.info(tmp_path / "out").warnings == ()
    (tmp_path / "out/shard-000001.tar").unlink()
    found = shardio.info(tmp_path / "out")
    assert found.samples == 4
    (warning,) = found.warnings
    assert "shard-000001" in warning
    done = CliRunner().invoke(commands, ["info", str(tmp_path / "out")])
    assert "warning:" in done.output
    assert "its shard is missing; restore the shard, or" in " ".join(done.output.split())
