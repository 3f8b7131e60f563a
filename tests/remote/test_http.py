"""Files behind a real nginx: ranges, versions, faults, redirects, certificates, secrets."""

from __future__ import annotations

import hashlib
import itertools
import logging
import os
import pickle
import socket
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from torch.utils.data import DataLoader

import shardio
from servers import Nginx, get
from shardio.cli import commands
from shardio.errors import (
    RemoteChanged,
    RemoteDenied,
    RemoteError,
    RemoteMissing,
    RemoteUnreachable,
)
from shardio.packing.layout import LEDGERS
from shardio.storage import web as web_module
from shardio.storage.base import Storage
from shardio.storage.http import HttpStorage
from shardio.storage.location import Location, locate
from shardio.storage.remote import MOST_REQUESTS
from shardio.testing import StorageContract
from tests.remote.raw import RawServer

DATA = hashlib.shake_256(b"shardio").digest(3_000_000)
SECRETS = ("sesame", "alibaba", "X-Amz-Signature", "c2VzYW1l")
_times = itertools.count(1_700_000_000)

Serve = Callable[..., Nginx]


def place(folder: Path, name: str, data: bytes) -> None:
    """Put a file into a served folder, with a time of change that no other had."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(path.name + ".new")
    new.write_bytes(data)
    os.utime(new, (stamp := next(_times), stamp))
    new.rename(path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "www").mkdir()
    place(tmp_path / "www", "a.bin", DATA)
    return tmp_path / "www"


@pytest.fixture
def web(serve: Serve, folder: Path) -> Nginx:
    return serve(folder=folder)


def at(url: str, **options: Any) -> Location:
    return locate(url, options={"retries": 3, "timeout": 5.0, **options})


def read(location: Location, start: int = 0, end: int | None = None) -> bytes:
    """Read with as few requests as a download makes."""
    storage, found = location.storage, bytearray()
    assert isinstance(storage, HttpStorage)
    storage.download(location.path, start, end, None, found.extend)
    return bytes(found)


class TestHttp(StorageContract):
    writable = False
    root: Path

    @pytest.fixture
    def storage(self, serve: Serve, tmp_path: Path) -> Storage:
        type(self).root = tmp_path / "www"
        self.root.mkdir()
        type(self).url = serve(folder=self.root).url
        return HttpStorage()

    @pytest.fixture
    def folder(self, storage: Storage) -> str:
        del storage
        return f"{self.url}/folder"

    url: str

    def put(self, path: str, data: bytes) -> None:
        place(self.root, path.removeprefix(f"{self.url}/"), data)


# What a dataset and the commands read.


@pytest.fixture
def remote(serve: Serve, packed: Path) -> Nginx:
    return serve(folder=packed.parent)


def digests_of(dataset: shardio.ShardDataset, workers: int = 0) -> list[tuple[str, str]]:
    loader = DataLoader(dataset, batch_size=None, num_workers=workers)
    return [
        (key, hashlib.sha256(image.numpy().tobytes()).hexdigest())
        for batch in loader
        for key, image in zip(batch["__key__"], batch["image"], strict=True)
    ]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("end", ["", "/", "/shardio.json", "?sig=sesame"])
def test_batches_of_a_url_are_those_of_local_files(
    remote: Nginx, packed: Path, end: str, workers: int
) -> None:
    options: dict[str, Any] = {"batch_size": 50, "shuffle": True, "seed": 3}
    there = shardio.ShardDataset(f"{remote.url}/{packed.name}{end}", **options)
    here = shardio.ShardDataset(packed, **options)
    assert there.contents == here.contents
    assert digests_of(there, workers) == digests_of(here)


def test_a_dataset_of_a_signed_url_keeps_its_query_when_it_is_replaced(
    remote: Nginx, packed: Path
) -> None:
    dataset = shardio.ShardDataset(f"{remote.url}/{packed.name}?sig=sesame", batch_size=50)
    assert len(digests_of(dataset.replace(batch_size=10))) == 600
    assert "sesame" not in repr(dataset)
    assert all(request.target.endswith("?sig=sesame") for request in remote.requests())


@pytest.mark.parametrize(
    "command", [["info"], ["verify"], ["plan", "--batch-size", "4"]], ids=lambda command: command[0]
)
def test_commands_read_urls_and_show_no_secrets(
    remote: Nginx, packed: Path, command: list[str]
) -> None:
    name, *options = command
    there = remote.url.replace("://", "://alibaba:sesame@")
    said = [
        CliRunner().invoke(commands, [name, source, *options, *extra])
        for source in (f"{there}/{packed.name}?sig=sesame", str(packed))
        for extra in ([], ["--json"])
    ]
    assert [done.exit_code for done in said] == [0] * 4
    assert not any(secret in done.output for done in said for secret in SECRETS)
    if name != "plan":  # which says what each node fetches from a store
        assert len(said[0].output.splitlines()) == len(said[2].output.splitlines())


def test_verify_finds_a_missing_and_a_damaged_shard(
    serve: Serve, tmp_path: Path, images: Path
) -> None:
    shardio.pack(images, tmp_path / "out", shards=4)
    url = f"{serve(folder=tmp_path).url}/out"
    assert shardio.verify(url, jobs=1).sound
    (tmp_path / "out/shard-000001.tar").unlink()
    data = bytearray((tmp_path / "out/shard-000002.tar").read_bytes())
    data[5000] ^= 1
    place(tmp_path / "out", "shard-000002.tar", bytes(data))
    found = {finding.shard: finding.what for finding in shardio.verify(url, jobs=1).problems}
    assert "the shard is missing" in found[f"{url}/shard-000001.tar"]
    assert f"{url}/shard-000002.tar" in found
    assert not any("000000" in shard or "000003" in shard for shard in found)
    with pytest.raises(RemoteMissing, match="shard-000001"):
        [*shardio.ShardDataset(url, batch_size=50)]


def test_info_counts_the_ledgers_of_a_url(serve: Serve, tmp_path: Path, images: Path) -> None:
    summary = shardio.pack(images, tmp_path / "out", shards=2)
    (tmp_path / "out" / LEDGERS[0]).write_text("{}\n{}\n")
    url = f"{serve(folder=tmp_path).url}/out"
    there, here = shardio.info(url), shardio.info(tmp_path / "out")
    assert there.samples == here.samples == summary.samples
    assert there.ledgers == here.ledgers != {}


def test_packing_to_a_url_says_that_it_is_read_only(web: Nginx, images: Path) -> None:
    with pytest.raises(RemoteDenied, match=r"http storages are read-only.*to a local folder"):
        shardio.pack(images, f"{web.url}/out", shards=2)
    assert {request.method for request in web.requests()} <= {"GET", "HEAD"}


# Requests.


def test_a_whole_object_is_asked_for_without_a_range(web: Nginx) -> None:
    assert read(at(f"{web.url}/a.bin")) == DATA
    (request,) = web.requests()
    assert request.method == "GET"
    assert "range" not in request.headers
    assert request.headers["accept-encoding"] == "identity"


def test_ranges_name_the_version_that_they_are_of(web: Nginx) -> None:
    file = at(f"{web.url}/a.bin").open()
    assert file.read(2_000_000, 10) == DATA[2_000_000:2_000_010]
    request = web.requests()[-1]
    assert request.headers["range"] == "bytes=2000000-2000009"
    assert request.headers["if-match"] == file.version


def test_a_weak_etag_is_compared_and_not_asked_for(web: Nginx) -> None:
    web.fail("*.bin", headers={"ETag": 'W/"x"'})
    file = at(f"{web.url}/a.bin").open()
    assert file.version == 'W/"x"'
    assert file.read(2_000_000, 10) == DATA[2_000_000:2_000_010]
    assert "if-match" not in web.requests()[-1].headers
    web.fail("*.bin", headers={"ETag": 'W/"y"'})
    with pytest.raises(RemoteChanged):
        file.read(2_000_000, 10)


def test_without_an_etag_time_and_size_tell_versions_apart(web: Nginx, folder: Path) -> None:
    web.fail("*.bin", headers={"ETag": ""})
    file = at(f"{web.url}/a.bin").open()
    assert file.version.endswith(" GMT, 3000000 bytes")
    assert file.read(2_000_000, 10) == DATA[2_000_000:2_000_010]
    place(folder, "a.bin", DATA[::-1])
    with pytest.raises(RemoteChanged):
        file.read(2_000_000, 10)


def test_a_server_that_tells_no_versions_apart_is_refused(web: Nginx) -> None:
    web.fail("*.bin", headers={"ETag": "", "Last-Modified": ""})
    with pytest.raises(RemoteError, match="neither ETag nor Last-Modified"):
        at(f"{web.url}/a.bin").open()


def test_connections_are_kept() -> None:
    with RawServer([answer(DATA[:1000])] * 20) as raw:
        location = at(f"{raw.url}/a.bin")
        for _ in range(20):
            read(location)
        assert raw.connections == 1


@pytest.mark.parametrize("size", [1, 65_535, 1 << 20, (1 << 20) + 1, 3 << 20])
def test_complaint_webdataset_145_sizes_that_are_multiples_of_the_buffer_end(
    web: Nginx, folder: Path, size: int
) -> None:
    place(folder, "b.bin", (DATA * 2)[:size])
    assert read(at(f"{web.url}/b.bin")) == (DATA * 2)[:size]


def test_an_empty_file_is_read(web: Nginx, folder: Path) -> None:
    place(folder, "empty.bin", b"")
    location = at(f"{web.url}/empty.bin")
    assert location.open().size == 0
    assert read(location) == b""


@pytest.mark.parametrize("status", [405, 501])
def test_servers_without_head_are_asked_by_get(web: Nginx, folder: Path, status: int) -> None:
    place(folder, "empty.bin", b"")
    web.fail("*", method="HEAD", status=status)
    for name, size in (("a.bin", len(DATA)), ("empty.bin", 0)):
        found = at(f"{web.url}/{name}").find()
        assert found is not None
        assert found.size == size


def test_a_signature_for_get_alone_is_enough(web: Nginx) -> None:
    web.fail("*", method="HEAD", status=403)
    found = at(f"{web.url}/a.bin?X-Amz-Signature=sesame").find()
    assert found is not None
    assert found.size == len(DATA)
    with pytest.raises(RemoteDenied):
        at(f"{web.url}/a.bin").find()


def test_a_folder_is_no_file_even_with_an_index_page(web: Nginx, folder: Path) -> None:
    place(folder, "inside/index.html", b"<html>")
    assert not at(f"{web.url}/inside").is_file()


def test_names_with_special_characters_are_found(web: Nginx, folder: Path) -> None:
    place(folder, "a b#c?é%41.bin", b"x")
    url = f"{web.url}/a%20b%23c%3F%C3%A9%2541.bin"
    assert read(at(url)) == b"x"
    assert (at(web.url) / "a b#c?é%41.bin").is_file()


# Complaints about others.


@pytest.mark.parametrize("cut", [0, 1, 70_000, 2_500_000])
def test_complaint_webdataset_345_and_473_a_body_that_is_cut_goes_on(web: Nginx, cut: int) -> None:
    web.fail("*.bin", cut=cut, times=2)
    assert read(at(f"{web.url}/a.bin")) == DATA
    ranges = [request.headers.get("range") for request in web.requests()]
    assert ranges[0] is None
    if cut > 1 << 16:
        assert ranges[-1] not in (None, "bytes=0-")
        assert "if-match" in web.requests()[-1].headers


def test_complaint_webdataset_432_a_truncated_stream_is_never_read_as_data(web: Nginx) -> None:
    web.fail("*.bin", cut=0)
    with pytest.raises(RemoteUnreachable, match="4 times in a row"):
        read(at(f"{web.url}/a.bin"))


def test_complaint_webdataset_411_leaving_the_loop_early_is_silent(
    remote: Nginx, packed: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for _ in range(3):
        for _ in shardio.ShardDataset(f"{remote.url}/{packed.name}", batch_size=10, shuffle=True):
            break
    said = capfd.readouterr()
    assert (said.out, said.err) == ("", "")


def test_complaint_streaming_310_denied_is_not_missing(web: Nginx) -> None:
    for status, kind in ((401, RemoteDenied), (403, RemoteDenied), (404, RemoteMissing)):
        web.fail("*", status=status)
        with pytest.raises(kind) as caught:
            at(f"{web.url}/a.bin").open()
        assert caught.value.status == status
    assert len(web.requests()) == 3
    web.fail("*", status=403)
    with pytest.raises(RemoteDenied):
        at(f"{web.url}/a.bin").is_file()


@pytest.mark.parametrize("date", [False, True])
def test_complaint_datasets_7506_retry_after_is_honoured(web: Nginx, date: bool) -> None:
    wish = formatdate(time.time() + 2.9, usegmt=True) if date else 1.5
    web.fail("*", status=429, times=1, retry_after=wish)
    begin = time.monotonic()
    assert read(at(f"{web.url}/a.bin")) == DATA
    assert time.monotonic() - begin >= 1.4
    assert len(web.requests()) == 2


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504])
def test_complaint_tensorflow_io_1953_what_passes_is_tried_again(web: Nginx, status: int) -> None:
    web.fail("*", status=status, times=3)
    assert read(at(f"{web.url}/a.bin")) == DATA
    assert len(web.requests()) == 4
    web.fail("*", status=status)
    with pytest.raises(RemoteUnreachable, match="4 times in a row") as caught:
        read(at(f"{web.url}/a.bin"))
    assert caught.value.status == status


@pytest.mark.parametrize("status", [501, 505])
def test_what_does_not_pass_is_not_tried_again(web: Nginx, status: int) -> None:
    web.fail("*", status=status)
    with pytest.raises(RemoteError) as caught:
        at(f"{web.url}/a.bin").open()
    assert type(caught.value) is RemoteError
    assert "in a row" not in str(caught.value)


def test_complaint_datasets_7440_a_stall_is_not_a_missing_file(web: Nginx) -> None:
    location = at(f"{web.url}/a.bin", timeout=0.3)
    web.fail("*", stall=3.0, times=1)
    assert read(location) == DATA
    web.fail("*", stall=3.0, at=100_000, times=1)
    assert read(location) == DATA
    web.fail("*", stall=3.0)
    with pytest.raises(RemoteUnreachable, match="no byte came in time"):
        read(at(f"{web.url}/a.bin", timeout=0.1, retries=1))


def test_complaint_fsspec_1140_a_200_to_a_range_is_refused(web: Nginx) -> None:
    file = at(f"{web.url}/a.bin").open()
    web.fail("*.bin", ignore=["Range"])
    with pytest.raises(RemoteError, match=r"the server ignores ranges\); serve the files with"):
        file.read(2_000_000, 100)
    assert read(at(f"{web.url}/a.bin")) == DATA


def test_complaint_fsspec_1748_a_compressed_answer_is_refused(web: Nginx, folder: Path) -> None:
    place(folder, "text.bin", b"a" * 100_000)
    web.fail("*.bin", gzip=True, ignore=["Range"])
    with pytest.raises(RemoteError, match="compressed"):
        read(at(f"{web.url}/text.bin"))
    web.fail("*.bin", headers={"Content-Encoding": "gzip"})
    with pytest.raises(RemoteError, match="compressed"):
        read(at(f"{web.url}/text.bin"), 5, 10)


def test_complaint_fsspec_639_many_openers_at_once_read_the_same(web: Nginx) -> None:
    location = at(f"{web.url}/a.bin", connections=8)
    found: list[bytes] = []

    def read_all() -> None:
        found.append(read(location))

    threads = [threading.Thread(target=read_all) for _ in range(80)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [DATA] * 80


def test_complaint_s3fs_422_and_725_an_object_that_is_overwritten_is_an_error(
    web: Nginx, folder: Path
) -> None:
    file = at(f"{web.url}/a.bin").open()
    for data in (DATA[::-1], DATA[:10]):
        place(folder, "a.bin", data)
        with pytest.raises(RemoteChanged, match="was replaced"):
            file.read(2_000_000, 100)


@pytest.mark.parametrize("headers", [{}, {"ETag": ""}], ids=["ETag", "Last-Modified"])
def test_an_object_that_is_overwritten_in_mid_download_is_an_error(
    web: Nginx, folder: Path, headers: dict[str, str]
) -> None:
    web.fail("*.bin", headers=headers)
    web.fail("/a.bin", cut=100_000, times=1)
    storage, found = at(f"{web.url}/a.bin").storage, bytearray()
    assert isinstance(storage, HttpStorage)

    def sink(piece: memoryview) -> None:
        if not found:
            place(folder, "a.bin", DATA[::-1])
        found.extend(piece)

    with pytest.raises(RemoteChanged):
        storage.download(f"{web.url}/a.bin", 0, None, None, sink)
    assert DATA.startswith(found)


def test_complaint_s3fs_914_a_fork_after_reading_reads_on(remote: Nginx, packed: Path) -> None:
    dataset = shardio.ShardDataset(f"{remote.url}/{packed.name}", batch_size=50)
    expected = digests_of(dataset)
    assert dataset[3]["__key__"]
    assert digests_of(dataset, workers=2) == expected


def test_complaint_arrow_rs_654_no_empty_range_is_asked_for(web: Nginx) -> None:
    file = at(f"{web.url}/a.bin").open()
    web.forget()
    assert file.read(0, 0) == file.read(len(DATA), 0) == b""
    assert web.requests() == []


# What nginx cannot do.


def answer(
    body: bytes,
    headers: Sequence[str] = (),
    status: str = "200 OK",
    *,
    length: int | None = None,
    etag: str = '"1"',
) -> bytes:
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body) if length is None else length}"]
    lines += [f"ETag: {etag}"] if etag else []
    return "\r\n".join([*lines, *headers, "", ""]).encode() + body


def part(body: bytes, start: int, total: int) -> bytes:
    last = start + len(body) - 1
    return answer(body, [f"Content-Range: bytes {start}-{last}/{total}"], "206 Partial Content")


def test_a_range_of_other_bytes_is_refused() -> None:
    wrong = [
        part(DATA[11:21], 11, 1000),
        part(DATA[10:19], 10, 1000),
        part(DATA[10:21], 10, 1000),
        answer(DATA[10:20], ["Content-Range: bytes 10-19/*"], "206 Partial Content"),
        answer(DATA[10:20], [], "206 Partial Content"),
        answer(DATA[10:20], ["Content-Range: bytes 0x-19/20"], "206 Partial Content"),
        answer(b"", [], "204 No Content"),
        answer(b"", [], "304 Not Modified"),
    ]
    for one in wrong:
        with RawServer([one]) as raw, pytest.raises(RemoteError) as caught:
            read(at(f"{raw.url}/a", retries=0), 10, 20)
        assert type(caught.value) is RemoteError, one
    with RawServer([part(DATA[10:20], 10, 1000)]) as raw:
        assert read(at(f"{raw.url}/a"), 10, 20) == DATA[10:20]


def test_a_range_answered_by_more_bytes_is_capped() -> None:
    """The header says 100 bytes, 64 MB come: no more than 100 are read, nor is the connection."""
    head = part(DATA[:100], 0, 1000)
    with RawServer([head + bytes(64 << 20), part(DATA[:100], 0, 1000)]) as raw:
        location = at(f"{raw.url}/a")
        assert read(location, 0, 100) == DATA[:100]
        assert read(location, 0, 100) == DATA[:100]
        assert raw.connections == 2


def test_a_range_whose_length_is_greater_than_the_range_is_capped() -> None:
    head = answer(
        DATA[:100] + bytes(1 << 20), ["Content-Range: bytes 0-99/1000"], "206 Partial Content"
    )
    with RawServer([head] * 2) as raw:
        location = at(f"{raw.url}/a")
        assert read(location, 0, 100) == DATA[:100]
        assert read(location, 0, 100) == DATA[:100]


def test_a_body_has_no_more_than_was_asked_for() -> None:
    """Whoever reads it."""
    head = answer(DATA[:5000], ["Content-Range: bytes 0-99/9000"], "206 Partial Content")
    with RawServer([head]) as raw:
        body = HttpStorage().connect().get(f"{raw.url}/a", 0, 100, None)
        buffer = memoryview(bytearray(5000))
        assert body.readinto(buffer) == 100
        assert body.readinto(buffer) == 0
        body.close()


def test_a_body_without_a_length_is_refused() -> None:
    chunked = (
        b'HTTP/1.1 200 OK\r\nETag: "1"\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n'
    )
    endless = b'HTTP/1.1 200 OK\r\nETag: "1"\r\nConnection: close\r\n\r\nabc'
    for one in (chunked, endless):
        with RawServer([one]) as raw, pytest.raises(RemoteError, match="how long the object is"):
            read(at(f"{raw.url}/a", retries=0))
    with RawServer([answer(b"abc", ["Content-Length: 4"])]) as raw, pytest.raises(RemoteError):
        read(at(f"{raw.url}/a", retries=0))


def test_a_range_in_chunks_is_read() -> None:
    head = (
        b'HTTP/1.1 206 Partial Content\r\nETag: "1"\r\nTransfer-Encoding: chunked\r\n'
        b"Content-Range: bytes 2-4/9\r\n\r\n2\r\nab\r\n1\r\nc\r\n0\r\n\r\n"
    )
    with RawServer([head]) as raw:
        assert read(at(f"{raw.url}/a"), 2, 5) == b"abc"


@pytest.mark.parametrize(
    "said", [b"", b"garbage\r\n\r\n", b"HTTP/1.1 ", b"HTTP/1.1 abc\r\n\r\n", b"\0" * 100]
)
def test_what_is_no_http_is_an_error(said: bytes) -> None:
    with RawServer([said]) as raw, pytest.raises(RemoteUnreachable):
        read(at(f"{raw.url}/a", retries=0, timeout=0.5))


def test_416_says_that_the_object_is_shorter(web: Nginx) -> None:
    unsatisfied = answer(b"", ["Content-Range: bytes */3"], "416 Range Not Satisfiable")
    storage = HttpStorage(retries=0)
    with RawServer([unsatisfied]) as raw, pytest.raises(RemoteChanged):
        storage.download(f"{raw.url}/a", 5, 9, '"1"', bytes)
    with pytest.raises(RemoteError, match="416"):
        read(at(f"{web.url}/a.bin"), len(DATA), len(DATA) + 1)


def test_nobody_listens() -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{held.getsockname()[1]}/a"
        with pytest.raises(RemoteUnreachable, match="Connection refused"):
            read(at(url, retries=0))
    with pytest.raises(RemoteUnreachable, match="the name of the host is unknown"):
        read(at("http://nowhere.invalid/a", retries=0))


# Redirects.


def test_a_redirect_is_followed(web: Nginx, folder: Path) -> None:
    place(folder, "b.bin", b"other")
    web.fail("/a.bin", redirect="/b.bin")
    assert read(at(f"{web.url}/a.bin")) == b"other"
    for status in (301, 303, 307, 308):
        web.fail("/a.bin", redirect=f"{web.url}/b.bin", status=status)
        assert at(f"{web.url}/a.bin").open().read(1, 2) == b"th"


def test_redirects_without_an_end_are_refused(web: Nginx) -> None:
    web.fail("/a.bin", redirect="/a.bin")
    with pytest.raises(RemoteError, match="redirects more than 5 times"):
        read(at(f"{web.url}/a.bin"))
    assert len(web.requests()) == 6


@pytest.mark.parametrize(
    "target", ["file:///etc/passwd", "ftp://127.0.0.1/a", "data:text/plain,abc", "gopher://a/b"]
)
def test_a_redirect_to_another_scheme_is_refused(web: Nginx, target: str) -> None:
    web.fail("/a.bin", redirect=target)
    with pytest.raises(RemoteError, match=f"redirects to {target.partition(':')[0]}:"):
        read(at(f"{web.url}/a.bin"))
    assert len(web.requests()) == 1


@pytest.mark.parametrize("target", ["http://[::1/a", "http://a:b/c", "https://:1/"])
def test_a_redirect_to_no_url_is_refused(web: Nginx, target: str) -> None:
    web.fail("/a.bin", redirect=target)
    with pytest.raises(RemoteError, match="no URL"):
        read(at(f"{web.url}/a.bin"))


@pytest.mark.parametrize(
    "host",
    [
        *("169.254.169.254", "[fe80::1]", "[fd00:ec2::254]", "10.1.2.3", "192.168.0.1", "0.0.0.0"),  # noqa: S104
        *("172.16.0.1", "100.64.0.1", "[::ffff:169.254.169.254]", "[64:ff9b::a9fe:a9fe]", "[::]"),
        *("2852039166", "0xa9fea9fe", "169.254.43518", "[2002:a9fe:a9fe::]", "224.0.0.1"),
    ],
)
def test_a_redirect_to_a_metadata_address_is_refused(web: Nginx, host: str) -> None:
    web.fail("/a.bin", redirect=f"http://{host}/latest/meta-data/")
    with pytest.raises(RemoteError, match="whose address is not public"):
        read(at(f"{web.url}/a.bin"))


def test_a_redirect_to_a_name_of_a_metadata_address_is_refused(
    web: Nginx, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where one of its addresses is public."""
    real, tried = socket.getaddrinfo, []

    def resolve(host: Any, *arguments: Any, **options: Any) -> Any:
        if host == "metadata.example":
            return [
                item
                for address in ("93.184.216.34", "169.254.169.254")
                for item in real(address, *arguments, **options)
            ]
        return real(host, *arguments, **options)

    connect = socket.socket.connect

    def noted(self: socket.socket, address: Any) -> None:
        tried.append(address[0])
        connect(self, address)

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    monkeypatch.setattr(socket.socket, "connect", noted)
    web.fail("/a.bin", redirect="http://metadata.example/a")
    with pytest.raises(RemoteError, match=r"metadata\.example, whose address is not public"):
        read(at(f"{web.url}/a.bin"))
    assert {*tried} == {"127.0.0.1"}


