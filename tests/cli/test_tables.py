"""Tables and datasets of others on the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from shardio.testing import read_members
from tests import programs


def run(*arguments: object) -> Any:
    return programs.command("pack", *arguments)


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """A table in Latin-1 with semicolons, beside its image."""
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((2, 2, 3), np.uint8))
    text = "path;label;price, EUR;x;y;cat;dog;note\na.png;2.0;0,5;1.5;2;1;0;café\n"
    (tmp_path / "t.csv").write_bytes(text.encode("latin-1"))
    return tmp_path / "t.csv"


def test_a_table_is_packed_with_all_its_options(table: Path, tmp_path: Path) -> None:
    dialect = ("--encoding", "latin-1", "--delimiter", ";", "--columns", "note")
    vectors = ("--target-column", "at=x,y", "--multilabel-column", "tags=cat,dog")
    done = run(table, tmp_path / "out", "--shards", 1, *dialect, *vectors)
    assert done.returncode == 0, done.stderr
    found = read_members(tmp_path / "out")
    assert [*found] == ["a.cls", "a.png", "a.at.npy", "a.tags.npy", "a.json"]
    said = "fields: at.npy (npy), cls, json, png (image), tags.npy (npy)"
    assert said == done.stdout.splitlines()[1]
    assert found["a.cls"] == b"2"
    assert json.loads(found["a.json"]) == {"note": "café"}
    assert found["a.at.npy"].endswith(np.array([1.5, 2], np.float32).tobytes())
    assert found["a.tags.npy"].endswith(bytes([1, 0]))


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        ([], 1, "its header has both comma and semicolon, and one of them is the delimiter"),
        (["--delimiter", ";"], 1, "0xe9 at byte 3 of the cell, in line 2 of the file"),
        (["--delimiter", ";;"], 2, "--delimiter ';;': it must be one character"),
        (["--encoding", "klingon"], 2, "--encoding klingon: there is no such encoding"),
        (["--fields", "png"], 1, "--fields does not apply to a table"),
    ],
)
def test_mistakes_get_one_sentence(
    table: Path, tmp_path: Path, options: list[str], code: int, message: str
) -> None:
    done = run(table, tmp_path / "out", "--shards", 1, *options)
    assert (done.returncode, done.stdout) == (code, "")
    assert message in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (
            "--path-column image --path-column mask.png=mask",
            1,
            "name it (--label-column), divide by the column split (--split-column split), or pack "
            "without labels (--no-labels)",
        ),
        ("--split-column split", 1, "pack both files (--path-column image --path-column mask.png="),
        (
            "--split-column splitt",
            1,
            "no column 'splitt'; its columns are image, mask, split, note",
        ),
        ("--no-labels --label-column mask", 2, "--label-column names a column, but --no-labels"),
        ("--target-column z", 1, "--target-column: there is no column 'z'"),
        ("--split a=1 --split-column split", 2, "--split and --split-column exclude each other"),
    ],
)
def test_what_is_asked_of_columns_is_not_what_was_given(
    tmp_path: Path, options: str, code: int, message: str
) -> None:
    (tmp_path / "t.csv").write_text("image,mask,split,note\na.png,m.png,train,x\n")
    done = run(tmp_path / "t.csv", tmp_path / "out", "--shards", 1, *options.split())
    assert done.returncode == code, done.stderr
    assert message in done.stderr


def test_a_table_that_is_not_there_is_named(tmp_path: Path) -> None:
    done = run(tmp_path / "no.csv", tmp_path / "out", "--shards", 1)
    assert done.returncode == 1
    assert "no.csv: No such file or directory" in done.stderr


def test_options_of_tables_need_one(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for option in ("--encoding", "--columns", "--target-column", "--multilabel-column"):
        done = run(tmp_path / "in", tmp_path / "out", "--shards", 1, option, "latin-1")
        assert done.returncode == 2
        assert "require --manifest" in done.stderr


def test_what_a_folder_was_taken_for_is_said_beside_the_summary(tmp_path: Path) -> None:
    (tmp_path / "in/images").mkdir(parents=True)
    (tmp_path / "in/labels").mkdir()
    cv2.imwrite(str(tmp_path / "in/images/a.png"), np.zeros((2, 2, 3), np.uint8))
    (tmp_path / "in/labels/a.txt").write_text("0 .5 .5 1 1")
    (tmp_path / "names.txt").write_text("cat\ndog\n")
    options = ("--shards", 1, "--classes", tmp_path / "names.txt", "--json")
    done = run(tmp_path / "in", tmp_path / "out", *options)
    assert done.returncode == 0, done.stderr
    assert "taken for a YOLO dataset, images beside texts of boxes, with 2 classes" in done.stderr
    assert json.loads(done.stdout)["samples"] == 1


def test_annotations_of_coco_are_an_option(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    cv2.imwrite(str(tmp_path / "in/a.png"), np.zeros((2, 2, 3), np.uint8))
    document = {"images": [{"id": 1, "file_name": "a.png"}], "annotations": [], "categories": []}
    (tmp_path / "coco.json").write_text(json.dumps(document))
    options = ("--shards", 1, "--coco", tmp_path / "coco.json")
    done = run(tmp_path / "in", tmp_path / "out", *options)
    assert (done.returncode, "taken for" in done.stderr) == (0, False), done.stderr
    assert {*read_members(tmp_path / "out")} == {"a.png", "a.json"}
    done = run(tmp_path / "in", tmp_path / "two", *options, "--no-labels")
    assert done.returncode == 1
    assert "does not apply to COCO annotations" in done.stderr
