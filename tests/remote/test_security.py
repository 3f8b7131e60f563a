"""Hostile stores and files: what they say is refused, what they send is capped, secrets stay."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import logging
import os
import shutil
import stat
import subprocess
import sys
import tarfile
import traceback
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import zstandard
from torch.utils.data import DataLoader

import shardio
from servers import Nginx, SeaweedS3
from shardio.cli import main
from shardio.indexing.manifest import index_path
from shardio.storage import compression, remote
from shardio.storage.location import locate
from shardio.testing import make_shard
from tests.remote.raw import RawServer
from tests.remote.shards import files, local, make_set, open_set, read, stored

Serve = Callable[..., Nginx]
GIGABYTE = 10**9
TRUSTED = {"retries": 0, "timeout": 5.0}


@pytest.fixture(scope="module")
def packed_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_set(tmp_path_factory.mktemp("set") / "out", shards=4)


@pytest.fixture
def out(packed_once: Path, tmp_path: Path) -> Path:
    """4 shards of 8 samples of 20 KB; it may be changed."""
    return shutil.copytree(packed_once, tmp_path / "set" / "out")


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def change_shard(folder: Path, **values: Any) -> None:
    """Change the first entry of a manifest."""
    document = json.loads((folder / "shardio.json").read_text())
    document["shardio"].pop("crc32")
    document["shardlist"][0].update(values)
    (folder / "shardio.json").write_text(json.dumps(document))


# What manifests and indexes say.

NAMES = [
    *("../x.tar", "/etc/x.tar", "http://other/x.tar", "%2e%2e/x.tar", "a/b.tar", "..", "a\0b.tar"),
    *("a\nb.tar", "x.tar?sig=1", "x.tar#1", "..\\x.tar", "a\x1b[2J.tar", "\udc80.tar", ""),
]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("there", ["local", "remote"])
def test_a_manifest_that_names_something_outside_its_folder_is_refused_by_that_name(
    serve: Serve, out: Path, cache: Path, name: str, there: str
) -> None:
    change_shard(out, url=name)
    web = serve(folder=out)
    source = out if there == "local" else web.url
    with pytest.raises(shardio.IndexFileError, match="no shard can be") as caught:
        shardio.ShardDataset(source, cache_dir=cache)
    assert "shardio.json" in str(caught.value)
    assert str(caught.value).isprintable()
    assert repr(name).strip("'\"").replace("\\", "") in str(caught.value).replace("\\", "")
    assert {path for _, path in web.counts()} <= {"/shardio.json"}


def test_a_manifest_with_a_name_of_megabytes_is_refused_in_one_short_sentence(out: Path) -> None:
    change_shard(out, url="a b/" * 1_000_000)
    with pytest.raises(shardio.IndexFileError) as caught:
        shardio.ShardDataset(out)
    assert len(str(caught.value)) < 2000


@pytest.mark.parametrize("digest", ["../../../victim", "{victim}", "A" * 64, "ab", "0" * 65])
def test_a_digest_that_is_a_path_touches_no_file(
    serve: Serve, out: Path, tmp_path: Path, cache: Path, digest: str
) -> None:
    """Shards of the cache are named by their digests."""
    victims = [tmp_path / f"victim{end}" for end in (".tar", ".index", ".20480.part")]
    for victim in victims:
        victim.write_bytes(b"mine")
    change_shard(out, sha256=digest.format(victim=tmp_path / "victim"))
    with pytest.raises(shardio.IndexFileError, match="no shard can be"):
        read(open_set(serve(folder=out), cache))
    assert [victim.read_bytes() for victim in victims] == [b"mine"] * 3


PEAK = """
import resource, sys, shardio
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    for batch in shardio.ShardDataset(sys.argv[1], batch_size=8, decode=False,
                                      storage_options={"retries": 0}):
        pass
except shardio.ShardioError as error:
    print(type(error).__name__, error)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def read_in_child(url: str, cache: Path) -> tuple[str, int]:
    """Read a dataset, and return what was said and by how many MiB the peak of memory grew."""
    root = Path(shardio.__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-c", PEAK, url],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(root), "SHARDIO_CACHE": str(cache)},
    )
    said, _, grown = done.stdout.strip().rpartition("\n")
    return said, int(grown) >> 10