def test_a_redirect_to_loopback_is_refused_unless_its_host_is_named(
    web: Nginx, folder: Path
) -> None:
    place(folder, "b.bin", b"other")
    web.fail("/a.bin", redirect=f"http://localhost:{web.port}/b.bin")
    with pytest.raises(RemoteError, match="localhost, whose address is not public"):
        read(at(f"{web.url}/a.bin"))
    assert read(at(f"{web.url}/a.bin", trusted_hosts=["LOCALHOST"])) == b"other"


def test_the_address_that_was_checked_is_the_one_that_is_connected_to(
    web: Nginx, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name that resolves to another address the second time gains nothing."""
    place(folder, "b.bin", b"other")
    asked = []
    real = socket.getaddrinfo

    def resolve(host: Any, *arguments: Any, **options: Any) -> Any:
        if host == "rebound.example":
            asked.append(host)
            host = "127.0.0.1" if len(asked) == 1 else "169.254.169.254"
        return real(host, *arguments, **options)

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    monkeypatch.setattr(web_module, "_is_public", lambda address: address == "127.0.0.1")
    web.fail("/a.bin", redirect=f"http://rebound.example:{web.port}/b.bin")
    assert read(at(f"{web.url}/a.bin")) == b"other"
    assert asked == ["rebound.example"]
    assert web.requests()[-1].headers["host"] == f"rebound.example:{web.port}"


def test_a_redirect_from_https_to_http_is_refused(serve: Serve, folder: Path) -> None:
    web = serve(folder=folder, tls=True)
    web.fail("/a.bin", redirect=f"http://localhost:{web.port}/b.bin")
    with pytest.raises(RemoteError, match="from https to http"):
        read(at(f"{web.tls}/a.bin", ca_bundle=str(web.authority)))


@pytest.mark.parametrize("other", [False, True])
def test_authentication_is_stripped_across_hosts(
    serve: Serve, web: Nginx, folder: Path, other: bool
) -> None:
    """Another port is another server; the same one gets what it got before."""
    elsewhere = serve(folder=folder)
    target = elsewhere if other else web
    place(folder, "b.bin", b"other")
    web.fail("/a.bin", redirect=f"{target.url}/b.bin")
    secrets = {
        "X-Amz-Security-Token": "sesame",
        "Cookie": "sesame",
        "Authorization": "Bearer sesame",
        "X-Own": "sesame",
    }
    assert read(at(f"{web.url}/a.bin?sig=sesame", headers=secrets)) == b"other"
    sent = target.requests()[-1]
    assert sent.target == "/b.bin"
    names = {name.lower() for name in secrets}
    assert names & sent.headers.keys() == (set() if other else names)
    assert ("sesame" in str(sent.headers)) is not other


def test_authentication_that_was_stripped_does_not_come_back(
    serve: Serve, web: Nginx, folder: Path
) -> None:
    """A server that redirects back would choose what a request with credentials asks for."""
    elsewhere = serve(folder=folder)
    place(folder, "c.bin", b"c")
    web.fail("/a.bin", redirect=f"{elsewhere.url}/b.bin")
    elsewhere.fail("/b.bin", redirect=f"{web.url}/c.bin")
    assert read(at(f"{web.url}/a.bin", headers={"Authorization": "sesame"})) == b"c"
    first, last = web.requests()
    assert first.headers["authorization"] == "sesame"
    assert "authorization" not in last.headers


def test_the_query_of_a_redirect_is_sent_as_it_is_and_never_shown(
    serve: Serve, web: Nginx, folder: Path
) -> None:
    query = "X-Amz-Signature=sesame%2Fa+b%3D&x=a/b~c"
    elsewhere = serve(folder=folder)
    web.fail("/a.bin", redirect=f"{elsewhere.url}/b.bin?{query}")
    with pytest.raises(RemoteMissing) as caught:
        read(at(f"{web.url}/a.bin"))
    assert elsewhere.requests()[-1].target == f"/b.bin?{query}"
    assert not any(secret in str(caught.value) for secret in SECRETS)


# Certificates.


def test_certificates_are_checked(serve: Serve, folder: Path, monkeypatch: Any) -> None:
    http_forget()
    for name in ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE"):
        monkeypatch.delenv(name, raising=False)
    web = serve(folder=folder, tls=True)
    bundle = str(web.authority)
    assert read(at(f"{web.tls}/a.bin", ca_bundle=bundle)) == DATA
    for url, options, told in (
        (web.tls, {}, "self-signed certificate|unable to get local issuer"),
        (web.expired, {"ca_bundle": bundle}, "expired"),
        (web.wrong_host, {"ca_bundle": bundle}, "ostname mismatch"),
    ):
        begin = time.monotonic()
        with pytest.raises(RemoteDenied, match=f"certificate is not trusted.*({told})"):
            read(at(f"{url}/a.bin", retries=50, **options))
        assert time.monotonic() - begin < 5
    for name in ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE"):
        with monkeypatch.context() as patch:
            patch.setenv(name, bundle)
            assert read(at(f"{web.tls}/a.bin", retries=1)) == DATA
            http_forget()
    assert len(web.requests()) == 3


def http_forget() -> None:
    """Forget the clients, which read the environment when they are made."""
    from shardio.storage import remote

    remote._clients.clear()


def test_the_name_of_a_redirect_is_what_its_certificate_must_have(
    serve: Serve, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though the connection is made to an address."""
    web = serve(folder=folder, tls=True)
    real = socket.getaddrinfo

    def resolve(host: Any, *arguments: Any, **options: Any) -> Any:
        here = host in ("elsewhere.example", "third.example")
        return real("127.0.0.1" if here else host, *arguments, **options)

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    monkeypatch.setattr(web_module, "_is_public", lambda _: True)
    port = web.wrong_host.rpartition(":")[2]
    location = at(f"{web.tls}/a.bin", ca_bundle=str(web.authority))
    place(folder, "b.bin", b"other")
    web.fail("/a.bin", redirect=f"https://elsewhere.example:{port}/b.bin")
    assert read(location) == b"other"
    web.fail("/a.bin", redirect=f"https://third.example:{port}/b.bin")
    with pytest.raises(RemoteDenied, match="ostname mismatch"):
        read(location)


def test_a_bundle_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "empty.pem").write_text("nothing")
    for path in (tmp_path / "missing.pem", tmp_path / "empty.pem"):
        with pytest.raises(shardio.UsageError, match=r"ca_bundle=.*no certificates can be read"):
            read(at("https://127.0.0.1:9/a", ca_bundle=str(path)))


