"""Files behind HTTP and HTTPS, which are read only.

A URL is split once: user name, password and query are secrets of the storage, and the rest is the
path, decoded, so that names in a folder are appended as they are. Requests encode it again.

Redirects are followed by hand, since a server must not choose where a request with credentials
goes. Another origin (scheme, host and port) gets no headers but those that say which bytes are
meant. Addresses that are not public are refused, unless the user named the host; the address that
was checked is the one that is connected to.

Bytes are those that the server stores: no compression is asked for, and none is undone. Pools of
connections keep them open; `Client` says who makes attempts.
"""

from __future__ import annotations

import base64
import re
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, fields
from http import HTTPStatus
from typing import Any, ClassVar, cast
from urllib.parse import quote, unquote, urlsplit
from urllib.request import getproxies, proxy_bypass

import urllib3
from urllib3.exceptions import (
    ConnectTimeoutError,
    NewConnectionError,
)

from shardio.checks import whole_number
from shardio.errors import UsageError, argument
from shardio.storage.base import FileStat
from shardio.storage.remote import (
    MOST_REQUESTS,
    Body,
    Client,
    ReadOnlyClient,
    RemoteStorage,
    RequestError,
    check_options,
    names_of_options,
    reason_of,
    refuse_other,
    retry_seconds,
)
from shardio.storage.web import (
    PORTS,
    Answer,
    failures,
    make_context,
    make_proxy,
    origin_of,
    public_addresses,
    redirected,
)

_NO_RETRIES = urllib3.Retry(total=False)
_MOST_REDIRECTS = 5
_REDIRECTS = (301, 302, 303, 307, 308)
_REQUEST_IDS = ("X-Amz-Request-Id", "X-Ms-Request-Id", "X-Request-Id", "X-Amz-Cf-Id", "CF-Ray")
_OWN_HEADERS = frozenset(
    {
        *("accept-encoding", "connection", "content-length", "expect", "host", "if-match", "range"),
        *("if-range", "if-none-match", "te", "transfer-encoding", "upgrade"),
    }
)
_HEADER = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # its name
_LEAST = 1 << 16  # bytes that are waited for
_GATHERING = 0.05  # seconds in which more are, as each piece that is given on costs time


@dataclass(frozen=True, kw_only=True)
class WebStorage(RemoteStorage):
    """A storage behind HTTP that is only read.

    Attributes:
        headers: further headers of every request.
        token: token that the server gave ("Bearer").
        ca_bundle: path of the certificates to trust instead of the system's; by default those of
            SSL_CERT_FILE or REQUESTS_CA_BUNDLE.
        connections: maximum number of connections to a server at once.
        trusted_hosts: names of the hosts that a redirect may lead to though their addresses are
            not public.
    """

    headers: Mapping[str, str] | tuple[tuple[str, str], ...] = field(default=(), repr=False)
    token: str | None = field(default=None, repr=False)
    ca_bundle: str | None = None
    connections: int = MOST_REQUESTS
    trusted_hosts: Sequence[str] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        whole_number("connections", self.connections, least=1)
        for each in fields(self):
            if str(each.type).startswith("str"):
                check_text(each.name, getattr(self, each.name))
        if isinstance(self.trusted_hosts, str):
            raise UsageError("it must be a list of names", where=argument("trusted_hosts"))
        hosts = tuple(sorted({str(host).lower() for host in self.trusted_hosts}))
        object.__setattr__(self, "trusted_hosts", hosts)
        object.__setattr__(self, "headers", _checked_headers(self.headers))
        if len(self.credentials()) > 1:
            raise UsageError(
                "give one of a token, a user with a password, and a header Authorization",
                where=argument("storage_options"),
            )

    @property
    def can_write(self) -> bool:
        """Whether files are published and removed: never."""
        return False

    def credentials(self) -> list[str]:
        """Return the values of the header Authorization, of which there may be one."""
        given = [value for name, value in self._pairs() if name.lower() == "authorization"]
        return given if self.token is None else [*given, f"Bearer {self.token}"]

    def secret_headers(self) -> dict[str, str]:
        """Return the headers that no other origin gets."""
        own = self.credentials()
        others = {name: text for name, text in self._pairs() if name.lower() != "authorization"}
        return {**others, "Authorization": own[0]} if own else others

    def _pairs(self) -> tuple[tuple[str, str], ...]:
        return cast(tuple[tuple[str, str], ...], self.headers)  # since it was made


