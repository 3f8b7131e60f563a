"""Every storage keeps the contract that readers and writers of shards rely on."""

from __future__ import annotations

import subprocess
import sys
from itertools import count
from pathlib import Path
from typing import ClassVar

import pytest

from shardio.storage.base import FileStat, Storage, StoredFile
from shardio.storage.local import LocalFiles
from shardio.testing import StorageContract
from tests.storage.memory import FILES, MemoryStorage

_buckets = count()


class TestLocalFiles(StorageContract):
    @pytest.fixture
    def storage(self) -> Storage:
        return LocalFiles()

    @pytest.fixture
    def folder(self, tmp_path: Path) -> str:
        (tmp_path / "folder").mkdir()
        return str(tmp_path / "folder")

    def put(self, path: str, data: bytes) -> None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_bytes(data)

    def get(self, path: str) -> bytes:
        return Path(path).read_bytes()


class TestMemory(StorageContract):
    bucket: ClassVar[str]

    @pytest.fixture
    def storage(self) -> Storage:
        type(self).bucket = f"contract {next(_buckets)}"
        return MemoryStorage(self.bucket)

    @pytest.fixture
    def folder(self) -> str:
        return "memory://bucket/folder"

    def put(self, path: str, data: bytes) -> None:
        FILES[self.bucket][path] = data

    def get(self, path: str) -> bytes:
        return FILES[self.bucket][path]


class Elsewhere(MemoryStorage):
    """A storage that drops a folder from every path, and so agrees with itself."""

    def stat(self, path: str, /) -> FileStat:
        return super().stat(path.replace("/folder/", "/"))

    def open(self, path: str, name: str, /) -> StoredFile:
        return super().open(path.replace("/folder/", "/"), name)

    def publish(self, path: str, content: bytes | Path, /, *, only_if_absent: bool = False) -> None:
        super().publish(path.replace("/folder/", "/"), content, only_if_absent=only_if_absent)


class Prefixes(MemoryStorage):
    """A storage that lists what starts with the name of a folder, as a careless one of objects."""

    def names(self, folder: str, /) -> list[str]:
        return sorted({*super().names(folder), *super().names(f"{folder}.b")})


class Forgetful(MemoryStorage):
    """A storage that takes a removed file for one that is still there."""

    def publish(self, path: str, content: bytes | Path, /, *, only_if_absent: bool = False) -> None:
        if only_if_absent and path in _removed:
            raise FileExistsError(17, "the object is there", path)
        super().publish(path, content, only_if_absent=only_if_absent)

    def remove(self, path: str, /) -> None:
        super().remove(path)
        _removed.add(path)


_removed: set[str] = set()


def test_the_contract_notices_a_storage_that_agrees_with_itself_alone() -> None:
    TestMemory.bucket = f"contract {next(_buckets)}"
    with pytest.raises(KeyError):
        TestMemory().test_others_reach_the_same_files(
            Elsewhere(TestMemory.bucket), "memory://bucket/folder"
        )


@pytest.mark.parametrize("kind", [Prefixes, Forgetful])
def test_the_contract_notices_a_storage_that_differs_from_a_dictionary(
    kind: type[MemoryStorage],
) -> None:
    contract, storage = TestMemory(), kind(f"contract {next(_buckets)}")
    check = contract.test_any_sequence_of_changes_leaves_what_a_dictionary_would_hold
    with pytest.raises((AssertionError, FileExistsError)):
        check(storage, "memory://bucket/folder")


def test_the_contracts_are_imported_without_what_only_their_tests_need() -> None:
    heavy = {"torch", "cv2", "pytest", "simplejpeg"}
    code = f"import sys, shardio.testing; print({heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
