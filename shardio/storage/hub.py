"""Datasets on the Hugging Face hub, which are only read.

`hf://datasets/org/name@revision/path` is a file of a commit. A branch or tag is looked up once,
when the URL is opened, and the path has the commit from then on: all processes read that commit,
however the branch moves. The version of a file is the digest that the hub gives, and for large
files the SHA-256 of their contents.

Large files come from another host by addresses that are signed for each request. The token goes to
the hub alone. The routes are those that https://huggingface.co/docs/hub/api documents.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, cast
from urllib.parse import quote, unquote, urlsplit

from shardio.checks import flag
from shardio.errors import UsageError, argument
from shardio.storage.base import FileStat
from shardio.storage.http import HttpClient, WebStorage, check_text, split_url
from shardio.storage.remote import Client, RequestError, check_options, names_of_options
from shardio.storage.web import Answer

_ENDPOINT = "https://huggingface.co"
_URL = re.compile(
    r"hf://datasets/(?P<repo>[^/@]+/[^/@]+)"
    r"(?:@(?P<revision>refs/(?:convert|pr)/[^/]+|[^/]+))?(?:/(?P<path>.*))?",
    re.IGNORECASE | re.DOTALL,
)
_COMMIT = re.compile(r"[0-9a-f]{40}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_LINK = re.compile(r'<([^>]*)>\s*;\s*rel="?next"?')
_RESET = re.compile(r"\bt=(\d{1,6})\b")
_MOST_ANSWER = 64 << 20  # bytes of an answer in JSON


class HubPath(NamedTuple):
    """Path of a file on the hub.

    Attributes:
        repo: name of the dataset, with its owner.
        revision: branch, tag or commit; a slash in its name is written as %2F.
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
    path = (found["path"] or "").strip("/")
    return HubPath(found["repo"], found["revision"] or "main", path)


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

    def pin(self, path: str) -> str:
        """Return a path with the commit in place of a branch or tag.

        Raises:
            RemoteError: the hub does not answer, or there is no such dataset or revision.
        """
        return self._try(path, lambda client: str(cast(HubClient, client).look_up(path)))


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
    check_options(names_of_options(HubStorage), options)
    storage = HubStorage(**options)
    return storage, storage.pin(path)


