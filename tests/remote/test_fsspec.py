"""Azure and Google over fsspec, held against their emulators, and what fsspec alone knows."""

from __future__ import annotations

from typing import Any, ClassVar
from urllib.parse import quote, urlencode

import pytest

from servers import Azurite, FakeGcs, get
from shardio.storage.base import Storage
from shardio.storage.location import locate
from shardio.testing import StorageContract

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
