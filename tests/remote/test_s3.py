"""S3, held against SeaweedFS, with nginx and its faults before it where a fault is needed.

Tests that are named after a complaint about another library hold that shardio does better.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import re
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
from click.testing import CliRunner

import shardio
from servers import Nginx, SeaweedS3
from shardio.cli import commands
from shardio.errors import (
    RemoteChanged,
    RemoteDenied,
    RemoteError,
    RemoteMissing,
    RemoteUnreachable,
)
from shardio.storage import s3 as module
from shardio.storage.base import Storage
from shardio.storage.location import locate
from shardio.storage.s3 import S3Storage
from shardio.testing import StorageContract, make_images

boto3 = pytest.importorskip("boto3")
DATA = os.urandom(3_000_000)
FILE = "a.bin"
OPTIONS: dict[str, Any] = {"shards": 3, "seed": 5, "jobs": 1}


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of the user's own, and no quest for credentials of a cloud machine."""
    for name in [each for each in os.environ if each.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)


@pytest.fixture
def store(s3: SeaweedS3) -> S3Storage:
    return S3Storage(
        endpoint_url=s3.url, key=s3.keys.access, secret=s3.keys.secret, timeout=20.0, retries=2
    )


@pytest.fixture
def folder(s3: SeaweedS3) -> str:
    return f"s3://{s3.bucket()}/folder"


@pytest.fixture
def web(s3: SeaweedS3, serve: Callable[..., Nginx]) -> Nginx:
    """A server before the store, which fails as it is told."""
    found = serve(upstream=s3.url)
    assert isinstance(found, Nginx)
    return found


@pytest.fixture
def failing(store: S3Storage, web: Nginx) -> S3Storage:
    """The store, reached through the server that fails."""
    return replace(store, endpoint_url=web.url)


@pytest.fixture
def user(s3: SeaweedS3, web: Nginx, monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment of a user of the store."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", web.url)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", s3.keys.access)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", s3.keys.secret)


class TestS3(StorageContract):
    client: ClassVar[Any]

    @pytest.fixture
    def storage(self, s3: SeaweedS3, store: S3Storage) -> Storage:
        type(self).client = s3.client()
        return store

    def put(self, path: str, data: bytes) -> None:
        bucket, _, key = path.removeprefix("s3://").partition("/")
        self.client.put_object(Bucket=bucket, Key=key, Body=data)

    def get(self, path: str) -> bytes:
        bucket, _, key = path.removeprefix("s3://").partition("/")
        found: bytes = self.client.get_object(Bucket=bucket, Key=key)["Body"].read()
        return found


def read(storage: Storage, path: str) -> bytes:
    file = storage.open(path, path)
    return file.read(0, file.size)


def said(code: str, message: str = "said the store") -> str:
    return f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>{message}</Message></Error>"


def target(path: str) -> str:
    """Path of an object in a request."""
    return "/" + path.removeprefix("s3://")


# Reading.


def test_webdataset_345_473_a_cut_body_goes_on_by_range_of_the_same_version(
    failing: S3Storage, web: Nginx, folder: str
) -> None:
    failing.publish(f"{folder}/{FILE}", DATA)
    web.forget()
    web.fail(target(f"{folder}/{FILE}"), method="GET", cut=1_000_000, times=1)
    found = bytearray()
    stat = failing.download(f"{folder}/{FILE}", 0, None, None, found.extend)
    assert found == DATA
    first, second = [each.headers for each in web.requests() if each.method == "GET"]
    assert "range" not in first
    assert re.fullmatch("bytes=[0-9]+-", second["range"])
    assert second["if-match"] == stat.version


def test_webdataset_432_a_body_that_stays_short_is_an_error(
    failing: S3Storage, web: Nginx, folder: str
) -> None:
    failing.publish(f"{folder}/{FILE}", DATA)
    web.fail(target(f"{folder}/{FILE}"), method="GET", cut=0)
    with pytest.raises(RemoteUnreachable, match="3 times in a row"):
        failing.download(f"{folder}/{FILE}", 0, None, None, lambda _: None)