@dataclass(frozen=True, kw_only=True)
class HttpStorage(WebStorage):
    """Files by their URLs, which are only read; see WebStorage.

    Attributes:
        user: name of the user.
        password: password of the user.
        query: query that every URL ends with, as one that was signed.
    """

    can_list: ClassVar[bool] = False

    user: str | None = field(default=None, repr=False)
    password: str | None = field(default=None, repr=False)
    query: str = field(default="", repr=False)

    def credentials(self) -> list[str]:
        """Return the values of the header Authorization, of which there may be one."""
        if self.user is None and self.password is None:
            return super().credentials()
        pair = base64.b64encode(f"{self.user or ''}:{self.password or ''}".encode())
        return [*super().credentials(), f"Basic {pair.decode()}"]

    def connect(self) -> Client:
        """Make a client."""
        return HttpClient(self, self.query)


def open_url(url: str, options: Mapping[str, Any]) -> tuple[HttpStorage, str]:
    """Return the storage of a URL, and the URL without its secrets.

    Args:
        url: URL as the user writes it.
        options: attributes of HttpStorage.

    Raises:
        UsageError: the URL or an option is invalid.
    """
    path, found = split_url(url)
    check_options(names_of_options(HttpStorage), options)
    if twice := found.keys() & options.keys():
        raise UsageError(
            f"{' and '.join(sorted(twice))} stand both in the URL and in the options",
            where=path,
            remedy="leave one out",
        )
    return HttpStorage(**{**options, **found}), path


def split_url(url: str) -> tuple[str, dict[str, str]]:
    """Split a URL into what is secret and what is not.

    Returns:
        The URL without secrets, decoded; and those of user, password and query that it has.

    Raises:
        UsageError: it has no host, an invalid port, a fragment or an encoded slash.
    """
    scheme, _, rest = url.partition("://")
    _, mark, path = re.split(r"[?#]", rest, maxsplit=1)[0].partition("/")
    try:
        parts = urlsplit(url)
        origin = origin_of(url)
    except ValueError:  # whose text has the URL
        raise UsageError(
            "the URL is not valid",
            where=f"{scheme}://…",  # a password with a slash makes the rest unclear
            remedy="check its host and port, and write special characters of a password as %XX",
        ) from None
    if "#" in rest:
        raise UsageError("it must have no fragment", where=url, remedy="write # as %23")
    if "%2f" in path.lower():
        raise UsageError("its path must have no encoded slash (%2F)", where=url)
    found = {"user": parts.username, "password": parts.password}
    secrets = {name: unquote(value) for name, value in found.items() if value is not None}
    if parts.query:
        secrets["query"] = parts.query
    return f"{origin.url}{mark}{unquote(path, errors='surrogateescape')}", secrets


def check_text(name: str, value: object) -> None:
    """Raise UsageError, which does not show the value, unless it is None or a text of one line."""
    if value is not None and not (isinstance(value, str) and value.isprintable()):
        raise UsageError("it must be a text of one line", where=argument(name))


def _checked_headers(headers: object) -> tuple[tuple[str, str], ...]:
    """Return headers in an order of their own; no error shows a value."""
    wanted = UsageError("it must be a mapping of names to texts", where=argument("headers"))
    if not isinstance(headers, tuple | Mapping):
        raise wanted
    pairs = tuple(headers.items()) if isinstance(headers, Mapping) else headers
    for name, value in pairs:
        good = isinstance(name, str) and _HEADER.fullmatch(name)
        if not (good and isinstance(value, str) and value.isascii() and value.isprintable()):
            raise wanted
        if name.lower() in _OWN_HEADERS:
            raise UsageError(f"shardio sets {name} itself", where=argument("headers"))
    return tuple(sorted(pairs))


