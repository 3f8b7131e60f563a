"""Shards that others made, in a store: indexed once while they come, and identified by it."""

from __future__ import annotations

import gzip
import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import zstandard
from click.testing import CliRunner

import shardio
from servers import Nginx, SeaweedS3
from shardio.cli import commands
from shardio.indexing.manifest import index_path
from shardio.storage.base import FileStat
from shardio.storage.remote import RemoteStorage
from shardio.testing import make_shard

SAMPLES = 30


@pytest.fixture
def tars(tmp_path: Path) -> Path:
    """Shards without a manifest: three plain ones."""
    folder = tmp_path / "tars"
    folder.mkdir()
    for number in range(3):
        samples = {
            f"{number}{sample:04d}": {
                field: f"{field} {number} {sample}".encode() * 40 for field in ("txt", "bin")
            }
            for sample in range(SAMPLES)
        }
        make_shard(folder / f"part-{number}.tar", samples)
    return folder


@pytest.fixture
def options(s3: SeaweedS3, tmp_path: Path) -> dict[str, Any]:
    store = {
        "endpoint_url": s3.url,
        "key": s3.keys.access,
        "secret": s3.keys.secret,
        "region": "us-east-1",
    }
    return {"storage_options": store, "cache_dir": tmp_path / "cache"}


def read(source: Any, **options: Any) -> list[tuple[str, str, bytes]]:
    dataset = shardio.ShardDataset(source, batch_size=16, shuffle=True, seed=1, **options)
    return [
        entry
        for batch in shardio.Loader(dataset)
        for entry in zip(batch["__key__"], batch["txt"], batch["bin"], strict=True)
    ]


def state(source: Any, **options: Any) -> dict[str, Any]:
    return shardio.ShardDataset(source, batch_size=16, shuffle=True, **options).state_dict()


def compressed(tars: Path, folder: Path) -> Path:
    """The shards, two of them compressed."""
    folder.mkdir()
    shutil.copy(tars / "part-0.tar", folder)
    (folder / "part-1.tar.gz").write_bytes(gzip.compress((tars / "part-1.tar").read_bytes()))
    packed = zstandard.compress((tars / "part-2.tar").read_bytes())
    (folder / "part-2.tar.zst").write_bytes(packed)
    return folder


@pytest.mark.parametrize("pattern", ["", "/part-*.tar", "/part-{0..2}.tar", "/part-[012].tar"])
def test_shards_of_a_bucket_read_as_local_ones(
    s3: SeaweedS3, tars: Path, options: dict[str, Any], pattern: str
) -> None:
    bucket = s3.bucket()
    s3.upload(tars, bucket, "out/")
    assert read(f"s3://{bucket}/out{pattern}", **options) == read(tars)


def test_single_shards_and_lists_of_them_read_as_local_ones(
    s3: SeaweedS3, tars: Path, options: dict[str, Any]
) -> None:
    bucket = s3.bucket()
    s3.upload(tars, bucket)
    names = ["part-2.tar", "part-0.tar"]
    there = [f"s3://{bucket}/{name}" for name in names]
    assert read(there, **options) == read([tars / name for name in names])
    assert read(there[0], **options) == read(tars / names[0])


def test_compressed_shards_of_a_store_read_as_local_ones(
    s3: SeaweedS3, tars: Path, options: dict[str, Any], tmp_path: Path
) -> None:
    bucket = s3.bucket()
    s3.upload(compressed(tars, tmp_path / "compressed"), bucket)
    assert read(f"s3://{bucket}", **options) == read(tars)
    shutil.rmtree(tmp_path / "cache")
    dataset = shardio.ShardDataset(f"s3://{bucket}", batch_size=16, **options)
    for entry in (tmp_path / "cache" / "remote").rglob("*.tar"):
        entry.unlink()  # what has vanished is fetched again
    assert sum(len(batch["txt"]) for batch in dataset) == 3 * SAMPLES + 6


def test_shards_behind_http_are_fetched_and_indexed_once(
    serve: Callable[..., Nginx], tars: Path, tmp_path: Path
) -> None:
    web = serve(folder=tars)
    source = f"{web.url}/part-{{0..2}}.tar"
    for _ in range(2):
        assert read(source, cache_dir=tmp_path / "cache") == read(tars)
    gets = Counter(path for method, path in web.counts() if method == "GET")
    assert {path: web.counts()["GET", path] for path in gets if path.endswith(".tar")} == {
        f"/part-{number}.tar": 1 for number in range(3)
    }


def test_where_nothing_can_be_listed_the_error_says_how_to_name_shards(
    serve: Callable[..., Nginx], tars: Path
) -> None:
    web = serve(folder=tars)
    for source in (web.url, f"{web.url}/part-*.tar"):
        with pytest.raises(shardio.UsageError, match=r"cannot list.*shard-\{000000"):
            shardio.ShardDataset(source)