def test_streaming_310_denied_is_not_missing(store: S3Storage, folder: str) -> None:
    store.publish(f"{folder}/{FILE}", b"x")
    wrong = replace(store, secret="wrong")  # noqa: S106
    for ask in (
        lambda: wrong.stat(f"{folder}/{FILE}"),
        lambda: wrong.open(f"{folder}/{FILE}", "a"),
        lambda: wrong.names(folder),
        lambda: wrong.publish(f"{folder}/b", b"x"),
    ):
        with pytest.raises(RemoteDenied, match="SignatureDoesNotMatch") as caught:
            ask()
        assert not isinstance(caught.value, FileNotFoundError)
        assert caught.value.status == 403
        assert caught.value.request_id


def test_datasets_7440_missing_is_said_at_once(failing: S3Storage, web: Nginx, folder: str) -> None:
    with pytest.raises(RemoteMissing):
        failing.stat(f"{folder}/none")
    with pytest.raises(RemoteMissing):
        failing.stat("s3://no-such-bucket/none")
    with pytest.raises(RemoteMissing, match="NoSuchBucket"):
        failing.names("s3://no-such-bucket/none")
    with pytest.raises(RemoteMissing, match="bucket"):
        failing.stat(folder.rpartition("/")[0])
    assert sum(web.counts().values()) == 3


def test_datasets_7506_a_store_that_asks_to_wait_is_waited_for(
    failing: S3Storage, web: Nginx, folder: str
) -> None:
    failing.publish(f"{folder}/{FILE}", b"x")
    web.fail("*", status=429, retry_after=1, times=1, text=said("SlowDown"))
    start = time.monotonic()
    failing.stat(f"{folder}/{FILE}")
    assert time.monotonic() - start >= 1


def test_s3fs_422_725_an_object_that_was_overwritten_is_an_error(
    store: S3Storage, folder: str
) -> None:
    store.publish(f"{folder}/{FILE}", DATA)
    file = store.open(f"{folder}/{FILE}", "a")
    store.publish(f"{folder}/{FILE}", DATA[::-1])
    with pytest.raises(RemoteChanged):
        file.read(1_000_000, 100)


def _read_in_child(storage: Storage, path: str, results: Any) -> None:
    results.put(hashlib.sha256(read(storage, path)).hexdigest())


def test_s3fs_914_a_child_reads_after_its_parent_has(store: S3Storage, folder: str) -> None:
    path = f"{folder}/{FILE}"
    store.publish(path, DATA)
    read(store, path)
    for method in ("fork", "spawn"):
        context: Any = multiprocessing.get_context(method)
        results = context.Queue()
        child = context.Process(target=_read_in_child, args=(store, path, results))
        child.start()
        assert results.get(timeout=60) == hashlib.sha256(DATA).hexdigest()
        child.join(60)
        assert child.exitcode == 0
    assert read(store, path) == DATA


def test_filesystem_spec_639_many_open_one_object_at_once(store: S3Storage, folder: str) -> None:
    store.publish(f"{folder}/{FILE}", DATA)
    starts = [number * 30_011 % len(DATA) for number in range(80)]

    def part(start: int) -> bytes:
        file = store.open(f"{folder}/{FILE}", "a")
        return file.read(start, min(1000, file.size - start))

    with ThreadPoolExecutor(80) as threads:
        assert [*threads.map(part, starts)] == [DATA[start : start + 1000] for start in starts]


def test_filesystem_spec_1140_a_range_that_is_ignored_is_refused(s3: SeaweedS3, web: Nginx) -> None:
    """Not signed: the header is part of a signature."""
    s3.client().put_object(Bucket="public", Key="range.bin", Body=DATA)
    storage = S3Storage(endpoint_url=web.url, anon=True)
    web.fail("/public/range.bin", ignore=["Range"])
    with pytest.raises(RemoteError, match="the server does not say which bytes it sends"):
        storage.download("s3://public/range.bin", 10, 20, None, lambda _: None)


