"""Datasets on the Hugging Face hub, which are only read.

`hf://datasets/org/name@revision/path` is a file of a commit. A branch or tag is looked up once, when
the URL is opened, and the path has the commit from then on: all processes read that commit, however
the branch moves. The version of a file is the digest that the hub gives, and for large files the
SHA-256 of their contents.

Large files come from another host by addresses that are signed for each request. The token goes to
the hub alone. The routes are those that https://huggingface.co/docs/hub/api documents.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, NamedTuple
from urllib.parse import parse_qs, quote, urlencode, urlsplit

from shardio.checks import flag
from shardio.errors import UsageError, argument
from shardio.storage.base import FileStat
from shardio.storage.http import Answer, HttpClient, WebStorage, check_text, split_url
from shardio.storage.remote import Client, RequestError, check_options

_ENDPOINT = "https://huggingface.co"
_URL = re.compile(
    r"hf://datasets/(?P<repo>[^/@]+/[^/@]+)"
    r"(?:@(?P<revision>refs/(?:convert|pr)/[^/]+|[^/]+))?(?:/(?P<path>.*))?",
    re.IGNORECASE | re.DOTALL,
)
_COMMIT = re.compile(r"[0-9a-f]{40}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_LINK = re.compile(r'<([^>]*)>\s*;\s*rel="?next"?')
_MOST_ANSWER = 64 << 20  # bytes of an answer in JSON


class HubPath(NamedTuple):
    """Path of a file on the hub.

    Attributes:
        repo: name of the dataset, with its owner.
        revision: branch, tag or commit.
        path: path of the file in the dataset; empty for its root.
    """

    repo: str
    revision: str
    path: str

    def __str__(self) -> str:
        whole = f"hf://datasets/{self.repo}@{self.revision}"
        return f"{whole}/{self.path}" if self.path else whole


def parse(url: str) -> HubPath:
    """Split a URL of the hub.

    Raises:
        UsageError: it is none of a dataset.
    """
    found = _URL.fullmatch(url)
    if found is None:
        raise UsageError(
            "a URL of the hub must be like hf://datasets/org/name/path or "
            "hf://datasets/org/name@revision/path",
            where="hf://…",
        )
    revision = (found["revision"] or "main").replace("%2F", "/").replace("%2f", "/")
    return HubPath(found["repo"], revision, (found["path"] or "").strip("/"))


@dataclass(frozen=True, kw_only=True)
class HubStorage(WebStorage):
    """Files of datasets on the Hugging Face hub; see WebStorage.

    Without a token that of the environment is taken, HF_TOKEN or the file that `hf auth login`
    writes.

    Attributes:
        endpoint: URL of the hub; by default HF_ENDPOINT or that of Hugging Face.
        anon: whether no token is sent.
    """

    endpoint: str | None = None
    anon: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        flag("anon", self.anon)
        if self.anon and self.token is not None:
            raise UsageError("it excludes a token", where=argument("anon", self.anon))

    def connect(self) -> Client:
        """Make a client."""
        return HubClient(self)

    def address(self) -> str:
        """Return the URL of the hub, without a slash at its end.

        Raises:
            UsageError: it is no URL, or has more than a host and a path.
        """
        endpoint = self.endpoint or os.environ.get("HF_ENDPOINT") or _ENDPOINT
        path, secrets = split_url(endpoint)
        if secrets or not path.startswith(("http://", "https://")):
            raise UsageError(
                "it must be a URL like https://huggingface.co",
                where=argument("endpoint", path),
            )
        return path.rstrip("/")

    def current_token(self) -> str | None:
        """Return the token to send now; a program may renew that of the environment."""
        if self.anon or self.token is not None or "authorization" in map(str.lower, self.names_of_headers()):
            return self.token
        return os.environ.get("HF_TOKEN") or _read_token()

    def pin(self, path: str) -> str:
        """Return a path with the commit in place of a branch or tag.

        Raises:
            RemoteError: the hub does not answer, or there is no such dataset or revision.
        """
        return self._try(path, lambda client: client.pinned(path))


def open_url(url: str, options: Mapping[str, Any]) -> tuple[HubStorage, str]:
    """Return the storage of a URL of the hub, and the path of its commit.

    Args:
        url: URL as the user writes it.
        options: attributes of HubStorage.

    Raises:
        UsageError: the URL or an option is invalid.
        RemoteError: the hub does not answer, or there is no such dataset or revision.
    """
    path = str(parse(url))
    check_options(HubStorage, options)
    storage = HubStorage(**options)
    return storage, storage.pin(path)
