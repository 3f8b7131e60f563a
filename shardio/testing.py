"""Helpers and contract suites for tests, shardio's own and its users'.

A contract suite is a base class of pytest tests that every implementation of a protocol passes.
"""

from __future__ import annotations

import hashlib
import io
import tarfile
import threading
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
import pytest

from shardio.errors import ShardioError, TarError
from shardio.storage.base import Storage

Damage = Literal["flip", "truncate", "swap", "double", "zero", "drop"]
_BLOCK = 512
_CONTENT = np.random.default_rng(0).bytes(10_000)
_MANY = 8  # threads
_TICK = 0.02  # seconds in which the clocks of file systems move on


def make_images(
    folder: Path, *, classes: int, per_class: int, size: int = 8, extension: str = "png"
) -> Path:
    """Write small images of random pixels, a subfolder a class.

    Args:
        folder: is made.
        classes: how many subfolders; 0 puts the images into the folder itself.
        per_class: images in each.
        size: height and width in pixels.
        extension: "png", "jpg", "webp" or "bmp".

    Returns:
        The folder.
    """
    numbers = np.random.default_rng(0)
    for label in range(max(classes, 1)):
        inside = folder / f"class{label:02d}" if classes else folder
        inside.mkdir(parents=True, exist_ok=True)
        for number in range(per_class):
            pixels = numbers.integers(0, 256, (size, size, 3), dtype=np.uint8)
            cv2.imwrite(str(inside / f"image{number:04d}.{extension}"), pixels)
    return folder


def make_shard(path: Path, samples: Mapping[str, Mapping[str, bytes]]) -> Path:
    """Write a shard with Python's tarfile, as others make them.

    Args:
        path: of the tar.
        samples: bytes by field, by key.

    Returns:
        The path.
    """
    with tarfile.open(path, "w") as archive:
        for key, sample in samples.items():
            for field, data in sample.items():
                info = tarfile.TarInfo(f"{key}.{field}")
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
    return path