def test_a_body_that_is_larger_than_asked_for_is_refused_before_it_is_read(
    failing: S3Storage, web: Nginx, folder: str
) -> None:
    failing.publish(f"{folder}/{FILE}", DATA)
    web.fail(target(f"{folder}/{FILE}"), method="GET", zeros=64 << 20)
    found = bytearray()
    with pytest.raises(RemoteError):
        failing.download(f"{folder}/{FILE}", 0, 100, None, found.extend)
    assert not found


def test_filesystem_spec_1748_no_compression_is_asked_for(
    failing: S3Storage, web: Nginx, folder: str
) -> None:
    failing.publish(f"{folder}/{FILE}", DATA)
    read(failing, f"{folder}/{FILE}")
    failing.names(folder)
    kinds = {each.headers.get("accept-encoding", "identity") for each in web.requests()}
    assert kinds == {"identity"}


def test_an_empty_object_is_downloaded_whole(store: S3Storage, folder: str) -> None:
    store.publish(f"{folder}/{FILE}", b"")
    assert store.download(f"{folder}/{FILE}", 0, None, None, lambda _: None).size == 0
    assert read(store, f"{folder}/{FILE}") == b""


def test_more_names_than_one_answer_holds_are_listed(store: S3Storage, folder: str) -> None:
    names = [f"{number:04d}" for number in range(1050)]
    with ThreadPoolExecutor(16) as threads:
        [*threads.map(lambda name: store.publish(f"{folder}/{name}", b""), names)]
    assert store.names(folder) == names


# Credentials and secrets.


def test_credentials_that_expired_are_read_anew(
    s3: SeaweedS3, store: S3Storage, web: Nginx, folder: str, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """litData 458."""
    file = tmp_path / "credentials"
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(file))

    def write(key: str, secret: str) -> None:
        file.write_text(f"[default]\naws_access_key_id={key}\naws_secret_access_key={secret}\n")

    store.publish(f"{folder}/{FILE}", DATA)
    write(s3.keys.access, s3.keys.secret)
    storage = S3Storage(endpoint_url=web.url)
    opened = storage.open(f"{folder}/{FILE}", "a")
    write(s3.reader_keys.access, s3.reader_keys.secret)
    web.fail("*", status=400, text=said("ExpiredToken"), times=1)
    assert opened.read(0, len(DATA)) == DATA
    assert f"Credential={s3.reader_keys.access}/" in web.requests()[-1].headers["authorization"]


@pytest.mark.parametrize(("status", "code"), [(400, "ExpiredToken"), (403, "RequestTimeTooSkewed")])
def test_credentials_that_stay_expired_are_said_to_be_so(
    failing: S3Storage, web: Nginx, folder: str, status: int, code: str
) -> None:
    """A HEAD has no body that says why, so that a GET asks."""
    web.fail("*", status=status, text=said(code))
    with pytest.raises(RemoteDenied, match=f"the credentials have expired .*{code}: said the"):
        failing.stat(f"{folder}/{FILE}")


def test_without_credentials_the_ways_to_give_them_are_said(s3: SeaweedS3, folder: str) -> None:
    with pytest.raises(
        RemoteDenied,
        match=r"there are no credentials: set AWS_ACCESS_KEY_ID .* anon=True .* storage_options",
    ):
        S3Storage(endpoint_url=s3.url).names(folder)


def test_a_public_bucket_needs_no_credentials(s3: SeaweedS3) -> None:
    s3.client().put_object(Bucket="public", Key="open/a.bin", Body=DATA)
    place = locate("s3://public/open", options={"endpoint_url": s3.url, "anon": True})
    assert place.names() == ["a.bin"]
    assert read(place.storage, "s3://public/open/a.bin") == DATA