def test_a_state_fits_wherever_the_shards_lie_and_whoever_indexed_them(
    s3: SeaweedS3, tars: Path, options: dict[str, Any], tmp_path: Path
) -> None:
    bucket = s3.bucket()
    s3.upload(compressed(tars, tmp_path / "compressed"), bucket)
    scanned = state(tars)
    assert state(f"s3://{bucket}", **options) == scanned
    assert state(tmp_path / "compressed") == scanned
    shardio.index(tars)
    assert state(tars) == scanned


def test_the_index_written_beside_a_shard_is_used(
    s3: SeaweedS3, tars: Path, options: dict[str, Any], tmp_path: Path, monkeypatch: Any
) -> None:
    bucket = s3.bucket()
    s3.upload(tars, bucket)
    store = options["storage_options"]
    monkeypatch.setenv("SHARDIO_CACHE", str(tmp_path / "elsewhere"))
    summary = shardio.index(f"s3://{bucket}", storage_options=store)
    assert (summary.shards, summary.samples) == (3, 3 * SAMPLES)
    names = s3.client().list_objects_v2(Bucket=bucket)["Contents"]
    beside = {str(index_path(Path(f"part-{number}.tar"))) for number in range(3)}
    assert beside <= {each["Key"] for each in names}
    expected = read(tars)
    monkeypatch.setattr("shardio.indexing.foreign.index_shard", None)
    assert read(f"s3://{bucket}", **options) == expected


def test_a_stale_index_beside_a_shard_is_refused(
    s3: SeaweedS3, tars: Path, options: dict[str, Any]
) -> None:
    bucket = s3.bucket()
    shardio.index(tars)
    shutil.copy(index_path(tars / "part-0.tar"), index_path(tars / "part-1.tar"))
    with (tars / "part-1.tar").open("ab") as stream:
        stream.write(bytes(10240))
    s3.upload(tars, bucket)
    with pytest.raises(shardio.IndexFileError, match=r"part-1\.tar: the index is stale"):
        shardio.ShardDataset(f"s3://{bucket}", **options)


def test_a_shard_that_was_replaced_is_indexed_anew_and_never_mixed(
    s3: SeaweedS3, tars: Path, options: dict[str, Any]
) -> None:
    bucket = s3.bucket()
    s3.upload(tars, bucket)
    before = shardio.ShardDataset(f"s3://{bucket}", batch_size=16, **options)
    others = {f"z{n:04d}": {"txt": b"other", "bin": b"other"} for n in range(SAMPLES)}
    make_shard(tars / "part-1.tar", others)
    for entry in (options["cache_dir"] / "remote").rglob("*.tar"):
        entry.unlink()
    s3.upload(tars, bucket)
    with pytest.raises(shardio.RemoteError, match="replaced while it was read"):
        list(shardio.Loader(before))
    assert read(f"s3://{bucket}", **options) == read(tars)


def test_a_compressed_shard_needs_room(
    s3: SeaweedS3, tars: Path, options: dict[str, Any], tmp_path: Path
) -> None:
    bucket = s3.bucket()
    s3.upload(compressed(tars, tmp_path / "compressed"), bucket)
    source = f"s3://{bucket}/part-1.tar.gz"
    dataset = shardio.ShardDataset(source, batch_size=16, cache_limit=1000, **options)
    with pytest.raises(shardio.UsageError, match=r"no room.*cache_limit"):
        list(dataset)


def test_the_command_indexes_shards_of_a_store(
    s3: SeaweedS3, tars: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SHARDIO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3.url)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", s3.keys.access)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", s3.keys.secret)
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    bucket = s3.bucket()
    s3.upload(tars, bucket)
    done = CliRunner().invoke(commands, ["index", f"s3://{bucket}"])
    assert done.exit_code == 0, done.output
    assert "90 samples" in done.output


@pytest.mark.parametrize("missing", [(), (2, 1)])
def test_a_list_of_urls_is_opened_side_by_side(
    serve: Callable[..., Nginx],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    missing: tuple[int, ...],
) -> None:
    """Of several errors that of the first URL is raised, though another came before it."""
    (tmp_path / "www").mkdir()
    for number in range(4):
        samples = {f"{number} {sample}": {"txt": b"x"} for sample in range(number + 1)}
        make_shard(tmp_path / "www" / f"{number}.tar", samples)
    for number in missing:
        (tmp_path / "www" / f"{number}.tar").unlink()
    together, measure = threading.Barrier(4), RemoteStorage.stat

    def stat(storage: RemoteStorage, path: str) -> FileStat:
        if ".tar" in path:
            together.wait(30)
        if missing and path.endswith("1.tar"):
            time.sleep(0.2)
        return measure(storage, path)

    monkeypatch.setattr(RemoteStorage, "stat", stat)
    web = serve(folder=tmp_path / "www")
    urls = [f"{web.url}/{number}.tar" for number in range(4)]
    if missing:
        with pytest.raises(shardio.UsageError, match=r"/1\.tar: no such shard"):
            shardio.ShardDataset(urls, batch_size=1, cache_dir=tmp_path / "cache")
        return
    dataset = shardio.ShardDataset(urls, batch_size=1, cache_dir=tmp_path / "cache")
    assert [shard.samples for shard in dataset.catalog.shards] == [1, 2, 3, 4]
