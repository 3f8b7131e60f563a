"""Requests to Google Cloud Storage, over the session of gcsfs; see shardio.storage.fsspec.

Google's emulator ignores conditions, so that the two are untested: ifGenerationMatch, by which a
range is of one version, and ifGenerationMatch=0, by which an object is stored only where none is.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple
from urllib.parse import quote

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


class _Answer(NamedTuple):
    """An answer over HTTP.

    Attributes:
        headers: headers of the answer.
        content: body of the answer.
        status: HTTP status of the answer.
    """

    headers: Mapping[str, str]
    content: bytes
    status: int


class GoogleClient(FsspecClient):
    """Requests to Google Cloud Storage, over the session of gcsfs."""

    def stat(self, path: str, /) -> FileStat:
        """Measure an object."""
        found = self._json("GET", self._object(path))
        return FileStat(int(found["size"]), str(found["generation"]))

    def fetch(self, path: str, start: int, end: int, version: str | None) -> Piece:
        """Read the bytes [start, end) of an object."""
        answer = self._ask(
            "GET",
            self._object(path),
            {"alt": "media", **({} if version is None else {"ifGenerationMatch": version})},
            # The bytes as they are stored, though they be compressed.
            headers={"Range": f"bytes={start}-{end - 1}", "Accept-Encoding": "gzip"},
            most=end - start,
            condition="changed",
        )
        total = parse_range(answer.headers.get("Content-Range"))[2]
        found = answer.headers.get("X-Goog-Generation")
        return Piece(answer.content, total, found or self.stat(path).version)

    def names(self, folder: str, /) -> list[str]:
        """List what is in a folder."""
        bucket, prefix = split_path(folder.rstrip("/") + "/")
        names, more = list[str](), dict[str, str]()
        while True:
            asked = {"prefix": prefix, "delimiter": "/", **more}
            found = self._json("GET", f"{self._system.base}b/{quote(bucket, safe='')}/o", asked)
            keys = [each["name"] for each in found.get("items", ())]
            keys += [each.rstrip("/") for each in found.get("prefixes", ())]
            names += filter(None, (key[len(prefix) :] for key in keys))
            if not found.get("nextPageToken"):
                return names
            more = {"pageToken": found["nextPageToken"]}

    def put(self, path: str, content: bytes | Path, /, *, only_if_absent: bool) -> None:
        """Store an object, and compare the store's digest of it."""
        with opened(content) as stream:
            digest, size = hashlib.md5(usedforsecurity=False), 0
            while piece := stream.read(1 << 20):
                digest.update(piece)
                size += len(piece)
        bucket, key = split_path(path)
        place = f"{self._system.base.removesuffix('storage/v1/')}upload/storage/v1"
        found = self._json(
            "POST",
            f"{place}/b/{quote(bucket, safe='')}/o",
            {
                "uploadType": "media",
                "name": key,
                **({"ifGenerationMatch": "0"} if only_if_absent else {}),
            },
            content=content,
        )
        sent = size, base64.b64encode(digest.digest()).decode()
        refuse_altered(self, path, sent, (int(found["size"]), found.get("md5Hash")))

    def delete(self, path: str, /) -> None:
        """Remove an object, if it is there."""
        try:
            self._ask("DELETE", self._object(path))
        except RequestError as error:
            if error.reason != "missing":
                raise

    def _object(self, path: str) -> str:
        bucket, key = split_path(path)
        if not key:
            raise RequestError("missing", "it is a bucket")
        return f"{self._system.base}b/{quote(bucket, safe='')}/o/{quote(key, safe='')}"

    def _json(
        self,
        method: str,
        url: str,
        query: Mapping[str, str] | None = None,
        *,
        content: bytes | Path | None = None,
    ) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self._ask(method, url, query, content=content).content)
        return found

    def _ask(
        self,
        method: str,
        url: str,
        query: Mapping[str, str] | None = None,
        *,
        content: bytes | Path | None = None,
        headers: Mapping[str, str] | None = None,
        most: int | None = None,
        condition: Reason = "exists",
    ) -> _Answer:
        """Make a request.

        Args:
            method: method.
            url: address without the query.
            query: query.
            content: body of the request.
            headers: headers beside those of gcsfs.
            most: maximum size of the body in bytes; None for any.
            condition: reason of a condition that does not hold.
        """

        async def ask() -> _Answer:
            with opened(content or b"") as stream:
                return await self._send(
                    method, url, query, headers, None if content is None else stream, most
                )

        with self._explained():
            answer = self._run(ask)
        if answer.status < 300:
            return answer
        said = _error_of(answer.content)
        reason = reason_of_store(answer.status, condition)
        if answer.status == 401 and not self._system.credentials.credentials:
            reason, said = "denied", f"there are no credentials: {said}"
        raise RequestError(
            reason,
            said,
            status=answer.status,
            request_id=answer.headers.get("X-GUploader-UploadID"),
            retry_after=retry_seconds(answer.headers.get("Retry-After")),
        )

    async def _send(
        self,
        method: str,
        url: str,
        query: Mapping[str, str] | None,
        headers: Mapping[str, str] | None,
        body: BinaryIO | None,
        most: int | None,
    ) -> _Answer:
        import aiohttp  # noqa: PLC0415  of gcsfs
        from yarl import URL  # noqa: PLC0415

        system, seconds = self._system, self._storage.timeout
        await system._set_session()
        async with system.session.request(
            method,
            URL(url, encoded=True),
            params=system._get_params(dict(query or {})),
            headers=system._get_headers({"Accept-Encoding": "identity", **(headers or {})}),
            data=body,
            timeout=aiohttp.ClientTimeout(sock_connect=seconds, sock_read=seconds),
        ) as answer:
            if most is not None and answer.status < 300 and (answer.content_length or 0) > most:
                raise RequestError("refused", "more bytes were given than were asked for")
            return _Answer(answer.headers, await answer.read(), answer.status)

    @contextmanager
    def _explained(self) -> Iterator[None]:
        import aiohttp  # noqa: PLC0415  of gcsfs
        import google.auth.exceptions as google  # noqa: PLC0415

        try:
            yield
        except aiohttp.ClientConnectorCertificateError as error:
            raise RequestError("untrusted", self._storage.harmless(error)) from None
        except (aiohttp.ClientError, asyncio.TimeoutError, google.TransportError) as error:
            raise RequestError("broken", self._storage.harmless(error)) from None
        except google.GoogleAuthError as error:
            raise RequestError("denied", self._storage.harmless(error)) from None


def _error_of(content: bytes) -> str:
    """Return the message of one of Google's errors."""
    try:
        return str(json.loads(content)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return ""