def test_secrets_are_shown_nowhere(s3: SeaweedS3, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    place = locate(
        "s3://the%20key:the%2Fsecret@bucket/out",
        options={"endpoint_url": s3.url, "token": "the token", "retries": 0},
    )
    assert isinstance(place.storage, S3Storage)
    assert (place.storage.key, place.storage.secret) == ("the key", "the/secret")
    with pytest.raises(RemoteError) as caught:
        place.names()
    shown = f"{place} {place!r} {caught.value} {caught.value!r} {caplog.text}"
    for secret in ("the key", "the%20key", "the/secret", "the%2Fsecret", "the token"):
        assert secret not in shown


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"keey": "a"}, "there is no option 'keey'; the options here are .*key, secret, token"),
        ({"key": "a"}, "key and secret belong together"),
        ({"addressing": "dns"}, "'auto', 'path' or 'virtual'"),
        ({"anon": "maybe"}, "anon='maybe': it must be True or False"),
        ({"requester_pays": 1}, "requester_pays=1: it must be True or False"),
        ({"timeout": "fast"}, "timeout='fast': it must be a number above 0"),
        ({"retries": -1}, "retries=-1: it must be a whole number, at least 0"),
        ({"profile": "none"}, r"the configuration of S3 is not valid \(.*none"),
        ({"endpoint_url": "http://a:hidden@b"}, "endpoint_url='b': it must be http"),
        ({"ca_bundle": "/missing"}, "a file of certificates"),
    ],
)
def test_options_are_checked(options: dict[str, Any], message: str) -> None:
    with pytest.raises(shardio.UsageError, match=message) as caught:
        locate("s3://bucket/out", options=options).names()
    assert "hidden" not in str(caught.value)


def test_requester_pays_is_said_with_every_request(
    failing: S3Storage, web: Nginx, folder: str
) -> None:
    paying = replace(failing, requester_pays=True)
    paying.publish(f"{folder}/{FILE}", b"x")
    read(paying, f"{folder}/{FILE}")
    paying.names(folder)
    paying.remove(f"{folder}/{FILE}")
    assert {each.headers.get("x-amz-request-payer") for each in web.requests()} == {"requester"}


