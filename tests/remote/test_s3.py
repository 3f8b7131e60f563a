"""S3: what it promises as a storage, held against SeaweedFS, and nginx with faults before it."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest

from servers import SeaweedS3
from shardio.storage.base import Storage
from shardio.storage.s3 import S3Storage
from shardio.testing import StorageContract


@pytest.fixture
def storage(s3: SeaweedS3) -> S3Storage:
    return S3Storage(
        endpoint_url=s3.url, key=s3.keys.access, secret=s3.keys.secret, timeout=20.0, retries=2
    )


@pytest.fixture
def folder(s3: SeaweedS3) -> str:
    return f"s3://{s3.bucket()}/folder"


class TestS3(StorageContract):
    client: ClassVar[Any]

    @pytest.fixture
    def storage(self, s3: SeaweedS3, storage: S3Storage) -> Storage:
        type(self).client = s3.client()
        return storage

    def put(self, path: str, data: bytes) -> None:
        bucket, _, key = path.removeprefix("s3://").partition("/")
        self.client.put_object(Bucket=bucket, Key=key, Body=data)

    def get(self, path: str) -> bytes:
        bucket, _, key = path.removeprefix("s3://").partition("/")
        found: bytes = self.client.get_object(Bucket=bucket, Key=key)["Body"].read()
        return found
