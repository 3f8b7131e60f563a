"""Requests to Azure's blob storage, by the client of adlfs; see shardio.storage.fsspec."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from shardio.storage.base import FileStat
from shardio.storage.fsspec import FsspecClient, Piece, opened, reason_of_store
from shardio.storage.remote import (
    Reason,
    RequestError,
    parse_range,
    refuse_altered,
    retry_seconds,
    split_path,
)

T = TypeVar("T")

_BLOCK = 64 << 20  # bytes of one request that stores a part of an object


class AzureClient(FsspecClient):
    """Requests to Azure's blob storage, by the client of adlfs."""

    def stat(self, path: str, /) -> FileStat:
        """Measure an object."""

        async def stat() -> FileStat:
            async with self._blob(path) as (blob, once):
                found = await blob.get_blob_properties(**once)
            return FileStat(found.size, found.etag)

        return self._try(stat)

    def fetch(self, path: str, start: int, end: int, version: str | None) -> Piece:
        """Read the bytes [start, end) of an object."""

        async def fetch() -> Piece:
            condition = {} if version is None else {"etag": version, **_match("IfNotModified")}
            async with self._blob(path) as (blob, once):
                found = await blob.download_blob(
                    offset=start, length=end - start, max_concurrency=1, **condition, **once
                )
                data = await found.readall()
            total = parse_range(found.properties.content_range)[2]
            return Piece(data, total, found.properties.etag)

        return self._try(fetch, "changed")

    def names(self, folder: str, /) -> list[str]:
        """List what is in a folder."""
        bucket, prefix = split_path(folder.rstrip("/") + "/")

        async def names() -> list[str]:
            async with self._system.service_client.get_container_client(bucket) as container:
                found = container.walk_blobs(prefix, delimiter="/", **self._once())
                return [each.name.rstrip("/")[len(prefix) :] async for each in found]

        return [name for name in self._try(names) if name]

    def put(self, path: str, content: bytes | Path, /, *, only_if_absent: bool) -> None:
        """Store an object, and compare the size of what is stored; the store compares digests."""

        async def put(stream: BinaryIO) -> tuple[str, int]:
            async with self._blob(path) as (blob, once):
                data = stream.read(_BLOCK)
                if len(data) < _BLOCK:
                    found = await blob.upload_blob(
                        data, overwrite=not only_if_absent, validate_content=True, **once
                    )
                    return found["etag"], len(data)
                names, size = list[str](), 0
                while data:
                    names.append(f"{len(names):06d}")
                    size += len(data)
                    await blob.stage_block(names[-1], data, validate_content=True, **once)
                    data = stream.read(_BLOCK)
                condition = _match("IfMissing") if only_if_absent else {}
                found = await blob.commit_block_list(_blocks(names), **condition, **once)
                return found["etag"], size

        with opened(content) as stream:
            etag, size = self._try(lambda: put(stream))
        stored = self.stat(path)
        if stored.version == etag:  # else somebody has replaced it
            refuse_altered(self, path, (size, None), (stored.size, None))

    def delete(self, path: str, /) -> None:
        """Remove an object, if it is there."""

        async def delete() -> None:
            async with self._blob(path) as (blob, once):
                await blob.delete_blob(**once)

        try:
            self._try(delete)
        except RequestError as error:
            if error.reason != "missing":
                raise

    def _once(self) -> dict[str, Any]:
        """Return the options of a request that is attempted once."""
        seconds = self._storage.timeout
        return {"retry_total": 0, "connection_timeout": seconds, "read_timeout": seconds}

    @asynccontextmanager
    async def _blob(self, path: str) -> AsyncIterator[tuple[Any, dict[str, Any]]]:
        bucket, key = split_path(path)
        if not key:
            raise RequestError("missing", "it is a container")
        async with self._system.service_client.get_blob_client(bucket, key) as blob:
            yield blob, self._once()

    def _try(
        self, request: Callable[[], Coroutine[Any, Any, T]], condition: Reason = "exists"
    ) -> T:
        """Make a request.

        Args:
            request: request.
            condition: reason of a condition that does not hold.
        """
        import azure.core.exceptions as azure  # noqa: PLC0415  of adlfs

        try:
            return self._run(request)
        except azure.HttpResponseError as error:
            status, code = error.status_code, getattr(error, "error_code", None) or ""
            code = str(getattr(code, "value", code))  # of an enumeration, if it is known
            reason = reason_of_store(status or 0, condition)
            if code == "BlobAlreadyExists":
                reason = condition
            headers = getattr(error.response, "headers", {})
            raise RequestError(
                reason,
                code or self._storage.harmless(error),
                status=status,
                request_id=headers.get("x-ms-request-id"),
                retry_after=retry_seconds(headers.get("Retry-After")),
            ) from None
        except azure.AzureError as error:
            raise RequestError("broken", self._storage.harmless(error)) from None


def _match(name: str) -> dict[str, Any]:
    from azure.core import MatchConditions  # noqa: PLC0415  of adlfs

    return {"match_condition": MatchConditions[name]}


def _blocks(names: list[str]) -> list[Any]:
    from azure.storage.blob import BlobBlock  # noqa: PLC0415  of adlfs

    return [BlobBlock(name) for name in names]