class HubClient(HttpClient):
    """Requests to the hub; see shardio.storage.remote.Client.

    Args:
        storage: storage of the files.
    """

    asks_for_versions = False  # the paths name commits

    def __init__(self, storage: HubStorage) -> None:
        super().__init__(storage)
        self._address = storage.address()
        self._commits: dict[tuple[str, str], str] = {}
        own = storage.anon or "Authorization" in self._secret
        self._token = None if own else find_token()
        if self._token:
            self._secret["Authorization"] = f"Bearer {self._token}"

    def look_up(self, path: str) -> HubPath:
        """Return a path whose revision is a commit, that of a branch as it is now."""
        repo, revision, name = parse(path)
        if _COMMIT.fullmatch(revision):
            return HubPath(repo, revision, name)
        said = self._json(f"{self._api(repo)}/revision/{_quoted(revision)}?expand=sha")[0]
        commit = said.get("sha") if isinstance(said, dict) else None
        if not (isinstance(commit, str) and _COMMIT.fullmatch(commit)):
            raise RequestError("refused", "the hub does not name the commit of the revision")
        return HubPath(repo, commit, name)

    def pinned(self, path: str) -> HubPath:
        """Return a path whose revision is a commit; a branch is looked up once."""
        repo, revision, name = parse(path)
        if (repo, revision) not in self._commits:
            self._commits[repo, revision] = self.look_up(path).revision
        return HubPath(repo, self._commits[repo, revision], name)

    def url_of(self, path: str) -> str:
        """Return the URL to request for a path."""
        repo, commit, name = self.pinned(path)
        if not name:
            raise RequestError("missing", "it is a dataset, not a file")
        return f"{self._address}/datasets/{quote(repo)}/resolve/{commit}/{quote(name)}"

    def stat(self, path: str, /) -> FileStat:
        """Measure an object; the hub answers, and not the host of the contents."""
        with closing(self.ask("HEAD", self.url_of(path), leaves=False)) as answer:
            sizes = [each["X-Linked-Size"] for each in _all(answer) if "X-Linked-Size" in each]
            size = sizes[0] if sizes else answer.headers.get("Content-Length", "")
            version = self.version_of(answer)
        if not (size.isascii() and size.isdigit()):
            raise RequestError("refused", "the hub does not say how long the file is")
        return FileStat(int(size), version, version if _SHA256.fullmatch(version) else None)

    def version_of(self, answer: Answer) -> str:
        """Return the digest of an answer's object, as the hub gives it."""
        for headers in _all(answer):  # the hub's come before those of another host
            for name in ("X-Linked-Etag", "ETag"):
                if name in headers:
                    return headers[name].removeprefix("W/").strip('"')
        raise RequestError("refused", "the hub gives no digest of the file")

    def names(self, folder: str, /) -> list[str]:
        """List what is in a folder, see Storage.names."""
        repo, commit, name = self.pinned(folder)
        place = f"{self._api(repo)}/tree/{commit}" + (f"/{quote(name)}" if name else "")
        found: list[str] = []
        query: str | None = ""
        while query is not None:
            try:
                entries, answer = self._json(place + query)
            except RequestError as error:
                if error.reason == "missing" and not query:
                    return []
                raise
            try:
                found += [str(entry["path"]).rpartition("/")[2] for entry in entries]
            except (TypeError, KeyError) as error:
                raise RequestError("refused", "the hub lists something else than files") from error
            link = _LINK.search(answer.headers.get("Link", ""))
            following = link and "?" + urlsplit(link[1]).query
            if following == query:
                raise RequestError("refused", "the hub's list of files does not end")
            query = following
        return found

    def fault(self, answer: Answer) -> RequestError:
        """Make the error of a status, with the hub's own name of it."""
        error = super().fault(answer)
        if code := answer.headers.get("X-Error-Code"):
            error.detail = code
        if error.status == 401:
            error.detail = "the token is wrong, or there is no such dataset that it may see"
            if self._token not in (None, find_token()):  # a program has renewed it
                error.reason = "expired"
        reset = _RESET.search(answer.headers.get("RateLimit", ""))
        if error.reason == "busy" and error.retry_after is None and reset:
            error.retry_after = float(reset[1])
        return error

    def _api(self, repo: str) -> str:
        return f"{self._address}/api/datasets/{quote(repo)}"

    def _json(self, url: str) -> tuple[Any, Answer]:
        """Ask the hub itself for JSON."""
        answer = self.ask("GET", url, leaves=False)
        try:
            return json.loads(answer.read(_MOST_ANSWER)), answer
        except (ValueError, RecursionError) as error:
            raise RequestError("refused", "the hub's answer is no JSON") from error


def find_token() -> str | None:
    """Return the token that the environment has for the hub, or the file that `hf` writes."""
    if os.environ.get("HF_HUB_DISABLE_IMPLICIT_TOKEN", "").upper() in ("1", "ON", "YES", "TRUE"):
        return None
    token = os.environ.get("HF_TOKEN") or os.environ.get("HUGGING_FACE_HUB_TOKEN")
    if not token:
        caches = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
        home = Path(os.environ.get("HF_HOME") or Path(caches) / "huggingface")
        file = Path(os.environ.get("HF_TOKEN_PATH") or home / "token").expanduser()
        try:
            token = file.read_text("utf-8")
        except (OSError, ValueError):
            return None
    token = token.strip()
    check_text("HF_TOKEN", token)
    return token or None


def _quoted(revision: str) -> str:
    return quote(unquote(revision), safe="")


def _all(answer: Answer) -> tuple[Mapping[str, str], ...]:
    return (*answer.hops, answer.headers)
