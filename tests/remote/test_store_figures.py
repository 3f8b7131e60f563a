"""What `plan` and `profile` say of a store, and the options of stores that commands take."""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import shardio
from servers import S3_LATENCY, Nginx, SeaweedS3
from shardio.cli import commands
from shardio.indexing.catalog import open_catalog
from shardio.profiling.monitoring import monitor
from shardio.profiling.profile import ask
from shardio.profiling.store import MOST_BYTES, MOST_SECONDS, StoreLimits, measure_store
from shardio.testing import make_images

SHARDS, SAMPLES, SIZE = 20, 10, 10_000


@pytest.fixture(scope="module")
def noise(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A packed folder of 20 shards of about 100 kB."""
    samples = (
        {"__key__": f"{number:03}", "bin": os.urandom(SIZE)} for number in range(SHARDS * SAMPLES)
    )
    out = tmp_path_factory.mktemp("noise") / "out"
    shardio.pack(samples, out, shards=SHARDS, shuffle=False)
    return out


def bytes_of_shards(web: Nginx, folder: Path) -> int:
    """Bytes of shards that a server was asked for."""
    total = 0
    for request in web.requests():
        if request.method == "GET" and request.target.endswith(".tar"):
            asked = re.fullmatch(r"bytes=(\d+)-(\d+)", request.headers.get("range", ""))
            size = (folder / Path(request.target).name).stat().st_size
            total += int(asked[2]) - int(asked[1]) + 1 if asked else size
    return total


@pytest.mark.parametrize("share", [0.3, 0.6, 1.1])
def test_plan_says_what_epochs_fetch(
    noise: Path, share: float, serve: Callable[..., Nginx], tmp_path: Path
) -> None:
    web = serve(folder=noise)
    order: dict[str, Any] = {"batch_size": 5, "shuffle": True, "window": 1}
    limit = int(share * sum(path.stat().st_size for path in noise.glob("*.tar")))
    found = shardio.plan(web.url, **order, storage_options={"cache_limit": limit})
    (node,) = found.nodes
    assert found.remote
    assert found.cache_limit == limit
    dataset = shardio.ShardDataset(
        web.url, **order, cache_dir=tmp_path / "cache", cache_limit=limit
    )
    totals = [bytes_of_shards(web, noise)]
    for epoch in range(3):
        dataset.set_epoch(epoch)
        samples = 0
        for batch in dataset:
            samples += int(batch["valid"].sum())
            time.sleep(0.02)  # what is needed before it has been asked for comes by ranges
        assert samples == SHARDS * SAMPLES
        totals.append(bytes_of_shards(web, noise))
    first, *later = (after - before for before, after in pairwise(totals))
    ranges = 2 * 5 * (SIZE + 2048)  # of the first batches, at most
    shard = found.bytes / SHARDS  # one may be asked for by ranges before it is fetched
    assert node.bytes <= first <= node.bytes + ranges + shard
    assert node.later_bytes is not None
    assert sum(later) / 2 == pytest.approx(node.later_bytes + ranges / 2, abs=ranges / 2 + shard)


def test_plan_says_what_each_node_fetches_in_words(
    noise: Path, serve: Callable[..., Nginx]
) -> None:
    web = serve(folder=noise)
    order = ["--batch-size", "5", "--ranks", "4", "--nodes", "2", "--shuffle", "true"]
    size = sum(path.stat().st_size for path in noise.glob("*.tar"))

    def said(*options: str, source: str = web.url) -> str:
        done = CliRunner().invoke(commands, ["plan", source, *order, *options])
        assert done.exit_code == 0, done.output
        return " ".join(done.output.split())

    everything = said()
    assert (
        f"Each of 2 nodes, with 2 ranks, fetches up to {size / 1e6:,.1f} MB from the store in the "
        f"first epoch, {2 * size / 1e6:,.1f} MB together; without a cache in every epoch."
    ) in everything
    assert f"A cache of {size / 1e6:,.1f} MB leaves nothing to fetch" in everything
    assert f"With --streams 4 each would fetch about {size / 2 / 1e6:,.1f} MB." in everything
    own = said("--streams", "4", "--cache-limit", "10MB")
    assert f"fetches up to {size / 2 / 1e6:,.1f} MB from the store" in own
    assert "each would fetch" not in own
    assert "A cache of 10.0 MB leaves up to 0.0 MB to fetch in each later epoch." in own
    assert "from the store" not in said(source=str(noise))
    assert "A cache of 1.0 MB leaves" in said("--cache-limit", "1MB", source=str(noise))
    assert "A cache of 1.0 MB leaves" in said("--storage-option", "cache_limit=1MB")
    with pytest.raises(shardio.UsageError, match=r"cache_limit='1MV': it must be bytes, .*512MB"):
        shardio.plan(noise, batch_size=5, storage_options={"cache_limit": "1MV"})


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("photos")
    make_images(root / "in", classes=2, per_class=60)
    shardio.pack(root / "in", root / "out", shards=6)
    return root / "out"


@pytest.mark.usefixtures("as_if_idle", "measured_here")
def test_profile_measures_a_store_and_then_loaders_with_shards_in_the_cache(
    photos: Path, serve: Callable[..., Nginx], tmp_path: Path
) -> None:
    web = serve(folder=photos, latency=S3_LATENCY)
    web.fail("*.tar", rate=20_000)
    options = {"cache_dir": str(tmp_path / "cache")}
    found = shardio.profile(
        web.url,
        size=16,
        seconds=0.3,
        batch_size=20,
        threads=[1],
        html=str(tmp_path / "a.html"),
        storage_options=options,
    )
    store = found.store
    assert store is not None
    assert S3_LATENCY <= store.first_byte < 20 * S3_LATENCY
    assert [number for number, _ in store.rates] == [1, 4, 16]
    assert 0 < store.measured_bytes <= MOST_BYTES
    assert store.measured_seconds < 3 * MOST_SECONDS
    assert store.total_bytes == sum(path.stat().st_size for path in photos.glob("*.tar"))
    assert (store.loaded, store.loaded_bytes) == (6, store.total_bytes)
    assert store.cached == 1
    whole = [
        request.target
        for request in web.requests()
        if request.target.endswith(".tar") and "range" not in request.headers
    ]
    assert sorted(whole) == sorted({*whole})  # and the loaders read what is in the cache
    assert found.verdict.bottleneck == "store"
    assert found.verdict.rate_without == found.runs[found.best].evidence.rate
    assert found.verdict.sentence.startswith("The store limits the first epoch to ")
    page = (tmp_path / "a.html").read_text("utf-8")
    for words in (
        "it stops at 268 MB or 5 s",
        "the loaders with 6 shards of",
        "store measured without the cache",
        f"The store: first byte after {store.first_byte * 1e3:,.0f} ms, ",
        f" MB/s by 1 / 4 / 16 connections, which allows {store.samples_per_second:,.0f} samples/s",
        "first: time to first batch, shards cached",
    ):
        assert words in page
    assert found.settings.storage_options is None


def test_the_wait_and_the_rate_of_a_store_are_told_apart(
    serve: Callable[..., Nginx], tmp_path: Path
) -> None:
    """Within a factor of two, and so slow that a busy machine is no limit."""
    samples = ({"__key__": f"{number:02}", "bin": os.urandom(500_000)} for number in range(32))
    shardio.pack(samples, tmp_path / "out", shards=4, shuffle=False)
    web = serve(folder=tmp_path / "out", latency=0.1, rate=1e6)
    catalog = open_catalog(web.url, options={"cache_dir": str(tmp_path / "cache")})
    store = StoreLimits.from_json(measure_store(catalog, 1))
    assert store.first_byte >= 0.1
    rates = dict(store.rates)
    assert 0.5e6 < rates[1] < 2e6  # buffers on the way even out what comes
    assert 2 * rates[1] < rates[16] < 16 * 2e6
    assert store.loaded == 1
    few = StoreLimits.from_json(measure_store(catalog, 0, seconds=0.5, most=32 << 20))
    assert few.measured_bytes <= 32 << 20  # of which 16 connections take a piece of 1 MB each


@pytest.mark.usefixtures("as_if_idle", "measured_here")
def test_a_profile_that_a_store_does_not_limit_says_what_it_could_deliver(
    photos: Path, serve: Callable[..., Nginx]
) -> None:
    web = serve(folder=photos)
    words = ["profile", web.url, "--threads", "0", "--seconds"]
    done = CliRunner().invoke(commands, [*words, "0.3"], catch_exceptions=False)
    if "too short to tell" in done.output:  # as on a busy machine
        done = CliRunner().invoke(commands, [*words, "3"], catch_exceptions=False)
    assert done.exit_code == 0
    said = " ".join(done.stdout.split())
    assert "store, first byte" in said
    assert "store, 16 connections" in said
    assert not said.startswith("Storage")
    assert not said.startswith("Fetching")


def test_what_a_profile_asks_of_a_process_is_not_in_its_arguments(
    photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    start = subprocess.Popen

    def noted(command: list[str], **options: Any) -> Any:
        seen.extend(command)
        return start(command, **options)

    monkeypatch.setattr(subprocess, "Popen", noted)
    settings = {"source": str(photos), "storage_options": {"secret": "a password"}, "size": 0}
    ask({"settings": {**settings, "seconds": 0.1, "batch_size": 2}})
    assert seen
    assert "password" not in " ".join(seen)


def test_commands_take_options_of_a_store(
    s3: SeaweedS3, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are all that says where the store is."""
    pytest.importorskip("boto3")
    for name in [each for each in os.environ if each.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    s3.upload(photos, "public", "figures/")
    monkeypatch.chdir(tmp_path)
    url, order = "s3://public/figures", ["--batch-size", "5"]
    options = ["--storage-option", f"endpoint_url={s3.url}", "--storage-option", "anon=true"]
    options += ["--storage-option", "retries=2", "--cache-dir", str(tmp_path / "cache")]
    for command in (
        ["info", url],
        ["verify", url],
        ["plan", url, *order, "--cache-limit", "1GB"],
        ["replay", url, *order, "--step", "1", "--to", "batch"],
    ):
        done = CliRunner().invoke(commands, [*command, *options, "--json"])
        assert done.exit_code == 0, (command, done.output, done.exception)
        assert json.loads(done.stdout)
        assert s3.url not in done.stdout
    assert json.loads((tmp_path / "batch/batch.json").read_text())["settings"]["source"] == url
    assert s3.url not in (tmp_path / "batch/batch.json").read_text()
    assert [*(tmp_path / "cache").iterdir()]


def test_a_pack_takes_options_of_the_store_that_it_writes_to(
    s3: SeaweedS3, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("boto3")
    for name in [each for each in os.environ if each.startswith("AWS_")]:
        monkeypatch.delenv(name)
    url = f"s3://{s3.bucket()}/out"
    options = {"endpoint_url": s3.url, "key": s3.keys.access, "secret": s3.keys.secret}
    pairs = [["--storage-option", f"{name}={value}"] for name, value in options.items()]
    words = [word for pair in pairs for word in pair]
    done = CliRunner().invoke(commands, ["pack", str(images), url, "--shards", "2", *words])
    assert done.exit_code == 0, done.exception
    assert s3.keys.secret not in done.output
    assert shardio.info(url, storage_options=options).samples == 600


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("swordfish", "it is not KEY=VALUE, as anon=true"),
        ("=swordfish", "it is not KEY=VALUE, as anon=true"),
        ("retries=swordfish", "retries is a number, as retries=3"),
        ("cache_limit=swordfish", "cache_limit is a size, as cache_limit=100GB"),
        ("colour=swordfish", "--storage-option: there is no option 'colour'"),
    ],
)
def test_an_option_that_is_wrong_is_refused_without_its_value(option: str, message: str) -> None:
    words = ["info", "http://localhost:1/out", "--storage-option", option]
    done = CliRunner().invoke(commands, words)
    said = f"{done.output}{done.exception or ''}"
    assert done.exit_code
    assert message in said
    assert "swordfish" not in said


def test_options_are_a_mapping() -> None:
    for function in (shardio.info, shardio.verify):
        with pytest.raises(shardio.UsageError, match="storage_options: it must be a mapping"):
            function("http://localhost:1/out", storage_options="anon")  # type: ignore[arg-type]


def test_a_cache_named_among_the_options_is_used(
    noise: Path, serve: Callable[..., Nginx], tmp_path: Path
) -> None:
    options = {"cache_dir": str(tmp_path / "cache")}
    dataset = shardio.ShardDataset(serve(folder=noise).url, batch_size=50, storage_options=options)
    assert len([*dataset]) == 4
    assert [*(tmp_path / "cache").rglob("*.tar")]


def test_the_limit_of_the_cache_is_a_number_or_a_size(
    noise: Path, serve: Callable[..., Nginx], tmp_path: Path
) -> None:
    url = serve(folder=noise).url
    given: dict[str, Any] = {"cache_dir": tmp_path / "cache", "batch_size": 50}
    ways: list[dict[str, Any]] = [
        {"cache_limit": "0.5MB"},
        {"storage_options": {"cache_limit": "500 kB"}},
        {"storage_options": {"cache_limit": 500_000}},
    ]
    for way in ways:
        assert len([*shardio.ShardDataset(url, **given, **way)]) == 4
        size = sum(path.stat().st_size for path in (tmp_path / "cache").rglob("*.tar"))
        assert 0 < size <= 500_000
    assert shardio.prune_cache("150kB", cache_dir=tmp_path / "cache").kept <= 150_000


@pytest.mark.parametrize(
    ("argument", "option", "value"),
    [
        ("cache_limit", "cache_limit", 5),
        ("cache_dir", "cache_dir", "cache"),
        ("download_retry", "retries", 3),
        ("download_timeout", "timeout", 5.0),
    ],
)
def test_a_setting_of_the_store_is_given_once(
    noise: Path, argument: str, option: str, value: object
) -> None:
    given: dict[str, Any] = {argument: value, "storage_options": {option: value}}
    with pytest.raises(shardio.UsageError, match=rf"'{option}' in .* {argument} are the same"):
        shardio.ShardDataset(noise, **given)
    if argument.startswith("cache"):
        words = ["plan", "http://localhost:1/out", "--batch-size", "5"]
        words += [f"--{argument.replace('_', '-')}", str(value)]
        done = CliRunner().invoke(commands, [*words, "--storage-option", f"{option}={value}"])
        assert done.exit_code
        assert "are the same setting; give one of them" in str(done.exception)


def test_plan_warns_of_a_cache_that_is_too_small_for_the_windows(
    noise: Path, serve: Callable[..., Nginx], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Training with what the warning names reads whole shards alone."""
    url = serve(folder=noise).url
    order: dict[str, Any] = {"batch_size": 5, "shuffle": True}

    def warned(limit: str, window: int) -> str:
        found = shardio.plan(url, **order, window=window, storage_options={"cache_limit": limit})
        return " ".join(each for each in found.warnings if "no room" in each)

    def trained(limit: str, window: int) -> bool:
        given: dict[str, Any] = {**order, "cache_limit": limit, "window": window}
        dataset = shardio.ShardDataset(url, **given, cache_dir=tmp_path / limit / str(window))
        for _ in dataset:
            time.sleep(0.01)
        return "samples are read one by one" not in caplog.text

    said = warned("1MB", 8)
    assert said.startswith("a cache of 1.0 MB has no room for the windows that are open at once")
    named = re.search(r"give cache_limit='(.*)' or use window=(\d+), which fits$", said)
    assert named is not None
    limit, window = named[1], int(named[2])
    assert not warned(limit, 8)
    assert not warned("1MB", window)
    assert "no room" in warned("1MB", window + 1)
    assert trained(limit, 8)
    assert trained("1MB", window)
    assert not trained("1MB", 8)
    assert "use window" not in warned("150kB", 8)
    done = CliRunner().invoke(
        commands, ["plan", url, "--batch-size", "5", "--window", "8", "--cache-limit", "1MB"]
    )
    assert "windows in cache" in done.output
    assert f"--window {window}, which fits" in " ".join(done.output.split())


@pytest.mark.parametrize("threads", [0, 1])
def test_a_watched_loop_that_waits_for_a_cold_store_is_told_so(
    photos: Path, serve: Callable[..., Nginx], tmp_path: Path, threads: int
) -> None:
    web = serve(folder=photos)
    web.fail("*.tar", rate=40_000)
    dataset = shardio.ShardDataset(
        web.url,
        batch_size=8,
        shuffle=True,
        window=1,
        transform=shardio.Resize((8, 8)),
        cache_dir=tmp_path / "cache",
    )
    loader = shardio.Loader(dataset, threads=threads) if threads else dataset
    with monitor(loader, live=False) as seen:
        assert len([*seen]) == 15
    assert seen.evidence.batches == 14  # the wait for the first window is none of starting
    assert seen.verdict.bottleneck == "store"
    assert "tiny" not in seen.verdict.sentence
    with monitor(loader, live=False) as seen:
        assert [*seen]
    assert seen.verdict.bottleneck != "store"
