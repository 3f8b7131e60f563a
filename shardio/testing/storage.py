"""The contract suite of storages; see shardio.testing."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from shardio.errors import ShardioError, TarError
from shardio.storage.base import Storage

_CONTENT = np.random.default_rng(0).bytes(10_000)
_MANY = 8  # threads
_CHANGES = 60  # of files, one after the other
_TICK = 0.02  # seconds in which the clocks of file systems move on


def _raises(*kinds: type[Exception]) -> Any:
    import pytest  # noqa: PLC0415  only the tests need it

    return pytest.raises(kinds)


class StorageContract:
    """Tests that every storage passes; a base class for pytest.

    A subclass says what is tested:

        class TestMyStorage(shardio.testing.StorageContract):
            @pytest.fixture
            def storage(self): return MyStorage()

            @pytest.fixture
            def folder(self): return "mine://bucket/empty"

            def put(self, path, data): client.upload(path, data)
            def get(self, path): return client.download(path)

    `put` and `get` reach the same files without the storage, which may agree with itself alone.

    A storage that only reads has `can_write = False`, and its subclass `writable = False`; tests of
    writing are skipped then, and `get` is not needed.

    Fixtures:
        storage: the storage.
        folder: path of a folder in it that is empty, as text.
        tmp_path: pytest's; takes local files.
    """

    writable: ClassVar[bool] = True
    """Whether the storage publishes and removes files."""

    def put(self, path: str, data: bytes) -> None:
        """Write a file, with the folders above it, by other means than the storage."""
        raise NotImplementedError

    def get(self, path: str) -> bytes:
        """Read a file by other means than the storage."""
        raise NotImplementedError

    def test_others_reach_the_same_files(self, storage: Storage, folder: str) -> None:
        self._need_writing()
        for path in (f"{folder}/{name}" for name in ("a.bin", "b #%41é.bin", "inside/deep/c.bin")):
            storage.publish(path, _CONTENT)
            assert self.get(path) == _CONTENT
            storage.remove(path)
            self.put(path, _CONTENT[::-1])
            assert storage.stat(path).size == len(_CONTENT)
            assert storage.open(path, "a").read(0, len(_CONTENT)) == _CONTENT[::-1]
        assert storage.names(folder) == ["a.bin", "b #%41é.bin", "inside"]

    def test_a_published_file_reads_as_it_was_given(self, storage: Storage, folder: str) -> None:
        self._need_writing()
        storage.publish(f"{folder}/a.bin", _CONTENT)
        file = storage.open(f"{folder}/a.bin", "a name")
        assert (file.name, file.size) == ("a name", len(_CONTENT))
        assert file.read(0, file.size) == _CONTENT

    def test_a_local_file_is_published(self, storage: Storage, folder: str, tmp_path: Path) -> None:
        self._need_writing()
        local = tmp_path / "local.bin"
        local.write_bytes(_CONTENT)
        storage.publish(f"{folder}/b.bin", local)
        storage.publish(f"{folder}/c.bin", local, only_if_absent=True)
        for name in ("b.bin", "c.bin"):
            assert storage.open(f"{folder}/{name}", name).read(0, len(_CONTENT)) == _CONTENT
        assert local.read_bytes() == _CONTENT

    def test_an_empty_file_is_a_file(self, storage: Storage, folder: str) -> None:
        self._write(storage, f"{folder}/a.bin", b"")
        assert storage.stat(f"{folder}/a.bin").size == 0
        assert storage.open(f"{folder}/a.bin", "a").read(0, 0) == b""
        self._expect(storage, folder, ["a.bin"])

    def test_any_range_is_read_whole(self, storage: Storage, folder: str) -> None:
        self._write(storage, f"{folder}/a.bin", _CONTENT)
        file = storage.open(f"{folder}/a.bin", "a")
        file.read_ahead(0, len(_CONTENT))
        last = len(_CONTENT)
        for start, end in ((0, 1), (0, last), (last - 1, last), (511, 513), (last, last), (7, 7)):
            assert file.read(start, end - start) == _CONTENT[start:end]

    def test_a_range_outside_the_file_is_an_error(self, storage: Storage, folder: str) -> None:
        self._write(storage, f"{folder}/a.bin", _CONTENT)
        for offset, size in ((-1, 1), (0, -1), (0, 1 << 20), (1 << 20, 0)):
            with _raises(TarError) as caught:
                storage.open(f"{folder}/a.bin", "the name").read(offset, size)
            assert (caught.value.where, caught.value.shard) == ("the name", "the name")
            assert caught.value.offset == offset

    def test_a_file_that_was_changed_or_removed_is_never_read_as_another(
        self, storage: Storage, folder: str
    ) -> None:
        """Either the bytes that were there when it was opened are read, or it is an error."""
        for change in (
            lambda path: self._write(storage, path, b"x"),
            lambda path: self._write(storage, path, bytes(len(_CONTENT))),
            *([storage.remove] if self.writable else []),
        ):
            path = f"{folder}/a.bin"
            self._write(storage, path, _CONTENT)
            file = storage.open(path, "a")
            change(path)
            with suppress(ShardioError, OSError):
                assert file.read(10, 90) == _CONTENT[10:100]

    def test_a_missing_file_is_told_from_failing_storage(
        self, storage: Storage, folder: str
    ) -> None:
        self._write(storage, f"{folder}/a.bin", _CONTENT)
        for path in ("missing.bin", "a.bin/below", "none/below.bin"):
            for measure in (storage.stat, lambda path: storage.open(path, "a")):
                with _raises(FileNotFoundError, NotADirectoryError):
                    measure(f"{folder}/{path}")

    def test_a_folder_is_no_file(self, storage: Storage, folder: str) -> None:
        self._write(storage, f"{folder}/inside/a.bin", _CONTENT)
        with _raises(OSError) as caught:
            storage.stat(f"{folder}/inside")
        assert str(caught.value)
        with _raises(TarError, OSError):
            storage.open(f"{folder}/inside", "inside")

    def test_names_are_sorted_and_of_one_folder(self, storage: Storage, folder: str) -> None:
        names = ["b.tar", "a.tar", "Z.tar", "a b#c%41.tar", "é.tar", "a.tar.gz"]
        for name in (*names, "index/a.tar.idx", "index/deep/x", "indexes/y"):
            self._write(storage, f"{folder}/{name}", b"x")
        self._expect(storage, folder, sorted([*names, "index", "indexes"]))
        self._expect(storage, f"{folder}/index", ["a.tar.idx", "deep"])
        for name in names:
            assert storage.open(f"{folder}/{name}", name).read(0, 1) == b"x"

    def test_a_folder_that_is_not_there_has_no_names(self, storage: Storage, folder: str) -> None:
        self._write(storage, f"{folder}/a.bin", b"x")
        self._expect(storage, f"{folder}/missing", [])
        self._expect(storage, f"{folder}/a.bin", [])

    def test_a_version_changes_with_the_contents_alone(self, storage: Storage, folder: str) -> None:
        path = f"{folder}/a.bin"
        self._write(storage, path, _CONTENT)
        first = storage.stat(path)
        assert first == storage.stat(path)
        assert (storage.open(path, "a").size, storage.open(path, "a").version) == first[:2]
        time.sleep(_TICK)
        self._write(storage, path, _CONTENT[::-1])
        second = storage.stat(path)
        assert second.size == first.size
        assert second.version != first.version

    def test_a_file_takes_the_place_of_another(self, storage: Storage, folder: str) -> None:
        self._need_writing()
        for content in (_CONTENT, b"other"):
            storage.publish(f"{folder}/a.bin", content)
        assert storage.open(f"{folder}/a.bin", "a").read(0, 5) == b"other"
        assert storage.names(folder) == ["a.bin"]

    def test_a_file_that_is_there_stays_if_so_wanted(self, storage: Storage, folder: str) -> None:
        self._need_writing()
        storage.publish(f"{folder}/a.bin", b"first", only_if_absent=True)
        with _raises(FileExistsError):
            storage.publish(f"{folder}/a.bin", b"other", only_if_absent=True)
        assert storage.open(f"{folder}/a.bin", "a").read(0, 5) == b"first"
        assert storage.names(folder) == ["a.bin"]

    def test_of_several_that_publish_at_once_one_wins(self, storage: Storage, folder: str) -> None:
        self._need_writing()
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
        self._need_writing()
        storage.publish(f"{folder}/a.bin", _CONTENT)
        for name in ("a.bin", "b.bin"):
            with _raises(FileNotFoundError):
                storage.publish(f"{folder}/{name}", tmp_path / "missing")
        assert storage.names(folder) == ["a.bin"]
        assert storage.open(f"{folder}/a.bin", "a").read(0, len(_CONTENT)) == _CONTENT

    def test_readers_see_one_file_or_the_other(self, storage: Storage, folder: str) -> None:
        self._need_writing()
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
        self._need_writing()
        storage.publish(f"{folder}/a.bin", b"x")
        storage.remove(f"{folder}/a.bin")
        storage.remove(f"{folder}/a.bin")
        assert storage.names(folder) == []

    def test_any_sequence_of_changes_leaves_what_a_dictionary_would_hold(
        self, storage: Storage, folder: str
    ) -> None:
        """A folder whose files are all gone may be listed or not."""
        self._need_writing()
        numbers, files = np.random.default_rng(0), dict[str, bytes]()
        paths = [f"{folder}/{name}" for name in ("a", "a.b", "ab", "in/a", "in/b", "in.b/a", "é")]
        for _ in range(_CHANGES):
            path, kind = paths[numbers.integers(len(paths))], numbers.integers(3)
            content = numbers.bytes(int(numbers.integers(100)))
            if kind == 0:
                storage.remove(path)
                files.pop(path, None)
            elif kind == 1 and path in files:
                with _raises(FileExistsError):
                    storage.publish(path, content, only_if_absent=True)
            else:
                storage.publish(path, content, only_if_absent=kind == 1)
                files[path] = content
            for start in (f"{folder}/", f"{folder}/in/", f"{folder}/in.b/"):
                below = [path.removeprefix(start) for path in files if path.startswith(start)]
                names = storage.names(start[:-1])
                emptied = {"in", "in.b"}.intersection(names)
                assert names == sorted(emptied | {name.partition("/")[0] for name in below})
            for path, content in files.items():
                size = storage.stat(path).size
                assert storage.open(path, path).read(0, size) == content
            for path in {*paths} - files.keys():
                with _raises(FileNotFoundError, NotADirectoryError):
                    storage.stat(path)

    def test_threads_share_an_open_file(self, storage: Storage, folder: str) -> None:
        self._write(storage, f"{folder}/a.bin", _CONTENT)
        file = storage.open(f"{folder}/a.bin", "a")
        starts = [number * 37 % (len(_CONTENT) - 100) for number in range(400)]
        with ThreadPoolExecutor(_MANY) as threads:
            found = [*threads.map(lambda start: file.read(start, 100), starts)]
        assert found == [_CONTENT[start : start + 100] for start in starts]

    def test_it_pickles(self, storage: Storage, folder: str) -> None:
        self._write(storage, f"{folder}/a.bin", _CONTENT)
        again = ForkingPickler.loads(bytes(ForkingPickler.dumps(storage)))
        assert again == storage
        assert again.open(f"{folder}/a.bin", "a").read(0, len(_CONTENT)) == _CONTENT

    def test_a_storage_that_only_reads_says_so(
        self, storage: Storage, folder: str, tmp_path: Path
    ) -> None:
        if self.writable:
            self._skip("it writes")
        assert getattr(storage, "can_write", True) is False
        self.put(f"{folder}/a.bin", _CONTENT)
        (tmp_path / "local.bin").write_bytes(b"x")
        for content in (b"x", tmp_path / "local.bin"):
            for name in ("a.bin", "b.bin"):
                for only_if_absent in (False, True):
                    with _raises(OSError) as caught:
                        storage.publish(f"{folder}/{name}", content, only_if_absent=only_if_absent)
                    assert not isinstance(caught.value, FileExistsError)
        with _raises(OSError):
            storage.remove(f"{folder}/a.bin")
        assert storage.open(f"{folder}/a.bin", "a").read(0, len(_CONTENT)) == _CONTENT

    def test_a_storage_that_cannot_list_says_so(self, storage: Storage, folder: str) -> None:
        if getattr(storage, "can_list", True):
            self._skip("it lists folders")
        with _raises(OSError):
            storage.names(folder)

    def _write(self, storage: Storage, path: str, data: bytes) -> None:
        if self.writable:
            storage.publish(path, data)
        else:
            self.put(path, data)

    def _expect(self, storage: Storage, folder: str, names: list[str]) -> None:
        if getattr(storage, "can_list", True):
            assert storage.names(folder) == names

    def _need_writing(self) -> None:
        if not self.writable:
            self._skip("it only reads")

    def _skip(self, why: str) -> None:
        import pytest  # noqa: PLC0415  only the tests need it

        pytest.skip(why)
