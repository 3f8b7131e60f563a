"""Every storage keeps the contract that readers and writers of shards rely on."""

from __future__ import annotations

import subprocess
import sys
from itertools import count
from pathlib import Path

import pytest

from shardio.storage.base import Storage
from shardio.storage.local import LocalFiles
from shardio.testing import StorageContract
from tests.storage.memory import MemoryStorage

_buckets = count()


class TestLocalFiles(StorageContract):
    @pytest.fixture
    def storage(self) -> Storage:
        return LocalFiles()

    @pytest.fixture
    def folder(self, tmp_path: Path) -> str:
        (tmp_path / "folder").mkdir()
        return str(tmp_path / "folder")


class TestMemory(StorageContract):
    @pytest.fixture
    def storage(self) -> Storage:
        return MemoryStorage(f"contract {next(_buckets)}")

    @pytest.fixture
    def folder(self) -> str:
        return "memory://bucket/folder"


def test_the_contracts_are_imported_without_what_only_their_tests_need() -> None:
    heavy = {"torch", "cv2", "pytest", "simplejpeg"}
    code = f"import sys, shardio.testing; print({heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