class HttpClient(ReadOnlyClient):
    """Requests to the servers of a storage; see shardio.storage.remote.Client.

    Args:
        storage: options, and secrets for the servers that paths name.
        query: query that every URL ends with.
    """

    asks_for_versions: ClassVar[bool] = True
    """Whether If-Match is sent."""

    def __init__(self, storage: WebStorage, query: str = "") -> None:
        self._query = query
        self._secret = storage.secret_headers()
        self._trusted = frozenset(storage.trusted_hosts)
        self._timeout = storage.timeout
        self._ca_bundle = storage.ca_bundle
        self._options: dict[str, Any] = {
            "maxsize": storage.connections,
            "block": True,
            "timeout": urllib3.Timeout(connect=storage.timeout, read=storage.timeout),
        }
        self._managers = dict[str, urllib3.PoolManager]()
        self._proxies = {
            scheme: make_proxy(url, self._options_of("https"))
            for scheme, url in getproxies().items()
            if scheme in PORTS
        }

    def _options_of(self, scheme: str) -> dict[str, Any]:
        """Return the options of pools; certificates, which take long to read, are for https."""
        if scheme == "http":
            return self._options
        return {**self._options, "ssl_context": make_context(self._ca_bundle)}

    def _direct(self, scheme: str) -> urllib3.PoolManager:
        """Return the pools of the servers that are reached without a proxy."""
        if scheme not in self._managers:
            self._managers.setdefault(scheme, urllib3.PoolManager(**self._options_of(scheme)))
        return self._managers[scheme]

    def url_of(self, path: str) -> str:
        """Return the URL to request for a path."""
        scheme, _, rest = path.partition("://")
        place, mark, name = rest.partition("/")
        url = f"{scheme}://{place}{mark}{quote(name, errors='surrogateescape')}"
        return f"{url}?{self._query}" if self._query else url

    def version_of(self, answer: Answer) -> str:
        """Return the version of the object of an answer."""
        return answer.version()

    def stat(self, path: str, /) -> FileStat:
        """Measure an object."""
        # Signatures are for one method, and some servers know GET alone.
        others = (405, 501, *((400, 403) if self._query else ()))
        try:
            with closing(self.ask("HEAD", self.url_of(path))) as answer:
                if "Content-Length" in answer.headers:
                    return FileStat(answer.size(), self.version_of(answer))
        except RequestError as error:
            if error.status not in others:
                raise
        try:
            with closing(self.ask("GET", self.url_of(path), {"Range": "bytes=0-0"})) as answer:
                return FileStat(answer.size(), self.version_of(answer))
        except RequestError as error:
            if error.status != 416:  # it is empty
                raise
        with closing(self.ask("GET", self.url_of(path))) as answer:
            return FileStat(answer.size(), self.version_of(answer))

    def get(self, path: str, start: int, end: int | None, version: str | None, /) -> Body:
        """Ask for the bytes [start, end) of an object."""
        headers = {}
        if start or end is not None:
            headers["Range"] = f"bytes={start}-{'' if end is None else end - 1}"
        if self.asks_for_versions and version is not None and version.startswith('"'):
            headers["If-Match"] = version
        try:
            answer = self.ask("GET", self.url_of(path), headers)
        except RequestError as error:
            if error.status == 416 and version is not None:
                raise RequestError("changed", "it is shorter", status=416) from error
            raise
        try:
            total = answer.size()
            found = self.version_of(answer)
            stop = total if end is None else min(end, total)
            _compare(answer, found, version, start, stop)
        except BaseException:
            answer.close()
            raise
        return HttpBody(answer, total, found, stop - start)

    def names(self, folder: str, /) -> list[str]:
        """Refuse to list: HTTP has no folders."""
        kind = folder.partition(":")[0]
        raise RequestError("refused", f"{kind} servers do not say what is in a folder")

    def ask(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str] | None = None,
        *,
        leaves: bool = True,
    ) -> Answer:
        """Send a request, and follow redirects.

        Args:
            method: "GET" or "HEAD".
            url: URL of a server that the user named.
            headers: further headers, which are not secret.
            leaves: whether redirects to another origin are followed; else that is the answer.

        Raises:
            RequestError: the answer is none of the object, or a redirect is not followed.
        """
        named = at = origin_of(url)
        plain = {"User-Agent": "shardio", "Accept-Encoding": "identity", **(headers or {})}
        secret = self._secret
        hops = list[Mapping[str, str]]()
        while True:
            response = self._send(method, url, {**secret, **plain}, guarded=at.host != named.host)
            answer = Answer(response.status, response.headers, tuple(hops), response)
            if answer.status not in _REDIRECTS:
                break
            try:
                target = redirected(url, answer)
            except BaseException:
                answer.close()
                raise
            at = origin_of(target)
            if at != named and not leaves:
                return answer
            answer.close()
            hops.append(answer.headers)
            if len(hops) > _MOST_REDIRECTS:
                raise RequestError("refused", f"it redirects more than {_MOST_REDIRECTS} times")
            if at != named:
                secret = {}
            url = target
        if answer.status in (200, 206):
            return answer
        answer.close()
        raise self.fault(answer)

    def fault(self, answer: Answer) -> RequestError:
        """Make the error of a status."""
        status = answer.status
        known = status in HTTPStatus._value2member_map_
        ids = (answer.headers[name] for name in _REQUEST_IDS if name in answer.headers)
        return RequestError(
            reason_of(status, "changed"),
            HTTPStatus(status).phrase if known else "",
            status=status,
            request_id=next(ids, None),
            retry_after=retry_seconds(answer.headers.get("Retry-After")),
        )

    def _send(
        self, method: str, url: str, headers: Mapping[str, str], *, guarded: bool
    ) -> urllib3.BaseHTTPResponse:
        """Send one request.

        Args:
            method: "GET" or "HEAD".
            url: whole URL.
            headers: headers.
            guarded: whether the address must be public.
        """
        origin = origin_of(url)
        target = url.removeprefix(origin.url)
        guarded = guarded and origin.host not in self._trusted
        proxy = self._proxies.get(origin.scheme)
        if proxy is not None and proxy_bypass(origin.netloc):
            proxy = None
        options: dict[str, Any] = {
            "headers": headers,
            "redirect": False,
            "retries": _NO_RETRIES,
            "preload_content": False,
            "decode_content": False,
        }
        addresses = public_addresses(origin, resolved=proxy is None) if guarded else []
        direct = self._direct(origin.scheme)
        with failures(origin):
            if proxy is not None:
                return proxy.urlopen(method, url, **options)
            if not guarded:
                return direct.urlopen(method, url, **options)
            options["headers"] = {**headers, "Host": origin.netloc}
            for address in addresses:
                pool = direct.connection_from_host(
                    address, origin.port, origin.scheme, {"server_hostname": origin.host}
                )
                try:
                    return pool.urlopen(method, target, **options)
                except (ConnectTimeoutError, NewConnectionError):
                    if address == addresses[-1]:
                        raise
        raise AssertionError  # there are addresses


