"""Nothing that is done in an open folder leaves it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from shardio.errors import OutputError
from shardio.storage.folder import Folder, is_plain_name

DEEDS: dict[str, Callable[[Folder, str], object]] = {
    "write": lambda folder, name: folder.write(name).__enter__(),
    "create": Folder.create,
    "lock": Folder.open_lock,
    "read": lambda folder, name: folder.read(name, 10),
    "remove": Folder.remove,
    "move": lambda folder, name: folder.move(name, folder),
}


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    path = tmp_path / "victim"
    path.write_bytes(b"mine")
    return path


@pytest.mark.parametrize("deed", [*DEEDS, "inside"])
@pytest.mark.parametrize("name", ["..", ".", "../victim", "a/../../victim", "/etc/passwd", "a\0b"])
def test_a_name_that_is_a_path_is_refused(victim: Path, deed: str, name: str) -> None:
    (victim.parent / "out").mkdir()
    do = DEEDS.get(deed, Folder.inside)
    with (
        Folder.open(victim.parent / "out") as folder,
        pytest.raises(OutputError, match="is not a valid file name"),
    ):
        do(folder, name)
    assert victim.read_bytes() == b"mine"
    assert not is_plain_name(name)


@pytest.mark.parametrize("deed", DEEDS)
@pytest.mark.parametrize("kind", ["a link", "a folder", "a pipe"])
def test_what_is_no_file_is_refused_by_its_kind(victim: Path, deed: str, kind: str) -> None:
    out = victim.parent / "out"
    out.mkdir()
    if kind == "a link":
        (out / "name").symlink_to(victim)
    elif kind == "a folder":
        (out / "name").mkdir()
    else:
        os.mkfifo(out / "name")
    with Folder.open(out) as folder, pytest.raises(OutputError, match=f"out/name: it is {kind}, "):
        DEEDS[deed](folder, "name")
    assert victim.read_bytes() == b"mine"
    assert [path.name for path in out.iterdir()] == ["name"]


def test_a_lock_with_a_second_name_is_refused(victim: Path) -> None:
    (victim.parent / "out").mkdir()
    (victim.parent / "out/lock").hardlink_to(victim)
    with (
        Folder.open(victim.parent / "out") as folder,
        pytest.raises(OutputError, match="a file with a second name"),
    ):
        folder.open_lock("lock")


@pytest.mark.parametrize("deed", ["write", "create", "remove"])
def test_a_file_with_a_second_name_is_left_as_it_is_under_that(victim: Path, deed: str) -> None:
    (victim.parent / "out").mkdir()
    (victim.parent / "out/name").hardlink_to(victim)
    with Folder.open(victim.parent / "out") as folder:
        if deed == "write":
            with folder.write("name") as stream:
                stream.write(b"new")
        elif deed == "create":
            with folder.create("name") as stream:
                stream.write(b"new")
        else:
            folder.remove("name")
    assert victim.read_bytes() == b"mine"


def test_a_folder_that_is_moved_away_is_written_to_where_it_is_now(victim: Path) -> None:
    """And not to what took its place."""
    out = victim.parent / "out"
    (out / "index").mkdir(parents=True)
    with Folder.open(out, "index") as folder:
        (out / "index").rename(out / "moved")
        (out / "index").symlink_to(victim.parent)
        with folder.write("victim") as stream:
            stream.write(b"new")
    assert victim.read_bytes() == b"mine"
    assert (out / "moved/victim").read_bytes() == b"new"