# Proxies.


def test_proxies_of_the_environment_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    with RawServer([answer(b"proxied")] * 2) as proxy, RawServer([answer(b"direct")]) as direct:
        monkeypatch.setenv("HTTP_PROXY", proxy.url.replace("//", "//alibaba:sesame@"))
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        assert read(at(f"{direct.url}/a")) == b"direct"
        assert read(at("http://far.invalid/a?x=1")) == b"proxied"
        assert proxy.requests[0].startswith(b"GET http://far.invalid/a?x=1 HTTP/1.1")
        assert b"proxy-authorization: basic" in proxy.requests[0].lower()
    http_forget()
    monkeypatch.setenv("HTTP_PROXY", "socks9://alibaba:sesame@h:x")
    with pytest.raises(shardio.UsageError, match="no URL") as caught:
        read(at("http://far.invalid/a"))
    assert "sesame" not in str(caught.value)


# Options and secrets.


@pytest.mark.parametrize(
    ("options", "sent"),
    [
        ({"token": "sesame"}, {"authorization": "Bearer sesame"}),
        (
            {"user": "alibaba", "password": "sesame"},
            {"authorization": "Basic YWxpYmFiYTpzZXNhbWU="},
        ),
        ({"headers": {"X-Own": "sesame"}}, {"x-own": "sesame"}),
    ],
)
def test_credentials_are_sent(web: Nginx, options: Any, sent: dict[str, str]) -> None:
    read(at(f"{web.url}/a.bin", **options))
    assert sent.items() <= web.requests()[-1].headers.items()


