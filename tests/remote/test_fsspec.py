"""Azure and Google over fsspec, held against their emulators, and what fsspec alone knows."""

from __future__ import annotations

import multiprocessing
import os
import sys
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import quote, urlencode

import fsspec
import numpy as np
import pytest
from fsspec.implementations.local import LocalFileSystem

import shardio
from servers import Azurite, FakeGcs, get
from shardio.errors import RemoteChanged, RemoteDenied, RemoteMissing
from shardio.storage import azure as azure_module
from shardio.storage import fsspec as module
from shardio.storage.base import Storage
from shardio.storage.location import Location, locate
from shardio.storage.remote import RemoteStorage
from shardio.testing import StorageContract

DATA = np.random.default_rng(0).bytes(1_000_000)
NEEDS_CONDITIONS = (
    "test_a_file_that_is_there_stays_if_so_wanted",
    "test_of_several_that_publish_at_once_one_wins",
    "test_any_sequence_of_changes_leaves_what_a_dictionary_would_hold",
)


def bucket_and_key(path: str) -> tuple[str, str]:
    bucket, _, key = path.partition("://")[2].partition("/")
    return bucket, key


class TestAzure(StorageContract):
    service: ClassVar[Any]

    @pytest.fixture
    def storage(self, azure: Azurite) -> Storage:
        blob = pytest.importorskip("azure.storage.blob")
        pytest.importorskip("adlfs")
        type(self).service = blob.BlobServiceClient.from_connection_string(azure.connection_string)
        options = {"connection_string": azure.connection_string, "retries": 2}
        return locate("az://any", options=options).storage

    @pytest.fixture
    def folder(self, azure: Azurite) -> str:
        return f"az://{azure.bucket()}/folder"

    def put(self, path: str, data: bytes) -> None:
        self.service.get_blob_client(*bucket_and_key(path)).upload_blob(data, overwrite=True)

    def get(self, path: str) -> bytes:
        found: bytes = self.service.get_blob_client(*bucket_and_key(path)).download_blob().readall()
        return found


class TestGoogle(StorageContract):
    """The emulator ignores conditions, so that what rests on them is not tested."""

    url: ClassVar[str]

    @pytest.fixture
    def storage(self, gcs: FakeGcs) -> Storage:
        pytest.importorskip("gcsfs")
        type(self).url = gcs.url
        options = {"endpoint_url": gcs.url, "anon": True, "retries": 2, "project": "test"}
        return locate("gs://any", options=options).storage

    @pytest.fixture
    def folder(self, gcs: FakeGcs) -> str:
        return f"gs://{gcs.bucket()}/folder"

    @pytest.fixture(autouse=True)
    def _conditions(self, request: pytest.FixtureRequest) -> None:
        if request.node.originalname in NEEDS_CONDITIONS:
            pytest.skip("the emulator ignores conditions")

    def put(self, path: str, data: bytes) -> None:
        bucket, key = bucket_and_key(path)
        query = urlencode({"uploadType": "media", "name": key})
        assert get(f"{self.url}/upload/storage/v1/b/{bucket}/o?{query}", "POST", data)[0] == 200

    def get(self, path: str) -> bytes:
        bucket, key = bucket_and_key(path)
        status, found = get(f"{self.url}/storage/v1/b/{bucket}/o/{quote(key, safe='')}?alt=media")
        assert status == 200
        return found


class Shelf(LocalFileSystem):  # type: ignore[misc]  # fsspec has no types
    """A file system that only fsspec knows: local files under another scheme."""

    protocol = "shelf"

    @classmethod
    def _strip_protocol(cls, path: Any) -> Any:
        return "/" + str(path).removeprefix("shelf://root").lstrip("/")


fsspec.register_implementation("shelf", Shelf)


class TestOther(StorageContract):
    writable = False

    @pytest.fixture
    def storage(self) -> Storage:
        return locate("shelf://root").storage

    @pytest.fixture
    def folder(self, tmp_path: Path) -> str:
        (tmp_path / "folder").mkdir()
        return f"shelf://root{tmp_path}/folder"

    def put(self, path: str, data: bytes) -> None:
        local = Path(path.removeprefix("shelf://root"))
        local.parent.mkdir(parents=True, exist_ok=True)
        local.write_bytes(data)