def test_certificates_are_verified_whatever_the_environment_says(
    s3: SeaweedS3, store: S3Storage, serve: Callable[..., Nginx], folder: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    web = serve(upstream=s3.url, tls=True)
    store.publish(f"{folder}/{FILE}", b"x")
    for bundle in (None, ""):
        if bundle is not None:
            monkeypatch.setenv("AWS_CA_BUNDLE", bundle)
        with pytest.raises(RemoteDenied, match="certificate is not trusted"):
            replace(store, endpoint_url=web.tls).stat(f"{folder}/{FILE}")
    good = replace(store, endpoint_url=web.tls, ca_bundle=str(web.authority))
    assert good.stat(f"{folder}/{FILE}").size == 1
    for url in (web.expired, web.wrong_host):
        with pytest.raises(RemoteDenied, match="certificate is not trusted"):
            replace(good, endpoint_url=url).stat(f"{folder}/{FILE}")


@pytest.mark.parametrize("place", ["http://169.254.169.254/latest", "file:///etc/passwd"])
def test_a_redirect_is_not_followed(
    failing: S3Storage, web: Nginx, folder: str, place: str
) -> None:
    web.fail("*", redirect=place)
    for ask in (failing.stat, lambda path: failing.open(path, "a")):
        with pytest.raises(RemoteError):
            ask(f"{folder}/{FILE}")


# Writing.


def test_boto3_4392_4435_only_the_sha256_is_sent(
    failing: S3Storage, web: Nginx, folder: str, tmp_path: Path
) -> None:
    (tmp_path / FILE).write_bytes(DATA)
    failing.publish(f"{folder}/{FILE}", tmp_path / FILE)
    failing.publish(f"{folder}/b", b"x")
    failing.download(f"{folder}/{FILE}", 0, None, None, lambda _: None)
    failing.remove(f"{folder}/b")
    sums = [
        {name for name in each.headers if "checksum" in name or "trailer" in name}
        for each in web.requests()
        if each.method != "HEAD"
    ]
    assert sums == [{"x-amz-checksum-sha256"}] * 2 + [set()] * 2
    assert failing.stat(f"{folder}/{FILE}").sha256 == hashlib.sha256(DATA).hexdigest()


def test_streaming_668_what_is_stored_otherwise_than_it_was_sent_is_removed(
    failing: S3Storage, web: Nginx, folder: str, tmp_path: Path
) -> None:
    (tmp_path / FILE).write_bytes(DATA)
    other = {"x-amz-checksum-sha256": "47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU="}
    web.fail(target(f"{folder}/{FILE}"), method="HEAD", headers=other)
    with pytest.raises(RemoteUnreachable, match="stored otherwise than"):
        failing.publish(f"{folder}/{FILE}", tmp_path / FILE, only_if_absent=True)
    assert failing.names(folder) == []
    web.heal()
    failing.publish(f"{folder}/{FILE}", tmp_path / FILE, only_if_absent=True)
    assert read(failing, f"{folder}/{FILE}") == DATA


@pytest.mark.parametrize(
    ("status", "code"), [(409, "ConditionalRequestConflict"), (503, "SlowDown")]
)
def test_a_put_that_is_refused_for_a_while_is_made_again(
    failing: S3Storage, web: Nginx, folder: str, status: int, code: str
) -> None:
    web.fail("*", method="PUT", status=status, text=said(code), times=2)
    failing.publish(f"{folder}/{FILE}", DATA, only_if_absent=True)
    assert read(failing, f"{folder}/{FILE}") == DATA


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MOST_SINGLE", 6 << 20)
    monkeypatch.setattr(module, "_PART", 5 << 20)


@pytest.fixture
def large(tmp_path: Path) -> Path:
    path = tmp_path / "large"
    path.write_bytes(os.urandom(12 << 20))
    return path


def uploads(s3: SeaweedS3, folder: str) -> list[str]:
    bucket, _, _ = folder.removeprefix("s3://").partition("/")
    found = s3.client().list_multipart_uploads(Bucket=bucket).get("Uploads", ())
    return [each["Key"] for each in found]


@pytest.mark.usefixtures("small_parts")
def test_a_large_file_is_sent_in_parts_each_attempted_again_alone(
    s3: SeaweedS3, failing: S3Storage, web: Nginx, folder: str, large: Path
) -> None:
    bucket, _, key = f"{folder}/large".removeprefix("s3://").partition("/")
    s3.client().create_multipart_upload(Bucket=bucket, Key=key)  # of a pack that was killed
    s3.client().create_multipart_upload(Bucket=bucket, Key=f"{key} of another")
    web.fail("*", method="PUT", status=503, text=said("SlowDown"), after=1, times=1)
    failing.publish(f"{folder}/large", large, only_if_absent=True)
    assert read(failing, f"{folder}/large") == large.read_bytes()
    assert web.counts()["PUT", target(f"{folder}/large")] == 4
    assert uploads(s3, folder) == [f"{key} of another"]


@pytest.mark.usefixtures("small_parts")
def test_a_large_file_leaves_another_that_is_there_and_no_parts(
    s3: SeaweedS3, store: S3Storage, folder: str, large: Path
) -> None:
    store.publish(f"{folder}/large", b"first")
    with pytest.raises(FileExistsError):
        store.publish(f"{folder}/large", large, only_if_absent=True)
    assert read(store, f"{folder}/large") == b"first"
    assert uploads(s3, folder) == []


@pytest.mark.usefixtures("small_parts")
def test_a_large_file_that_cannot_be_sent_leaves_no_parts(
    s3: SeaweedS3, failing: S3Storage, web: Nginx, folder: str, large: Path
) -> None:
    web.fail("*", method="PUT", status=403, text=said("AccessDenied"), after=1)
    with pytest.raises(RemoteDenied, match="AccessDenied"):
        failing.publish(f"{folder}/large", large)
    assert uploads(s3, folder) == []
    assert failing.names(folder) == []


# Packing.


def stored(s3: SeaweedS3, folder: str) -> dict[str, str]:
    """Digests of all objects in a folder, by path in it."""
    bucket, _, prefix = folder.removeprefix("s3://").partition("/")
    client = s3.client()
    found = client.list_objects_v2(Bucket=bucket, Prefix=f"{prefix}/").get("Contents", ())
    return {
        each["Key"].removeprefix(f"{prefix}/"): hashlib.sha256(
            client.get_object(Bucket=bucket, Key=each["Key"])["Body"].read()
        ).hexdigest()
        for each in found
    }


@pytest.fixture
def expected(images: Path, tmp_path: Path) -> dict[str, str]:
    """What a local pack writes."""
    shardio.pack(images, tmp_path / "expected", **OPTIONS)
    return shardio.testing.digests(tmp_path / "expected")


@pytest.mark.usefixtures("user")
def test_webdataset_211_a_command_packs_to_a_store_and_others_read_there(
    s3: SeaweedS3, images: Path, folder: str, expected: dict[str, str]
) -> None:
    options = ["--shards", "3", "--seed", "5", "--jobs", "2"]
    for command in (["pack", str(images), folder, *options], ["verify", folder]):
        done = CliRunner().invoke(commands, command)
        assert done.exit_code == 0, done.output
    assert stored(s3, folder) == expected
    assert len(shardio.ShardDataset(folder)) == 600


@pytest.mark.usefixtures("user")
def test_streaming_676_the_endpoint_of_the_environment_is_used(web: Nginx, folder: str) -> None:
    locate(folder).names()
    assert web.counts()


@pytest.mark.usefixtures("user")
def test_streaming_451_459_a_put_that_fails_leaves_no_manifest(
    s3: SeaweedS3, web: Nginx, images: Path, folder: str, expected: dict[str, str]
) -> None:
    web.fail("*.tar", method="PUT", status=403, text=said("AccessDenied"), after=1)
    with pytest.raises(RemoteDenied, match=r"shard-000001\.tar: the store denies .*AccessDenied"):
        shardio.pack(images, folder, **OPTIONS)
    assert "shardio.json" not in stored(s3, folder)
    with pytest.raises(shardio.IndexFileError, match="interrupted or still runs"):
        shardio.ShardDataset(folder)
    web.heal()
    shardio.pack(images, folder, **OPTIONS)
    assert stored(s3, folder) == expected


@pytest.mark.usefixtures("user")
def test_streaming_261_737_a_pack_goes_on_without_sending_or_reading_again(
    s3: SeaweedS3, web: Nginx, images: Path, folder: str, expected: dict[str, str]
) -> None:
    web.fail("*/shardio.json", method="PUT", status=400, text=said("ExpiredToken"))
    web.fail(target(f"{folder}/shardio.json"), method="PUT", status=400, text=said("ExpiredToken"))
    with pytest.raises(RemoteDenied, match="the credentials have expired"):
        shardio.pack(images, folder, **OPTIONS)
    web.heal()
    web.forget()
    shardio.pack(images, folder, **OPTIONS)
    assert stored(s3, folder) == expected
    asked = {(method, path.rpartition("/")[2]) for method, path in web.counts()}
    assert {name for method, name in asked if method == "PUT"} <= {".shardio-pack", "shardio.json"}
    assert not {
        name for method, name in asked if method == "GET" and name.endswith((".tar", ".idx"))
    }


@pytest.mark.usefixtures("user")
def test_of_two_packs_at_once_one_wins_and_the_other_says_so(images: Path, folder: str) -> None:
    def pack(seed: int) -> str:
        try:
            shardio.pack(images, folder, **OPTIONS | {"seed": seed})
        except shardio.PackError as error:
            return str(error)
        return "won"

    with ThreadPoolExecutor(2) as threads:
        said = sorted(threads.map(pack, (1, 2)))
    others = ("another pack", "the folder has shards already")
    assert all(each == "won" or any(other in each for other in others) for each in said)
    assert said.count("won") < 2
    if "won" in said:
        assert shardio.verify(folder, jobs=1).sound


KILLED = """
import sys, shardio
shardio.pack(sys.argv[1], sys.argv[2], shards=3, seed=5, jobs=1)
"""


@pytest.mark.usefixtures("user")
@pytest.mark.parametrize("puts", [1, 2, 4, 7])
def test_a_pack_that_is_killed_leaves_nothing_readable_and_is_finished_by_the_same_call(
    s3: SeaweedS3, web: Nginx, images: Path, folder: str, expected: dict[str, str], puts: int
) -> None:
    web.fail("*", method="PUT", latency=0.3)
    child = subprocess.Popen([sys.executable, "-c", KILLED, str(images), folder])
    while sum(n for (method, _), n in web.counts().items() if method == "PUT") < puts:
        assert child.poll() is None
        time.sleep(0.01)
    child.kill()
    child.wait()
    time.sleep(0.5)  # what is on its way arrives
    web.heal()
    assert "shardio.json" not in stored(s3, folder)
    with pytest.raises(shardio.ShardioError):
        shardio.ShardDataset(folder)
    shardio.pack(images, folder, **OPTIONS)
    assert stored(s3, folder) == expected


@pytest.mark.usefixtures("user")
def test_a_full_spool_disk_is_said_and_the_same_call_finishes(
    s3: SeaweedS3, small_disk: Path, folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = make_images(tmp_path / "in", classes=0, per_class=60, size=256)
    with monkeypatch.context() as full:
        full.setattr(tempfile, "tempdir", str(small_disk))
        done = CliRunner().invoke(commands, ["pack", str(source), folder, "--shards", "1"])
        assert done.exit_code == 1
        assert isinstance(done.exception, OSError)
        assert stored(s3, folder) == {}
    shardio.pack(source, folder, shards=1, jobs=1)
    assert shardio.verify(folder, jobs=1).sound


@pytest.mark.usefixtures("user")
def test_shards_are_divided_and_repaired_into_a_store(
    s3: SeaweedS3, packed: Path, folder: str, tmp_path: Path
) -> None:
    shardio.reshard(packed, f"{folder}/new", shards=2, jobs=1)
    shardio.reshard(packed, tmp_path / "new", shards=2, jobs=1)
    assert stored(s3, f"{folder}/new") == shardio.testing.digests(tmp_path / "new")
    shardio.repair(packed, f"{folder}/whole", shards=2, jobs=1)
    shardio.repair(packed, tmp_path / "whole", shards=2, jobs=1)
    assert stored(s3, f"{folder}/whole") == shardio.testing.digests(tmp_path / "whole")


@pytest.mark.usefixtures("user")
def test_refused_credentials_are_named_without_the_secret_and_without_causes(
    folder: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def refused(options: dict[str, Any]) -> str:
        with pytest.raises(shardio.RemoteDenied) as caught:
            shardio.ShardDataset(folder, storage_options=options)
        lines = traceback.format_exception(caught.value)
        assert not any("direct cause" in line or "During handling" in line for line in lines)
        assert "sesame" not in "".join(lines)
        return str(caught.value)

    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAMORGIANA")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "sesame")
    assert "asked with the access key AKIAMORGIANA, " in refused({})
    assert "asked without a signature" in refused({"anon": True})
    said = refused({"key": "alibaba", "secret": "sesame"})
    assert "asked with the credentials that were given" in said
    assert "alibaba" not in said
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    file = tmp_path / "credentials"
    file.write_text("[cave]\naws_access_key_id=AKIACASSIM\naws_secret_access_key=sesame\n")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(file))
    monkeypatch.setenv("AWS_PROFILE", "cave")
    assert "asked with the access key AKIACASSIM of the profile cave" in refused({})