def read_members(folder: Path) -> dict[str, bytes]:
    """The data of all members of the shards in a folder, by name, read with Python's tarfile."""
    found = {}
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as archive:
            for member in archive.getmembers():
                stream = archive.extractfile(member)
                found[member.name] = stream.read() if stream is not None else b""
    return found


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of all files below a folder, hexadecimal, by path relative to it."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def damaged(data: bytes, damage: Damage, numbers: np.random.Generator) -> bytes:
    """Damage the contents of a file at a random place.

    Args:
        data: the contents, at least 1,024 bytes where blocks are changed.
        damage: "flip" one bit; "truncate" at any byte; "swap" two blocks of 512 bytes, "double",
            "zero" or "drop" one.
        numbers: where.

    Returns:
        Other contents, but for blocks that are swapped with equal ones or zero already.
    """
    changed = bytearray(data)
    if damage == "flip":
        changed[numbers.integers(len(data))] ^= 1 << int(numbers.integers(8))
        return bytes(changed)
    if damage == "truncate":
        return data[: numbers.integers(len(data))]
    one, other = (int(at) * _BLOCK for at in numbers.integers(len(data) // _BLOCK, size=2))
    block = data[one : one + _BLOCK]
    if damage == "swap":
        changed[one : one + _BLOCK] = data[other : other + _BLOCK]
        changed[other : other + _BLOCK] = block
    else:
        changed[one : one + _BLOCK] = {"double": 2 * block, "zero": bytes(_BLOCK), "drop": b""}[
            damage
        ]
    return bytes(changed)


class StorageContract:
    """Tests that every storage passes; a base class for pytest.

    A subclass says what is tested:

        class TestMyStorage(shardio.testing.StorageContract):
            @pytest.fixture
            def storage(self): return MyStorage()

            @pytest.fixture
            def folder(self): return "mine://bucket/empty"

    Fixtures:
        storage: the storage.
        folder: path of a folder in it that is empty, as text.
        tmp_path: pytest's; takes local files.
    """

    def test_a_published_file_reads_as_it_was_given(self, storage: Storage, folder: str) -> None:
        storage.publish(f"{folder}/a.bin", _CONTENT)
        file = storage.open(f"{folder}/a.bin", "a name")
        assert (file.name, file.size) == ("a name", len(_CONTENT))
        assert file.read(0, file.size) == _CONTENT

    def test_a_local_file_is_published(self, storage: Storage, folder: str, tmp_path: Path) -> None:
        local = tmp_path / "local.bin"
        local.write_bytes(_CONTENT)
        storage.publish(f"{folder}/b.bin", local)
        storage.publish(f"{folder}/c.bin", local, only_if_absent=True)
        for name in ("b.bin", "c.bin"):
            assert storage.open(f"{folder}/{name}", name).read(0, len(_CONTENT)) == _CONTENT
        assert local.read_bytes() == _CONTENT

    def test_an_empty_file_is_a_file(self, storage: Storage, folder: str) -> None:
        storage.publish(f"{folder}/a.bin", b"")
        assert storage.stat(f"{folder}/a.bin").size == 0
        assert storage.open(f"{folder}/a.bin", "a").read(0, 0) == b""
        assert storage.names(folder) == ["a.bin"]

    def test_any_range_is_read_whole(self, storage: Storage, folder: str) -> None:
        storage.publish(f"{folder}/a.bin", _CONTENT)
        file = storage.open(f"{folder}/a.bin", "a")
        file.read_ahead(0, len(_CONTENT))
        last = len(_CONTENT)
        for start, end in ((0, 1), (0, last), (last - 1, last), (511, 513), (last, last), (7, 7)):
            assert file.read(start, end - start) == _CONTENT[start:end]

    @pytest.mark.parametrize(("offset", "size"), [(-1, 1), (0, -1), (0, 1 << 20), (1 << 20, 0)])
    def test_a_range_outside_the_file_is_an_error(
        self, storage: Storage, folder: str, offset: int, size: int
    ) -> None:
        storage.publish(f"{folder}/a.bin", _CONTENT)
        with pytest.raises(TarError) as caught:
            storage.open(f"{folder}/a.bin", "the name").read(offset, size)
        assert (caught.value.where, caught.value.shard) == ("the name", "the name")
        assert caught.value.offset == offset

    def test_a_file_that_was_changed_or_removed_is_never_read_as_another(
        self, storage: Storage, folder: str
    ) -> None:
        """Either the bytes that were there when it was opened are read, or it is an error."""
        for change in (
            lambda path: storage.publish(path, b"x"),
            lambda path: storage.publish(path, bytes(len(_CONTENT))),
            storage.remove,
        ):
            path = f"{folder}/a.bin"
            storage.publish(path, _CONTENT)
            file = storage.open(path, "a")
            change(path)
            with suppress(ShardioError, OSError):
                assert file.read(10, 90) == _CONTENT[10:100]

    @pytest.mark.parametrize("path", ["missing.bin", "a.bin/below", "none/below.bin"])
    def test_a_missing_file_is_told_from_failing_storage(
        self, storage: Storage, folder: str, path: str
    ) -> None:
        storage.publish(f"{folder}/a.bin", _CONTENT)
        for measure in (storage.stat, lambda path: storage.open(path, "a")):
            with pytest.raises((FileNotFoundError, NotADirectoryError)):
                measure(f"{folder}/{path}")

    def test_a_folder_is_no_file(self, storage: Storage, folder: str) -> None:
        storage.publish(f"{folder}/inside/a.bin", _CONTENT)
        with pytest.raises(OSError, match=r"."):
            storage.stat(f"{folder}/inside")
        with pytest.raises((TarError, OSError)):
            storage.open(f"{folder}/inside", "inside")

    def test_names_are_sorted_and_of_one_folder(self, storage: Storage, folder: str) -> None:
        names = ["b.tar", "a.tar", "Z.tar", "a b#c%41.tar", "é.tar", "a.tar.gz"]
        for name in (*names, "index/a.tar.idx", "index/deep/x", "indexes/y"):
            storage.publish(f"{folder}/{name}", b"x")
        assert storage.names(folder) == sorted([*names, "index", "indexes"])
        assert storage.names(f"{folder}/index") == ["a.tar.idx", "deep"]
        for name in names:
            assert storage.open(f"{folder}/{name}", name).read(0, 1) == b"x"

    def test_a_folder_that_is_not_there_has_no_names(self, storage: Storage, folder: str) -> None:
        storage.publish(f"{folder}/a.bin", b"x")
        assert storage.names(f"{folder}/missing") == []
        assert storage.names(f"{folder}/a.bin") == []

    def test_a_version_changes_with_the_contents_alone(self, storage: Storage, folder: str) -> None:
        path = f"{folder}/a.bin"
        storage.publish(path, _CONTENT)
        first = storage.stat(path)
        assert first == storage.stat(path)
        assert (storage.open(path, "a").size, storage.open(path, "a").version) == first
        time.sleep(_TICK)
        storage.publish(path, _CONTENT[::-1])
        second = storage.stat(path)
        assert second.size == first.size
        assert second.version != first.version

    def test_a_file_takes_the_place_of_another(self, storage: Storage, folder: str) -> None:
        for content in (_CONTENT, b"other"):
            storage.publish(f"{folder}/a.bin", content)
        assert storage.open(f"{folder}/a.bin", "a").read(0, 5) == b"other"
        assert storage.names(folder) == ["a.bin"]

    def test_a_file_that_is_there_stays_if_so_wanted(self, storage: Storage, folder: str) -> None:
        storage.publish(f"{folder}/a.bin", b"first", only_if_absent=True)
        with pytest.raises(FileExistsError):
            storage.publish(f"{folder}/a.bin", b"other", only_if_absent=True)
        assert storage.open(f"{folder}/a.bin", "a").read(0, 5) == b"first"
        assert storage.names(folder) == ["a.bin"]

    def test_of_several_that_publish_at_once_one_wins(self, storage: Storage, folder: str) -> None:
        contents = [bytes([number]) * 5000 for number in range(_MANY)]
        gate = threading.Barrier(_MANY)

        def publish(content: bytes) -> bool:
            gate.wait()
            with suppress(FileExistsError):
                storage.publish(f"{folder}/a.bin", content, only_if_absent=True)
                return True
            return False

        for _ in range(5):
            with ThreadPoolExecutor(_MANY) as threads:
                won = [*threads.map(publish, contents)]
            assert won.count(True) == 1
            found = storage.open(f"{folder}/a.bin", "a").read(0, 5000)
            assert found == contents[won.index(True)]
            storage.remove(f"{folder}/a.bin")

    def test_a_file_that_cannot_be_published_leaves_nothing(
        self, storage: Storage, folder: str, tmp_path: Path
    ) -> None:
        storage.publish(f"{folder}/a.bin", _CONTENT)
        for name in ("a.bin", "b.bin"):
            with pytest.raises(FileNotFoundError):
                storage.publish(f"{folder}/{name}", tmp_path / "missing")
        assert storage.names(folder) == ["a.bin"]
        assert storage.open(f"{folder}/a.bin", "a").read(0, len(_CONTENT)) == _CONTENT

    def test_readers_see_one_file_or_the_other(self, storage: Storage, folder: str) -> None:
        contents = [bytes([number]) * 40_000 for number in range(2)]
        path, ended = f"{folder}/a.bin", threading.Event()
        storage.publish(path, contents[0])

        def read() -> None:
            while not ended.is_set():
                file = storage.open(path, "a")
                with suppress(ShardioError, OSError):  # it has been replaced: no mixture, either
                    assert file.read(0, file.size) in contents

        with ThreadPoolExecutor(2) as threads:
            reading = [threads.submit(read) for _ in range(2)]
            for number in range(50):
                storage.publish(path, contents[number % 2])
            ended.set()
            for each in reading:
                each.result()

    def test_a_removed_file_is_gone(self, storage: Storage, folder: str) -> None:
        storage.publish(f"{folder}/a.bin", b"x")
        storage.remove(f"{folder}/a.bin")
        storage.remove(f"{folder}/a.bin")
        assert storage.names(folder) == []

    def test_threads_share_an_open_file(self, storage: Storage, folder: str) -> None:
        storage.publish(f"{folder}/a.bin", _CONTENT)
        file = storage.open(f"{folder}/a.bin", "a")
        starts = [number * 37 % (len(_CONTENT) - 100) for number in range(400)]
        with ThreadPoolExecutor(_MANY) as threads:
            found = [*threads.map(lambda start: file.read(start, 100), starts)]
        assert found == [_CONTENT[start : start + 100] for start in starts]

    def test_it_pickles(self, storage: Storage, folder: str) -> None:
        storage.publish(f"{folder}/a.bin", _CONTENT)
        again = ForkingPickler.loads(bytes(ForkingPickler.dumps(storage)))
        assert again == storage
        assert again.open(f"{folder}/a.bin", "a").read(0, len(_CONTENT)) == _CONTENT