def test_credentials_of_the_url_are_sent(web: Nginx) -> None:
    location = at(web.url.replace("//", "//alibaba:se%40same@") + "/a.bin?sig=sesame")
    read(location)
    request = web.requests()[-1]
    assert request.target == "/a.bin?sig=sesame"
    assert request.headers["authorization"] == "Basic YWxpYmFiYTpzZUBzYW1l"
    assert location.path == f"{web.url}/a.bin"


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"verify": False}, "there is no option 'verify'; the options here are .*headers"),
        ({"headers": "sesame"}, "headers: it must be a mapping"),
        ({"headers": {"X": 5}}, "headers: it must be a mapping"),
        ({"headers": {"X": "sesame\r\nY: z"}}, "headers: it must be a mapping"),
        ({"headers": {"Range": "bytes=0-1"}}, "shardio sets Range itself"),
        ({"headers": {"authorization": "sesame"}, "token": "sesame"}, "give one of"),
        ({"user": "alibaba", "token": "sesame"}, "give one of"),
        ({"token": "sesame\n"}, "token: it must be a text"),
        ({"password": b"sesame"}, "password: it must be a text"),
        ({"connections": 0}, "connections"),
        ({"trusted_hosts": "localhost"}, "trusted_hosts"),
        ({"timeout": 0}, "timeout"),
    ],
)
def test_a_wrong_option_is_one_sentence_without_its_secret(options: Any, told: str) -> None:
    with pytest.raises(shardio.UsageError, match=told) as caught:
        locate("http://127.0.0.1:9/a", options=options)
    assert "sesame" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("http://", "not valid"),
        ("http:///a", "not valid"),
        ("http://alibaba:sesame@h:port/a", "not valid"),
        ("http://alibaba:se/same@h/a", "not valid"),
        ("http://[::1/a", "not valid"),
        ("http://alibaba:sesame@h/a#b", "no fragment"),
        ("http://alibaba:sesame@h/a%2fb?sesame", "no encoded slash"),
    ],
)
def test_a_wrong_url_is_one_sentence_without_its_secret(url: str, told: str) -> None:
    with pytest.raises(shardio.UsageError, match=told) as caught:
        locate(url)
    assert not any(secret in str(caught.value) for secret in ("sesame", "alibaba", "same@"))