@pytest.mark.parametrize("place", ["/shardio.json", "*.idx"])
def test_a_gigabyte_of_zeros_is_refused_before_it_is_read(
    serve: Serve, out: Path, cache: Path, place: str
) -> None:
    web = serve(folder=out)
    web.fail(place, zeros=GIGABYTE, headers={"ETag": '"a"'})
    said, grown = read_in_child(web.url, cache)
    assert said.startswith("IndexFileError"), said
    assert "larger than" in said or "more than" in said
    assert grown < 150
    assert not [*cache.rglob("*.index")]


@pytest.mark.parametrize("kind", ["header of 2^60 bytes", "array of 2^60 bytes", "zeros", "deep"])
def test_an_index_that_claims_what_it_has_not_is_refused_and_not_kept(
    serve: Serve, out: Path, cache: Path, kind: str
) -> None:
    path = index_path(out / "shard-000000.tar")
    sound = path.read_bytes()
    end = 8 + int.from_bytes(sound[:8], "little")
    if kind == "header of 2^60 bytes":
        bad = (1 << 60).to_bytes(8, "little") + sound[8:]
    elif kind == "array of 2^60 bytes":
        header = json.loads(sound[8:end])
        header["offsets"] |= {"shape": [1 << 57, 1], "data_offsets": [0, 1 << 60]}
        header["__metadata__"]["crc32"] = "00000000"
        text = json.dumps(header).encode()
        whole = len(text).to_bytes(8, "little") + text + sound[end:]
        bad = whole.replace(b'"00000000"', b'"%08x"' % zlib.crc32(whole), 1)
    elif kind == "zeros":
        bad = bytes(len(sound))
    else:
        bad = (100_000).to_bytes(8, "little") + b"[" * 100_000
    path.write_bytes(bad)
    with pytest.raises(shardio.IndexFileError, match=r"shard-000000\.tar\.idx: the index is damag"):
        read(open_set(serve(folder=out), cache, shuffle=False))
    kept = [each.read_bytes() for each in cache.rglob("*.index")]
    assert bad not in kept
    assert files(cache)[".part"] == 0


def test_an_index_that_comes_damaged_once_is_fetched_again(
    serve: Serve, out: Path, cache: Path
) -> None:
    web = serve(folder=out)
    path = index_path(out / "shard-000002.tar")
    web.fail(f"/index/{path.name}", zeros=path.stat().st_size, times=1)
    assert read(open_set(web, cache)) == local(out)


def test_an_index_of_another_shard_is_refused_in_mid_epoch(
    serve: Serve, out: Path, cache: Path
) -> None:
    loop = iter(open_set(serve(folder=out), cache, shuffle=False, window=1))
    next(loop)
    last = index_path(out / "shard-000003.tar")
    for path in cache.rglob("*.index"):
        path.unlink()
    shutil.copy(index_path(out / "shard-000001.tar"), last)
    with pytest.raises(shardio.IndexFileError, match=r"shard-000003\.tar: the index is of other"):
        list(loop)


# What is sent.


