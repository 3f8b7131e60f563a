"""shardio verify, as typed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from shardio.cli import commands
from shardio.cli.text import size_text
from shardio.errors import PackError, UsageError
from shardio.testing import make_shard


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(commands, ["verify", *map(str, arguments)])


@pytest.fixture
def out(packed: Path, tmp_path: Path) -> Path:
    """The packed images with one bit of one image changed."""
    out = shutil.copytree(packed, tmp_path / "out")
    shard = out / "shard-000003.tar"
    data = bytearray(shard.read_bytes())
    data[data.index(b"IDAT") + 9] ^= 1
    shard.write_bytes(data)
    return out


def test_a_sound_folder_gets_one_line_and_exit_code_0(packed: Path) -> None:
    done = run(packed, "--jobs", "1")
    assert (done.exit_code, done.stdout) == (0, "8 shards, 600 samples, 1.2 MB: sound\n")


def test_a_deep_look_shows_classes_and_ranges(packed: Path) -> None:
    done = run(packed, "--deep", "--jobs", "1")
    assert done.exit_code == 0
    lines = done.stdout.splitlines()
    assert lines[2].split() == ["cls", "cls", "600", "600", "labels", "10", "classes"]
    assert lines[4] == "Classes of cls:"
    assert lines[8].split() == ["0", "60", "10.0%"]
    assert lines[-1] == "8 shards, 600 samples, 1.2 MB: sound"
    (found,) = json.loads(run(packed, "--deep", "--json").stdout)["statistics"]
    assert (found["name"], found["samples"], found["complete"]) == ("cls", 600, True)
    assert found["classes"] == [{"number": n, "values": 60, "samples": 60} for n in range(10)]
    assert json.loads(run(packed, "--json").stdout)["statistics"] == []


def test_no_more_than_20_classes_of_a_field_are_shown(tmp_path: Path) -> None:
    shard = make_shard(tmp_path / "a.tar", {f"{n}": {"cls": b"%d" % n} for n in range(23)})
    lines = run(shard, "--deep").stdout.splitlines()
    assert "and 3 more classes; --json has all" in lines
    assert sum(line.endswith("4.3%") for line in lines) == 20


def test_problems_get_a_line_each_and_exit_code_1(out: Path) -> None:
    done = run(out)
    assert done.exit_code == 1
    first, last = done.stdout.splitlines()
    assert first.startswith(f"{out}/shard-000003.tar, byte ")
    assert "field 'png': the data are not what was packed (CRC-32 differs); restore the" in first
    assert last == "8 shards, 600 samples, 1.2 MB: 1 problem"


def test_fix_writes_what_is_whole_and_says_what_is_not(out: Path, tmp_path: Path) -> None:
    done = run(out, "--fix", tmp_path / "new")
    assert done.exit_code == 1
    assert done.stdout.splitlines()[-2:] == [
        f"{tmp_path}/new: 599 samples in 8 shards; 1 sample is lost, 1 shard is damaged or "
        "missing; dropped.jsonl there says what and why",
        "8 shards, 600 samples, 1.2 MB: 1 problem",
    ]
    assert done.stderr.count("repairing: ") == 1
    again = run(tmp_path / "new", "--fix", tmp_path / "other")
    assert again.exit_code == 0
    assert again.stdout.splitlines() == [
        f"{tmp_path}/other: not written, as there is nothing to repair",
        "8 shards, 599 samples, 1.2 MB: sound",
    ]
    assert not (tmp_path / "other").exists()


def test_json_has_all_findings(out: Path, tmp_path: Path) -> None:
    done = run(out, "--json", "--fix", tmp_path / "new")
    found = json.loads(done.stdout)
    assert done.exit_code == 1
    assert (found["sound"], found["samples"], len(found["findings"])) == (False, 600, 1)
    assert found["findings"][0]["field"] == "png"
    assert found["fixed"]["samples"] == 599
    assert done.stderr == ""


def test_many_problems_are_cut_short(tmp_path: Path) -> None:
    shard = make_shard(tmp_path / "a.tar", {f"{n}": {"cls": b"cat"} for n in range(60)})
    done = run(shard, "--deep")
    assert done.stdout.count("\n") == 52
    assert "and 10 more; --json has all\n1 shard, 60 samples, 0.1 MB: 60 problems" in done.stdout
    assert len(json.loads(run(shard, "--deep", "--json").stdout)["findings"]) == 60


def test_notes_are_no_problems(tmp_path: Path) -> None:
    shard = make_shard(tmp_path / "a.tar", {"x": {"txt": b"1", "cls": b"1"}, "y": {"txt": b"1"}})
    done = run(shard)
    assert done.exit_code == 0
    assert done.stdout.startswith(f"note: {shard}, sample 'y', field 'cls': 1 of 2 samples lack")
    assert done.stdout.endswith("2 samples, 0.0 MB: sound\n")


def test_mistakes_are_explained(out: Path, tmp_path: Path) -> None:
    assert isinstance(run(tmp_path / "nothing").exception, UsageError)
    taken = run(out, "--fix", out)
    assert isinstance(taken.exception, PackError)
    assert "CRC-32 differs" in taken.stdout, "what was found is said before"


def test_progress_is_told_in_bytes(packed: Path) -> None:
    whole = size_text(sum(path.stat().st_size for path in packed.glob("*.tar")))
    assert f"verifying: {whole} of {whole}\n" in run(packed, "--jobs", "1").output
