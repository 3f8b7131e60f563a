"""Storage servers for tests, started when a test first needs them, ended with the tests.

Each pytest process has its own. A test that switches faults on does so on an `Nginx` of its own,
which `serve` starts in milliseconds.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from servers import Azurite, FakeGcs, Hub, Missing, Nginx, SeaweedS3, Server
from tests.remote import shards

# gcsfs asks by gRPC what kind a bucket is, and waits for a minute before it goes on without an
# answer. The emulator has no gRPC.
os.environ["GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT"] = "false"


@contextlib.contextmanager
def skipping() -> Iterator[None]:
    """Skip the test if a server's program is not installed."""
    try:
        yield
    except Missing as missing:
        pytest.skip(str(missing))


def running(server: Server) -> Iterator[Any]:
    """Start a server, give it, and end it."""
    with skipping():
        server.start()
    try:
        yield server
    finally:
        server.stop()


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SeaweedS3]:
    """An S3 store; take a bucket of your own with `s3.bucket()`."""
    yield from running(SeaweedS3(tmp_path_factory.mktemp("s3")))


@pytest.fixture(scope="session")
def azure(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Azurite]:
    """Azure's emulator; take a container of your own with `azure.bucket()`."""
    yield from running(Azurite(tmp_path_factory.mktemp("azure")))


@pytest.fixture(scope="session")
def gcs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeGcs]:
    """Google's emulator; take a bucket of your own with `gcs.bucket()`."""
    yield from running(FakeGcs(tmp_path_factory.mktemp("gcs")))


@pytest.fixture
def serve(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Nginx]]:
    """Starts an Nginx with its arguments: serve(folder=…), serve(upstream=s3.url, tls=True)."""
    with contextlib.ExitStack() as stack:

        def start(**options: Any) -> Nginx:
            with skipping():
                return stack.enter_context(Nginx(tmp_path_factory.mktemp("web"), **options))

        yield start


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """8 shards of 8 samples of 20 KB."""
    return shards.make_set(tmp_path_factory.mktemp("set") / "out")


@pytest.fixture(scope="module")
def expected(out: Path) -> shards.Read:
    """The samples of that set."""
    return shards.local(out)


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    """An empty hub whose answers of the tree hold two entries each."""
    hub = Hub(tmp_path / "hub", page=2)
    with contextlib.ExitStack() as stack:
        with skipping():
            stack.enter_context(hub)
        yield hub