def bomb(size: int) -> bytes:
    """A tar with one member of zeros."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        member = tarfile.TarInfo("a.bin")
        member.size = size
        tar.addfile(member, io.BytesIO(bytes(size)))
    return stream.getvalue()


@pytest.mark.parametrize("suffix", [".tar.gz", ".tar.zst"])
def test_a_bomb_in_a_store_is_refused_and_nothing_is_left(
    serve: Serve, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    monkeypatch.setattr(compression, "_ALWAYS", 1 << 20)
    folder = tmp_path / "www"
    folder.mkdir()
    pack = gzip.compress if suffix == ".tar.gz" else zstandard.compress
    (folder / f"a{suffix}").write_bytes(pack(bomb(64 << 20)))
    with pytest.raises(shardio.TarError, match="an archive that was made to fill disks"):
        shardio.ShardDataset(f"{serve(folder=folder).url}/a{suffix}", cache_dir=cache)
    assert sum(path.stat().st_size for path in cache.rglob("*") if path.is_file()) < 1000


def test_a_compressed_object_that_grew_is_refused_before_it_is_read(
    serve: Serve, tmp_path: Path, cache: Path
) -> None:
    folder = tmp_path / "www"
    folder.mkdir()
    tar = make_shard(tmp_path / "a.tar", {f"{n:03}": {"txt": b"x"} for n in range(99)})
    (folder / "a.tar.gz").write_bytes(gzip.compress(tar.read_bytes()))
    web = serve(folder=folder)
    web.fail("*", headers={"ETag": '"same"'}, ignore=["If-Match"])
    source = f"{web.url}/a.tar.gz"
    dataset = shardio.ShardDataset(source, cache_dir=cache, batch_size=8, decode=False)
    for path in cache.rglob("*.tar"):
        path.unlink()
    web.fail("*", headers={"ETag": '"same"'}, zeros=64 << 20, ignore=["If-Match", "Range"])
    before = web.sent()
    with pytest.raises(shardio.RemoteChanged):
        list(dataset)
    assert web.sent() - before < 32 << 20


def test_a_small_file_that_became_64_megabytes_is_refused_before_it_is_read(
    serve: Serve, tmp_path: Path
) -> None:
    """Though its version is the same; whole files are asked for without a range."""
    (tmp_path / "www").mkdir()
    (tmp_path / "www" / "a").write_bytes(bytes(300_000))
    web = serve(folder=tmp_path / "www")
    web.fail("*", headers={"ETag": '"same"'})
    file = locate(f"{web.url}/a", options=TRUSTED).open()
    web.fail("*", headers={"ETag": '"same"'}, zeros=64 << 20, ignore=["If-Match", "Range"])
    assert isinstance(file, remote.RemoteFile)
    found = bytearray()
    with pytest.raises(shardio.RemoteChanged, match="300000 bytes became 67108864"):
        file.read(0, 300_000)
    with pytest.raises(shardio.RemoteChanged, match="300000 bytes became 67108864"):
        file.copy_to(found.extend)
    assert not found
    assert web.sent() < 32 << 20


def test_a_range_of_a_hundred_bytes_that_is_answered_by_64_megabytes_is_refused(
    serve: Serve, out: Path
) -> None:
    (out / "a.bin").write_bytes(bytes(1_000_000))
    web = serve(folder=out)
    file = locate(f"{web.url}/a.bin", options=TRUSTED).open()
    web.fail("*", zeros=64 << 20, ignore=["If-Match"], headers={"ETag": '"other"'})
    with pytest.raises(shardio.RemoteError):
        file.read(500_000, 100)
    web.fail("*", zeros=64 << 20, status=206)
    with pytest.raises(shardio.RemoteError):
        file.read(500_000, 100)
    assert web.sent() < 32 << 20


@pytest.mark.parametrize("range_", ["bytes 0-99/1000", "bytes 0-99/*", "bytes 99-0/1000", "x", ""])
def test_an_etag_that_changes_with_each_answer_is_one_sentence(range_: str) -> None:
    answers = [
        f'HTTP/1.1 206 x\r\nETag: "{n}"\r\nContent-Range: {range_}\r\n'.encode()
        + b"Content-Length: 100\r\n\r\n"
        + bytes(100)
        for n in range(9)
    ]
    with RawServer(answers) as server:
        place = locate(f"{server.url}/a", options=TRUSTED)
        assert isinstance(place.storage, remote.RemoteStorage)
        first = '"0"' if range_ == "bytes 0-99/1000" else None
        place.storage.download(place.path, 0, 100, first, lambda _: None) if first else None
        with pytest.raises(shardio.RemoteError) as caught:
            place.storage.download(place.path, 0, 100, first, lambda _: None)
    assert "\n" not in str(caught.value)


def test_shards_whose_etags_change_between_requests_are_read_or_refused(
    serve: Serve, out: Path, cache: Path
) -> None:
    """The digest of the manifest tells what is right; wrong bytes never come."""
    web = serve(folder=out)
    for etag in ('W/"a"', '"a"', "a", '"' + "a" * 5000 + '"'):
        shutil.rmtree(cache, ignore_errors=True)
        web.fail("*.tar", headers={"ETag": etag}, ignore=["If-Match"])  # nginx has its own
        assert read(open_set(web, cache)) == local(out)


def test_shards_without_etag_and_time_are_refused(serve: Serve, out: Path, cache: Path) -> None:
    web = serve(folder=out)
    web.fail("*.tar", headers={"ETag": "", "Last-Modified": ""})
    with pytest.raises(shardio.RemoteError, match="neither ETag nor Last-Modified"):
        read(open_set(web, cache))
    assert stored(cache) == []


def test_a_bit_that_flips_in_a_body_once_is_not_seen_and_always_is_one_sentence(
    serve: Serve, out: Path, cache: Path
) -> None:
    web, expected = serve(folder=out), local(out)
    shard = out / "shard-000000.tar"
    sound = shard.read_bytes()
    dataset = open_set(web, cache, shuffle=False)
    damaged = bytearray(sound)
    damaged[5000] ^= 1
    shard.write_bytes(damaged)
    with pytest.raises(shardio.ShardioError) as caught:
        read(dataset)
    assert "shard-000000.tar" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert hashlib.sha256(sound).hexdigest() not in {path.stem for path in stored(cache)}
    shard.write_bytes(sound)
    assert read(open_set(web, cache)) == expected


# The cache folder.


@pytest.mark.parametrize("kind", ["remote", "usage", "usage elsewhere", "remote of another user"])
def test_a_link_or_a_folder_of_others_in_the_cache_is_refused_and_left(
    serve: Serve, out: Path, cache: Path, tmp_path: Path, kind: str
) -> None:
    web = serve(folder=out)
    victim = tmp_path / "victim"
    (cache / "remote").mkdir(parents=True, mode=0o700)
    cache.chmod(0o700)
    if kind == "remote":
        victim.mkdir()
        (cache / "remote").rmdir()
        (cache / "remote").symlink_to(victim)
    elif kind == "remote of another user":
        if os.geteuid():
            pytest.skip("only root may give folders away")
        os.chown(cache / "remote", 12345, -1)
    else:
        if kind == "usage":
            victim.write_text("123")
        (cache / "remote" / "usage").symlink_to(victim)
    with pytest.raises(shardio.UsageError, match="the cache folder cannot be used"):
        open_set(web, cache)
    if kind == "remote":
        assert [*victim.iterdir()] == []
    elif kind == "usage":
        assert victim.read_text() == "123"
    else:
        assert not victim.exists()


@pytest.mark.parametrize("mode", [0o777, 0o1777])
def test_a_cache_folder_that_all_may_write_to_is_refused_or_has_an_own_one_inside(
    serve: Serve, out: Path, cache: Path, mode: int
) -> None:
    cache.mkdir()
    cache.chmod(mode)
    if mode == 0o777:
        with pytest.raises(shardio.UsageError, match="other users can replace its contents"):
            open_set(serve(folder=out), cache)
        assert [*cache.iterdir()] == []
        return
    read(open_set(serve(folder=out), cache), pause=0.01)
    own = cache / f"shardio-{os.geteuid()}"
    assert [*cache.iterdir()] == [own]
    assert stat.S_IMODE(own.stat().st_mode) == 0o700


# Secrets.


def test_session_tokens_of_s3_are_not_logged_by_the_library_that_sends_them(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    secrets = {"key": "alibaba", "secret": "sesame", "token": "opensesame"}
    for url in ("http://127.0.0.1:1", "http://nowhere.invalid"):
        options = {"endpoint_url": url, "region": "us-east-1", "retries": 0, "timeout": 1.0}
        with pytest.raises(shardio.RemoteError) as caught:
            shardio.ShardDataset("s3://bucket/out", storage_options={**options, **secrets})
        error: BaseException | None = caught.value
        while error is not None:
            assert "sesame" not in f"{error} {error!r} {vars(error)}"
            error = error.__cause__ or error.__context__
    said = [f"{record.getMessage()} {record.args}" for record in caplog.records]
    assert not [text for text in said if "sesame" in text]


SECRETS = ("sesame", "alibaba", "c2VzYW1l", "YWxpYmFiY")  # also in base64
SIGNED = "X-Amz-Credential=alibaba&X-Amz-Signature=sesame&X-Amz-Security-Token=sesame"
IN_URLS: dict[str, Callable[[str], str]] = {
    "user": lambda url: url.replace("//", "//alibaba:%73esame@"),
    "slash": lambda url: url.replace("//", "//alibaba:open/sesame@"),
    "presigned": lambda url: f"{url}/?{SIGNED}",
    "sas": lambda url: f"{url}/?sv=2024&se=2030&sig=sesame%3D",
    "token": lambda url: url,
}
STATES = ("sound", "missing", "denied", "cut", "unreachable")


def say_nothing(*texts: object) -> None:
    """Raise AssertionError for a secret in a text."""
    for text in map(str, texts):
        assert not [each for each in SECRETS if each in text], text


def of_error(error: BaseException) -> list[str]:
    """What of an error is shown: its traceback with all causes, without lines of source."""
    lines = "".join(traceback.format_exception(error)).splitlines()
    return [repr(error), *(line for line in lines if not line.startswith("    "))]


def run_main(capfd: pytest.CaptureFixture[str]) -> int:
    """Run a command, which may say no secret, and return its exit code."""
    code = 0
    try:
        main()
    except SystemExit as ended:
        code = int(ended.code or 0)
    said = capfd.readouterr()
    say_nothing(*said)
    assert "Traceback" not in said.err
    return code


def look_into(*folders: Path) -> None:
    """Raise AssertionError for a secret in a file or its name."""
    for path in [each for folder in folders for each in folder.rglob("*")]:
        say_nothing(path)
        if path.is_file() and path.suffix != ".tar":
            say_nothing(path.read_bytes().decode("latin-1"))


@pytest.mark.parametrize(
    ("kind", "state"),
    [
        (kind, state)
        for one, kind in enumerate(IN_URLS)
        for other, state in enumerate(STATES)
        if (one + other) % 2 == 0
    ],
)
def test_secrets_of_a_url_are_shown_and_kept_nowhere(
    serve: Serve,
    out: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    kind: str,
    state: str,
) -> None:
    """By every command, in each state of the store, and by a loop with a process."""
    caplog.set_level(logging.DEBUG)
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    monkeypatch.setenv("SHARDIO_CACHE", str(tmp_path / "cache"))
    web = serve(folder=out)
    url = IN_URLS[kind]("http://127.0.0.1:1" if state == "unreachable" else web.url)
    store = {"retries": "0", "timeout": "2", **({"token": "sesame"} if kind == "token" else {})}
    given = [each for pair in store.items() for each in ("--storage-option", "=".join(pair))]
    if state in ("missing", "denied"):
        web.fail("*", status=404 if state == "missing" else 403, text="sesame")
    elif state == "cut":
        web.fail("*", cut=100)

    def run(*arguments: str | Path) -> int:
        monkeypatch.setattr(sys, "argv", ["shardio", *map(str, arguments)])
        return run_main(capfd)

    order = ["--batch-size", "4"]
    profile = ["profile", *order, "--size", "0", "--seconds", "0.2", "--workers", "0"]
    written = ["--html", "p.html", "--trace", "t.json"]
    ended = [
        run("info", url, "--json", *given),
        run("plan", url, *order, *given),
        run("verify", url, "--json", *given),
        run("verify", url, "--fix", "fixed", *given),
        run("replay", url, *order, "--step", "0", "--to", "batch", *given),
        run("reshard", url, "new", "--shards", "1", *given),
        run("convert", url, "records", "--to", "tfrecord", *given),
    ]
    if state == "sound" and kind == "presigned":  # it takes seconds
        ended.append(run(*profile, url, *written, *given))
    if state != "sound" or kind == "slash":
        assert 0 not in ended
    else:
        assert [*filter(None, ended)] == []
    refused = [
        run("index", url, *given),
        run("pack", url, "packed", "--shards", "1", *given) or 1,
        run("pack", out, url, "--shards", "1", *given),
        run("cache", "ls", "--cache-dir", url),
        run(url),
        run("info", url, url),
        run("info", out, "--sample", url),
        run("plan", url, "--batch-size", url),
        run("plan", out, "--batch-size", "999", "--storage-option", "sesame"),
        run("plan", url, "--batch-size", "999", "--tail", "drop", *given),
        run("plan", url, *order, "--storage-option", "retries=sesame"),
        run("info", f"{url}#a", *given),
    ]
    assert 0 not in refused
    run("verify", out, "--fix", url)
    with pytest.raises(shardio.UsageError) as told:
        shardio.ShardDataset(Path(url))
    if kind != "slash":  # pathlib leaves one slash, which leaves more unclear
        say_nothing(*of_error(told.value))
    options = {**store, "retries": 0, "timeout": 2.0}
    try:
        dataset = shardio.ShardDataset(
            url, cache_dir=tmp_path / "own", batch_size=4, decode=False, storage_options=options
        )
        say_nothing(repr(dataset), dataset.state_dict(), dataset.catalog, dataset.contents)
        web.fail("*.tar", status=403, text="sesame")
        for _ in DataLoader(dataset, batch_size=None, num_workers=1):
            pass
    except (shardio.ShardioError, OSError) as error:
        say_nothing(*of_error(error))
    else:
        pytest.fail("nothing was refused")
    for record in caplog.records:
        say_nothing(record.getMessage(), record.args, record.exc_text)
    look_into(work, tmp_path / "cache", tmp_path / "own")


IN_STORES: dict[str, tuple[str, dict[str, Any], dict[str, str]]] = {
    "s3 url": ("s3://alibaba:sesame@bucket/out", {}, {}),
    "s3 url, a slash": ("s3://alibaba:open/sesame@bucket/out", {}, {}),
    "s3 options": (
        "s3://bucket/out",
        {"key": "alibaba", "secret": "sesame", "token": "sesame"},
        {},
    ),
    "s3 endpoint": ("s3://bucket/out", {"endpoint_url": "http://alibaba:sesame@127.0.0.1:1"}, {}),
    "s3 environment": (
        "s3://bucket/out",
        {"key": "k", "secret": "s"},
        {"AWS_ENDPOINT_URL": "http://alibaba:sesame@127.0.0.1:1"},
    ),
    "hub token": ("hf://datasets/org/name", {"token": "hf_sesame"}, {}),
    "hub environment": ("hf://datasets/org/name", {}, {"HF_TOKEN": "hf_sesame"}),
    "hub endpoint": (
        "hf://datasets/org/name",
        {},
        {"HF_ENDPOINT": "http://alibaba:sesame@127.0.0.1:1"},
    ),
    "sas": ("az://container/out?sv=1&sig=sesame", {"account_name": "mine"}, {}),
    "sas option": ("az://c/out", {"account_name": "mine", "sas_token": "sig=sesame"}, {}),
    "account key": ("az://c/out", {"account_name": "mine", "account_key": "opensesame"}, {}),
    "connection": ("az://c/out", {"connection_string": "AccountKey=sesame"}, {}),
    "google": ("gs://bucket/out?X-Goog-Signature=sesame", {}, {}),
    "ftp": ("ftp://alibaba:sesame@127.0.0.1:1/out", {}, {}),
    "proxy": ("http://127.0.0.1:1/out", {}, {"HTTP_PROXY": "http://alibaba:sesame@127.0.0.1:1"}),
}


@pytest.mark.parametrize("kind", IN_STORES)
def test_secrets_of_a_store_that_does_not_answer_are_not_shown(
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    kind: str,
) -> None:
    caplog.set_level(logging.DEBUG)
    url, options, environment = IN_STORES[kind]
    dead = {
        "AWS_ENDPOINT_URL": "http://127.0.0.1:1",
        "AWS_REGION": "us-east-1",
        "HF_ENDPOINT": "http://127.0.0.1:1",
        "NO_PROXY": "" if kind == "proxy" else "*",
    }
    for name, value in {**dead, **environment}.items():
        monkeypatch.setenv(name, value)
    if url.startswith("az") and "connection_string" not in options:
        options = {**options, "account_host": "127.0.0.1:1"}
    given = {**options, "retries": 0, "timeout": 1.0}
    with pytest.raises((shardio.ShardioError, OSError)) as caught:
        shardio.ShardDataset(url, storage_options=given)
    say_nothing(*of_error(caught.value), *capfd.readouterr())
    for record in caplog.records:
        if record.levelno >= logging.INFO or record.name == "shardio":
            say_nothing(record.getMessage(), record.args, record.exc_text)


# Names of objects.


@pytest.mark.parametrize(
    "name",
    ["a b+c%20d%2Fe", "ü/日本/\U0001f600", "a?b=c&d", "#a", "n" * 200 + "/" + "m" * 200],
)
def test_a_pack_to_any_name_of_s3_is_read_back(s3: SeaweedS3, cache: Path, name: str) -> None:
    options = {
        "endpoint_url": s3.url, "region": "us-east-1", "retries": 1,
        "key": s3.keys.access, "secret": s3.keys.secret,
    }  # fmt: skip
    samples = [{"__key__": f"{n:03}", "bin": bytes([n])} for n in range(8)]
    url = f"s3://{s3.bucket()}/{name}"
    shardio.pack(samples, url, shards=2, storage_options=options)
    dataset = shardio.ShardDataset(
        url, cache_dir=cache, batch_size=8, decode=False, storage_options=options
    )
    assert sorted(next(iter(dataset))["bin"]) == [each["bin"] for each in samples]


def test_control_characters_in_a_name_of_s3_are_escaped_in_messages(s3: SeaweedS3) -> None:
    options = {
        "endpoint_url": s3.url, "region": "us-east-1", "retries": 0,
        "key": s3.keys.access, "secret": s3.keys.secret,
    }  # fmt: skip
    with pytest.raises(shardio.ShardioError) as caught:
        shardio.ShardDataset(f"s3://{s3.bucket()}/a\x1b[2J\nb\x07", storage_options=options)
    assert "\x1b" not in str(caught.value)
    assert "\x07" not in str(caught.value)