def test_a_user_in_url_and_options_is_refused() -> None:
    with pytest.raises(shardio.UsageError, match="user stand both"):
        locate("http://alibaba:x@h/a", options={"user": "other"})


def test_secrets_stand_nowhere(web: Nginx, caplog: pytest.LogCaptureFixture) -> None:
    """In no message, repr, log, nor name; with all logs on."""
    caplog.set_level(logging.DEBUG)
    url = web.url.replace("//", "//alibaba:sesame@") + "/{}?X-Amz-Signature=sesame"
    options = {"headers": {"X-Own": "sesame"}}
    said: list[object] = []
    location = at(url.format("a.bin"), **options)
    file = location.open()
    said += [location, repr(location), repr(pickle.loads(pickle.dumps(location))), file.name]  # noqa: S301
    faults: list[dict[str, Any]] = [
        {"status": 403}, {"status": 404}, {"status": 500, "text": "sesame"}, {"status": 412},
        {"redirect": "/x?sesame"}, {"redirect": "file:///sesame?x"}, {"cut": 0},
        {"redirect": "http://169.254.169.254/sesame"}, {"redirect": "http://u:sesame@[x/"},
    ]  # fmt: skip
    for fault in faults:
        web.fail("*", **fault)
        for call in (location.open, lambda: file.read(2_000_000, 9), location.names):
            with pytest.raises(OSError) as caught:  # noqa: PT011  of each kind
                call()
            said += [str(caught.value), repr(caught.value), vars(caught.value)]
    with pytest.raises(OSError) as caught:  # noqa: PT011
        at("http://alibaba:sesame@127.0.0.1:1/a?sesame", retries=0).open()
    said += [str(caught.value), [record.getMessage() for record in caplog.records]]
    assert not [one for one in said if any(secret in str(one) for secret in SECRETS)]