def test_what_fsspec_knows_is_read_and_not_written(packed: Path) -> None:
    there = shardio.ShardDataset(f"shelf://root{packed}", batch_size=600)
    here = shardio.ShardDataset(packed, batch_size=600)
    assert [batch["__key__"] for batch in there] == [batch["__key__"] for batch in here]
    place = locate(f"shelf://root{packed}") / "new.bin"
    for write in (place.storage.publish, lambda path, _: place.storage.remove(path)):
        with pytest.raises(RemoteDenied, match=r"new\.bin: nothing is written there .*shelf"):
            write(place.path, b"x")
    assert not (packed / "new.bin").exists()


def test_no_store_is_blamed_for_too_little_memory(
    packed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def use_up(*_: object, **__: object) -> bytes:
        raise MemoryError

    monkeypatch.setattr(Shelf, "cat_file", use_up)
    place = locate(f"shelf://root{packed}/shardio.json")
    with pytest.raises(MemoryError):
        place.open().read(0, 10)


@pytest.mark.parametrize(
    "url",
    [
        "file:///etc/passwd",
        "local:///etc/passwd",
        "memory://a",
        "simplecache::shelf://root/a",
        "reference://a",
        "git://a",
        "ftp://127.0.0.1:1/a",
        "jupyter://a",
        "zip://a",
    ],
)
def test_what_is_no_store_is_not_opened(url: str) -> None:
    with pytest.raises(shardio.UsageError):
        shardio.ShardDataset(url)


@pytest.fixture
def azure_options(azure: Azurite) -> dict[str, Any]:
    pytest.importorskip("adlfs")
    return {"connection_string": azure.connection_string, "retries": 1}


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_PIECE", 100_000)
    monkeypatch.setattr(azure_module, "_BLOCK", 300_000)


@pytest.mark.usefixtures("small_pieces")
def test_large_objects_go_to_azure_and_back_in_pieces(
    azure: Azurite, azure_options: dict[str, Any], tmp_path: Path
) -> None:
    place = locate(f"az://{azure.bucket()}/a.bin", options=azure_options)
    (tmp_path / "a.bin").write_bytes(DATA)
    place.storage.publish(place.path, tmp_path / "a.bin", only_if_absent=True)
    with pytest.raises(FileExistsError):
        place.storage.publish(place.path, tmp_path / "a.bin", only_if_absent=True)
    found = bytearray()
    assert isinstance(place.storage, RemoteStorage)
    place.storage.download(place.path, 0, None, None, found.extend)
    assert found == DATA
    assert place.open().read(50_000, 400_000) == DATA[50_000:450_000]


@pytest.mark.usefixtures("small_pieces")
def test_large_objects_go_to_google_and_back_in_pieces(gcs: FakeGcs, tmp_path: Path) -> None:
    pytest.importorskip("gcsfs")
    options = {"endpoint_url": gcs.url, "anon": True}
    place = locate(f"gs://{gcs.bucket()}/a.bin", options=options)
    (tmp_path / "a.bin").write_bytes(DATA)
    place.storage.publish(place.path, tmp_path / "a.bin")
    found = bytearray()
    assert isinstance(place.storage, RemoteStorage)
    place.storage.download(place.path, 0, None, None, found.extend)
    assert found == DATA


def test_an_object_of_azure_that_was_overwritten_is_an_error(
    azure: Azurite, azure_options: dict[str, Any]
) -> None:
    place = locate(f"az://{azure.bucket()}/a.bin", options=azure_options)
    place.storage.publish(place.path, DATA)
    file = place.open()
    place.storage.publish(place.path, DATA[::-1])
    with pytest.raises(RemoteChanged):
        file.read(500_000, 10)


def test_denied_is_not_missing_and_shows_no_secret(azure: Azurite) -> None:
    pytest.importorskip("adlfs")
    secret = "c2VjcmV0c2VjcmV0c2VjcmV0"  # noqa: S105
    text = azure.connection_string.replace(azure.key, secret)
    place = locate(f"az://{azure.bucket()}/a.bin", options={"connection_string": text})
    for ask in (place.find, place.parent.names, lambda: place.storage.publish(place.path, b"x")):
        with pytest.raises(RemoteDenied, match="AuthorizationFailure") as caught:
            ask()
        assert secret not in f"{caught.value} {place!r}"
        assert (caught.value.status, bool(caught.value.request_id)) == (403, True)
    missing = locate("az://none/a.bin", options={"connection_string": azure.connection_string})
    with pytest.raises(RemoteMissing):
        missing.open()


def test_a_signature_in_a_url_of_azure_is_an_option() -> None:
    pytest.importorskip("adlfs")
    place = locate("abfss://box@account.dfs.core.windows.net/out?sv=1&sig=hidden%2B")
    assert place.path == "abfss://box/out"
    assert "hidden" not in f"{place!r} {place.storage!r}"
    assert isinstance(place.storage, module.FsspecStorage)
    assert dict(place.storage.options) == {
        "account_name": "account",
        "sas_token": "sv=1&sig=hidden%2B",
    }


@pytest.mark.parametrize(
    ("url", "options", "message"),
    [
        ("az://box/out", {"acount_name": "a"}, "there is no option 'acount_name'; .* account_name"),
        ("az://box/out", {}, "az storage cannot be opened"),
        ("gs://box/out", {"tokn": "a"}, "there is no option 'tokn'; the options here are project"),
        ("gs://box/out?x=hidden", {}, "the URL has a query; pass what it says"),
        ("gs://user@/out", {}, "no host or bucket"),
    ],
)
def test_options_are_checked(
    url: str, options: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("adlfs")
    pytest.importorskip("gcsfs")
    for name in [each for each in os.environ if each.startswith("AZURE_")]:
        monkeypatch.delenv(name)
    with pytest.raises(shardio.UsageError, match=message) as caught:
        locate(url, options=options).names()
    assert "hidden" not in str(caught.value)


@pytest.mark.parametrize(("scheme", "extra"), [("gs", "gs"), ("az", "az"), ("s3", "s3")])
def test_a_missing_extra_is_one_sentence(
    scheme: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("gcsfs", "adlfs", "botocore", "botocore.config"):
        monkeypatch.setitem(sys.modules, name, None)
    loaded = vars(sys.modules["fsspec.registry"])["_registry"]
    for name in ("gs", "az"):
        monkeypatch.delitem(loaded, name, raising=False)
    with pytest.raises(
        shardio.SituationError,
        match=rf"^{scheme}:// needs .* not installed; pip install 'shardio\[{extra}\]'$",
    ):
        shardio.ShardDataset(f"{scheme}://bucket/out")


def _read_in_child(place: Location, results: Any) -> None:
    results.put(place.open().read(0, len(DATA)) == DATA)


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_child_reads_after_its_parent_has(
    azure: Azurite, azure_options: dict[str, Any], method: str
) -> None:
    place = locate(f"az://{azure.bucket()}/a.bin", options=azure_options)
    place.storage.publish(place.path, DATA)
    context: Any = multiprocessing.get_context(method)
    results = context.Queue()
    child = context.Process(target=_read_in_child, args=(place, results))
    child.start()
    assert results.get(timeout=60)
    child.join(60)
    assert child.exitcode == 0
    assert place.open().read(0, len(DATA)) == DATA


def test_a_pack_goes_to_azure(
    azure: Azurite, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("adlfs")
    monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", azure.connection_string)
    folder = f"az://{azure.bucket()}/out"
    shardio.pack(images, folder, shards=3, jobs=2)
    assert shardio.verify(folder, jobs=1).sound
    assert len(shardio.ShardDataset(folder)) == 600
    with pytest.raises(shardio.PackError, match="the folder has shards already"):
        shardio.pack(images, folder, shards=3, jobs=1)


def test_a_pack_goes_to_google(gcs: FakeGcs, images: Path) -> None:
    pytest.importorskip("gcsfs")
    options = {"endpoint_url": gcs.url, "anon": True}
    folder = f"gs://{gcs.bucket()}/out"
    shardio.pack(images, folder, shards=3, jobs=1, storage_options=options)
    assert len(shardio.ShardDataset(folder, storage_options=options)) == 600
