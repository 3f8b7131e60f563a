"""What a request and its answer are: servers, addresses, certificates, failures.

Whatever decides where a request may go is here: `redirected` for URLs, `public_addresses` for the
addresses of hosts that a server chose, `make_context` for certificates. `failures` turns what
urllib3 raises into the reasons that shardio.storage.remote knows.
"""

from __future__ import annotations

import ipaddress
import os
import socket
import ssl
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from http.client import HTTPResponse
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote, unquote, urljoin, urlsplit

import urllib3
from urllib3.exceptions import (
    ConnectTimeoutError,
    HTTPError,
    NameResolutionError,
    NewConnectionError,
    ProxyError,
    ReadTimeoutError,
)

from shardio.errors import UsageError, argument
from shardio.storage.remote import RequestError, keep_logs_out, parse_range, unlogged

PORTS = {"http": 80, "https": 443}
"""Ports of schemes that are followed."""
_KEPT = "/%:@!$&'()*+,;=~?"  # what a redirect's path and query keep as it is
_MOST_DRAINED = 1 << 16  # bytes that are read to keep a connection
_NAT64 = ipaddress.ip_network("64:ff9b::/96")


class Origin(NamedTuple):
    """Server that a request goes to.

    Attributes:
        scheme: "http" or "https".
        host: name or address, in small letters.
        port: port.
    """

    scheme: str
    host: str
    port: int

    @property
    def netloc(self) -> str:
        """Return host and port as URLs have them."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == PORTS[self.scheme] else f"{host}:{self.port}"

    @property
    def url(self) -> str:
        """Return the URL without a path."""
        return f"{self.scheme}://{self.netloc}"


def origin_of(url: str) -> Origin:
    """Return the server of a URL; raises ValueError if there is none."""
    parts = urlsplit(url)
    scheme, port = parts.scheme.lower(), parts.port
    if not parts.hostname or scheme not in PORTS:
        raise ValueError
    host = parts.hostname.encode("idna").decode().lower()
    return Origin(scheme, host, PORTS[scheme] if port is None else port)


@dataclass(frozen=True)
class Answer:
    """Answer to a request, whose body is not read.

    Attributes:
        status: HTTP status.
        headers: headers.
        hops: headers of the redirects before.
        response: response; it must be closed.
    """

    status: int
    headers: Mapping[str, str]
    hops: tuple[Mapping[str, str], ...]
    response: urllib3.BaseHTTPResponse

    def size(self) -> int:
        """Return the size of the whole object.

        Raises:
            RequestError: the server does not say it, or sends something else than its bytes.
        """
        encoding = self.headers.get("Content-Encoding", "identity")
        if encoding.lower() != "identity":
            raise RequestError("refused", f"the answer is compressed ({encoding}) unasked")
        if self.status == 206:
            return self.range()[2]
        return _number(self.headers.get("Content-Length"), "how long the object is")

    def range(self) -> tuple[int, int, int]:
        """Return which bytes follow, as start and end, and the size of the whole object."""
        if self.status == 200:
            size = self.size()
            return 0, size, size
        return parse_range(self.headers.get("Content-Range"))

    def version(self) -> str:
        """Return the version of the object.

        Raises:
            RequestError: nothing tells versions apart.
        """
        if etag := self.headers.get("ETag"):
            return etag
        if changed := self.headers.get("Last-Modified"):
            return f"{changed}, {self.size()} bytes"
        raise RequestError(
            "refused",
            "the server sends neither ETag nor Last-Modified, so that a file that is replaced "
            "would go unnoticed",
        )

    def readinto(self, buffer: memoryview) -> int:
        """Read bytes of the body until the buffer is full or the body ends; return their number.

        They are read past urllib3 where that can be, as it makes a copy.

        Raises:
            HTTPError, OSError: the connection broke, or no byte came in time.
        """
        response = self.response
        body = getattr(response, "_fp", None)
        if not isinstance(body, HTTPResponse) or body.chunked or response.length_remaining is None:
            piece = response.read1(len(buffer))
            buffer[: len(piece)] = piece
            return len(piece)
        size = body.readinto(buffer)
        response.length_remaining -= size
        return size

    def read(self, most: int) -> bytes:
        """Read the body of an answer of the server itself, and close it.

        Raises:
            RequestError: it has more than `most` bytes, or the connection broke.
        """
        found = bytearray()
        with closing(self), failures(None):
            while piece := self.response.read1(most + 1 - len(found)):
                found += piece
                if len(found) > most:
                    raise RequestError("refused", f"an answer has more than {most} bytes")
        return bytes(found)

    def close(self) -> None:
        """Give the connection back; if many bytes are left, close it."""
        left = self.response.length_remaining
        with suppress(HTTPError, OSError):
            if left is not None and left <= _MOST_DRAINED:
                self.response.drain_conn()
            else:
                self.response.close()
        self.response.release_conn()


def _number(text: str | None, what: str) -> int:
    if text is None or not (text.isascii() and text.isdigit()):
        raise RequestError("refused", f"the server does not say {what}")
    return int(text)


def redirected(url: str, answer: Answer) -> str:
    """Return where a redirect leads.

    Args:
        url: URL that was asked for.
        answer: answer to it.

    Raises:
        RequestError: it must not be followed. The message has nothing of its query.
    """
    try:
        parts = urlsplit(urljoin(url, answer.headers.get("Location", "")))
        scheme = parts.scheme.lower()
        origin = origin_of(parts.geturl()) if scheme in PORTS else None
    except ValueError:
        raise RequestError(
            "refused", "it redirects to something that is no URL", status=answer.status
        ) from None
    if origin is None:
        what = f"it redirects to {scheme}:, which is not followed"
        raise RequestError("refused", what, status=answer.status)
    if scheme == "http" and url.startswith("https:"):
        raise RequestError("refused", "it redirects from https to http", status=answer.status)
    whole = origin.url + quote(parts.path or "/", safe=_KEPT)
    if whole == url.partition("?")[0] + "/":
        raise RequestError("missing", "it is a folder", status=answer.status)
    return whole + (f"?{quote(parts.query, safe=_KEPT)}" if parts.query else "")


def make_context(ca_bundle: str | None) -> ssl.SSLContext:
    """Make what checks certificates.

    Args:
        ca_bundle: path of the certificates to trust; None for those of the environment, or else of
            the system.

    Raises:
        UsageError: none can be read there.
    """
    named = ca_bundle or os.environ.get("SSL_CERT_FILE") or os.environ.get("REQUESTS_CA_BUNDLE")
    is_folder = named is not None and Path(named).is_dir()
    try:
        return ssl.create_default_context(
            cafile=None if is_folder else named, capath=named if is_folder else None
        )
    except OSError as error:
        raise UsageError(
            f"no certificates can be read there ({error.strerror or 'it holds none'})",
            where=argument("ca_bundle", named),
        ) from error


def make_proxy(url: str, options: Mapping[str, Any]) -> urllib3.ProxyManager:
    """Make the pool of a proxy.

    Args:
        url: URL of the proxy, as the environment has it.
        options: options of the pool.

    Raises:
        UsageError: it is no URL.
    """
    try:
        parts = urlsplit(url if "://" in url else f"http://{url}")
        user = ":".join(unquote(each) for each in (parts.username, parts.password) if each)
        headers = urllib3.make_headers(proxy_basic_auth=user) if user else None
        plain = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
        return urllib3.ProxyManager(plain, proxy_headers=headers, **options)
    except (ValueError, HTTPError):  # whose text may have a password
        raise UsageError(
            "the environment names a proxy that is no URL", remedy="check HTTPS_PROXY, HTTP_PROXY"
        ) from None


def public_addresses(origin: Origin, *, resolved: bool) -> list[str]:
    """Return the addresses of a host that a server chose.

    Args:
        origin: server.
        resolved: whether the name must be known here, as it need not where there is a proxy.

    Raises:
        RequestError: one is not public, or there is none.
    """
    try:
        found = socket.getaddrinfo(origin.host, origin.port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        if not resolved:
            return []
        raise RequestError("broken", f"it redirects to {origin.host}, which is unknown") from error
    addresses = list(dict.fromkeys(str(each[4][0]) for each in found))
    if not all(map(_is_public, addresses)):
        raise RequestError(
            "refused",
            f"it redirects to {origin.host}, whose address is not public; trusted_hosts can name "
            "that host",
        )
    return addresses


def _is_public(address: str) -> bool:
    """Tell whether an address is of the public internet; one in another counts itself."""
    found = ipaddress.ip_address(address)
    if isinstance(found, ipaddress.IPv6Address):
        inside = found.ipv4_mapped or found.sixtofour
        if found in _NAT64:
            inside = ipaddress.IPv4Address(int(found) & 0xFFFFFFFF)
        if inside is not None:
            return _is_public(str(inside))
    return found.is_global and not found.is_multicast and not found.is_reserved


@contextmanager
def failures(origin: Origin | None) -> Iterator[None]:
    """Turn what urllib3 raises into a RequestError, without texts that hold URLs.

    Args:
        origin: server of a request; None while a body is read.
    """
    with unlogged():
        try:
            yield
        except (HTTPError, OSError) as error:
            raise _failure(error, "" if origin is None else f" to {origin.host}") from error


def _failure(error: Exception, there: str) -> RequestError:
    causes = [*_causes(error)]
    for cause in causes:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return RequestError("untrusted", cause.verify_message)
    if isinstance(error, NameResolutionError):
        return RequestError("broken", "the name of the host is unknown")
    if isinstance(error, ProxyError):
        return RequestError("broken", "the proxy does not do what it is asked")
    if isinstance(error, ConnectTimeoutError) and not isinstance(error, NewConnectionError):
        return RequestError("broken", f"no connection{there} in time")
    if isinstance(error, ReadTimeoutError | TimeoutError):
        return RequestError("broken", "no byte came in time")
    said = next(
        (each.strerror for each in causes if isinstance(each, OSError) and each.strerror), ""
    )
    if any(isinstance(cause, ssl.SSLError) for cause in causes):
        said = "TLS fails"
    return RequestError("broken", f"the connection{there} broke{said and ': ' + said}")


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and what lies in it."""
    todo, seen = [error], set[int]()
    while todo:
        each = todo.pop()
        if id(each) in seen:
            continue
        seen.add(id(each))
        yield each
        inside = (each.__cause__, each.__context__, *each.args)
        todo += [one for one in inside if isinstance(one, BaseException)]


keep_logs_out("urllib3")  # it logs whole queries