def test_logs_of_others_stay(web: Nginx, caplog: pytest.LogCaptureFixture) -> None:
    import urllib3

    caplog.set_level(logging.DEBUG)
    read(at(f"{web.url}/a.bin?sig=sesame"))
    assert not [record for record in caplog.records if "urllib3" in record.name]
    urllib3.PoolManager().request("GET", f"{web.url}/a.bin?own")
    assert [record for record in caplog.records if "a.bin?own" in record.getMessage()]


def test_what_is_written_is_one_sentence(web: Nginx) -> None:
    storage = HttpStorage()
    with pytest.raises(OSError, match="http storages are read-only"):
        storage.publish(f"{web.url}/b", b"x")
    with pytest.raises(OSError, match="http storages are read-only"):
        storage.remove(f"{web.url}/a.bin")
    assert get(f"{web.url}/a.bin")[0] == 200


def test_as_many_requests_as_a_process_makes_are_answered_at_once() -> None:
    together = threading.Barrier(MOST_REQUESTS)

    class Answers(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            together.wait(60)
            self.send_response(206)
            self.send_header("ETag", '"1"')
            self.send_header("Content-Range", "bytes 0-0/9")
            self.send_header("Content-Length", "1")
            self.end_headers()
            self.wfile.write(b"x")

        def log_message(self, *_: object) -> None: ...

    class Server(ThreadingHTTPServer):
        request_queue_size = MOST_REQUESTS

    with Server(("127.0.0.1", 0), Answers) as server, ThreadPoolExecutor(MOST_REQUESTS) as threads:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url, found = f"http://127.0.0.1:{server.server_port}/a", bytearray()
        storage = HttpStorage(retries=0, timeout=60)
        asked = [
            threads.submit(storage.download, url, 0, 1, None, found.extend)
            for _ in range(MOST_REQUESTS)
        ]
        assert {each.result().size for each in asked} == {9}
        server.shutdown()
