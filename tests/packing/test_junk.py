"""Files that operating systems leave among those of a user, and folders of shards."""

from __future__ import annotations

import io
import logging
import tarfile
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
import pytest

import shardio
from shardio.testing import read_members

PNG = cv2.imencode(".png", np.zeros((2, 2, 3), np.uint8))[1].tobytes()
LEFT_BEHIND = [
    *("__MACOSX/cat/._1.png", "cat/._1.png", "cat/.AppleDouble/1.png", "cat/.DS_Store"),
    *("@eaDir/1.png/SYNOPHOTO_THUMB_XL.png", "dog/@eaDir/1.png/SYNOPHOTO_THUMB_M.png"),
    *("lost+found/#123.png", "cat/Thumbs.db", "desktop.ini", "dog/Desktop.ini"),
    *("$RECYCLE.BIN/S-1-5/1.png", "System Volume Information/1.png", "#recycle/1.png"),
]
ENTRIES_LEFT_OUT = 13


def write(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(PNG)
    return folder


def write_tar(path: Path, *names: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name in names:
            member = tarfile.TarInfo(name)
            member.size = len(PNG)
            archive.addfile(member, io.BytesIO(PNG))
    return path


def test_what_operating_systems_leave_in_a_folder_is_no_sample_and_no_class(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = write(tmp_path / "in", "cat/1.png", "dog/1.png", *LEFT_BEHIND)
    with caplog.at_level(logging.WARNING, "shardio"):
        summary = shardio.pack(source, tmp_path / "out", shards=1, shuffle=False)
    assert (summary.samples, summary.classes, summary.skipped) == (2, 2, 0)
    assert [*read_members(tmp_path / "out")] == ["cat/1.cls", "cat/1.png", "dog/1.cls", "dog/1.png"]
    assert shardio.ShardDataset(tmp_path / "out").classes == ("cat", "dog")
    (message,) = (record.getMessage() for record in caplog.records)
    assert message.startswith(
        f"{source}: left out {ENTRIES_LEFT_OUT} files or folders of operating systems (#recycle, "
    )


def test_the_same_samples_are_packed_with_and_without_them(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    clean = write(tmp_path / "clean", "cat/1.png", "dog/1.png")
    shardio.pack(clean, tmp_path / "a", shards=1)
    assert not caplog.records
    source = write(tmp_path / "in", "cat/1.png", "dog/1.png", *LEFT_BEHIND)
    shardio.pack(source, tmp_path / "b", shards=1, fields="png")
    assert read_members(tmp_path / "a") == read_members(tmp_path / "b")


def test_members_of_tars_are_left_out_too(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    names = [name for name in LEFT_BEHIND if "/." not in name]  # no reader takes the others
    source = write_tar(tmp_path / "in/a.tar", "cat/1.png", *names).parent
    write(source, "@eaDir/a.tar/x.png", "Thumbs.db", "._a.tar")
    with caplog.at_level(logging.WARNING, "shardio"):
        assert shardio.pack(source, tmp_path / "out", shards=1).samples == 1
    assert [*read_members(tmp_path / "out")] == ["cat/1.png"]
    (message,) = (record.getMessage() for record in caplog.records)
    assert f"left out {len(names)} files or folders of operating systems" in message


def test_resharding_keeps_every_sample(tmp_path: Path) -> None:
    shard = write_tar(tmp_path / "a.tar", "@eaDir/1.png", "cat/1.png")
    assert shardio.reshard(shard, tmp_path / "out", shards=1).samples == 2


@pytest.mark.parametrize("manifest", [True, False], ids=["packed", "plain tars"])
@pytest.mark.parametrize("on_error", ["raise", "skip"])
def test_a_folder_of_packed_folders_is_refused_with_the_way_out(
    tmp_path: Path, manifest: bool, on_error: Literal["raise", "skip"]
) -> None:
    images = write(tmp_path / "images", "cat/1.png", "cat/2.png", "dog/1.png", "dog/2.png")
    source = tmp_path / "in"
    if manifest:
        shardio.pack(images, source, shards=2, split={"train": 0.5, "val": 0.5})
    else:
        write_tar(source / "train/shard-000000.tar", "1.png")
        write_tar(source / "val/shard-000000.tar", "2.png")
    with pytest.raises(
        shardio.PackError,
        match=r"in/train/: the folder holds shards \(shard-000000.tar\), not files of samples; "
        "pack each folder of shards by itself",
    ):
        shardio.pack(source, tmp_path / "out", shards=1, on_error=on_error)
    assert not (tmp_path / "out").exists()
    assert shardio.pack(source / "train", tmp_path / "out", shards=1).samples


def test_archives_beside_images_are_files_like_others(tmp_path: Path) -> None:
    source = write(tmp_path / "in", "1.png", "more/2.png", "more/backup.tar.gz")
    with pytest.raises(shardio.PackError, match=r"more/backup\.tar\.gz: "):
        shardio.pack(source, tmp_path / "out", shards=1, labels=False, fields="png")
    summary = shardio.pack(
        source, tmp_path / "out", shards=1, labels=False, fields="png", on_error="skip"
    )
    assert (summary.samples, summary.skipped) == (2, 1)