def _compare(answer: Answer, found: str, version: str | None, start: int, stop: int) -> None:
    """Raise RequestError if an answer is not of the version and the bytes that are wanted."""
    refuse_other(version, found)
    if answer.range()[:2] == (start, stop):
        return
    if answer.status == 200:
        raise RequestError("unranged", "the server ignores ranges")
    raise RequestError("refused", "the server sends other bytes than asked for")


class HttpBody:
    """Bytes of an answer; see shardio.storage.remote.Body.

    Args:
        answer: answer with the bytes.
        total: size of the whole object.
        version: version of the object.
        left: number of bytes to read; more are not read even if they come.
    """

    def __init__(self, answer: Answer, total: int, version: str, left: int) -> None:
        self.total, self.version = total, version
        self._answer = answer
        self._left = left

    def readinto(self, buffer: memoryview, /) -> int:
        """Read some bytes; 0 at the end."""
        most, size = min(len(buffer), self._left), 0
        latest = time.monotonic() + _GATHERING
        try:
            with failures(None):
                while size < most and (not size or time.monotonic() < latest):
                    came = self._answer.readinto(buffer[size : min(size + _LEAST, most)])
                    size += came
                    if not came:
                        break
        except RequestError:
            if not size:  # else the next call fails
                raise
        self._left -= size
        return size

    def close(self) -> None:
        """Give the connection back, or close it if bytes are left."""
        self._answer.close()
