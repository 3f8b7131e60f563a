"""Fetching shards in threads: how loops end, what errors reach them, and what is fetched how."""

from __future__ import annotations

import gc
import logging
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import shardio
from servers import Nginx
from shardio.storage import downloads, http
from shardio.storage.downloads import RemoteShard
from shardio.storage.shard_cache import NextUse, Part, ShardCache
from tests.remote import shards
from tests.remote.shards import (
    BYTES,
    files,
    local,
    make_set,
    open_set,
    ranges,
    read,
    stored,
    until,
    whole_gets,
)

Serve = Callable[..., Nginx]
LONG = 30.0  # seconds for which nobody waits
ROUND = 3.0  # seconds of a request, long beside what else is done


def asked(web: Nginx, suffix: str) -> set[tuple[str, str]]:
    """Return name and range of the requests for files."""
    found = [each for each in web.requests() if each.target.endswith(suffix)]
    return {(each.target, each.headers.get("range", "")) for each in found}


def parts(cache: Path) -> list[Path]:
    return [*cache.rglob("*.part")]


FAULTS: dict[str, dict[str, Any]] = {
    "stall before the answer": {"stall": LONG},
    "stall in the body": {"stall": LONG, "at": BYTES},
    "a wish to come later": {"status": 503, "retry_after": LONG},
    "slow": {"rate": 1000},
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("threads", [0, 2])
def test_webdataset_411_a_loop_that_is_left_ends_at_once_and_in_silence(
    serve: Serve,
    out: Path,
    tmp_path: Path,
    fault: str,
    threads: int,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    web, cache = serve(folder=out), tmp_path / "cache"
    dataset = open_set(web, cache, window=1)
    source: Any = shardio.Loader(dataset, threads=threads) if threads else dataset
    before = {*threading.enumerate()}
    loop = iter(source)
    next(loop)
    web.fail("*.tar", **FAULTS[fault])
    start = time.monotonic()
    loop.close()
    assert time.monotonic() - start < LONG / 3
    assert parts(cache) == []
    others = [each for each in threading.enumerate() if each not in before]
    assert all(each.daemon for each in others)
    gc.collect()
    assert capfd.readouterr().err == ""
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []
    web.heal()
    assert len(read(source)) == 64


def test_a_part_that_is_claimed_while_its_loop_is_left_does_not_stay(
    serve: Serve, out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    web, cache = serve(folder=out), tmp_path / "cache"
    claim, may_claim = ShardCache.claim, threading.Event()
    claims, claimed = list[str](), list[str]()

    def claim_late(cache: ShardCache, wanted: RemoteShard, next_use: NextUse) -> Part | bool:
        claims.append(wanted.key)
        may_claim.wait(LONG)
        try:
            return claim(cache, wanted, next_use)
        finally:
            claimed.append(wanted.key)

    monkeypatch.setattr(ShardCache, "claim", claim_late)
    loop = iter(open_set(web, cache, window=1))
    next(loop)
    web.fail("*.tar", stall=LONG)
    until(lambda: claims)
    threading.Timer(downloads._LONGEST_END + 0.5, may_claim.set).start()
    loop.close()  # type: ignore[attr-defined]
    until(lambda: len(claimed) == len(claims))
    assert parts(cache) == []


@pytest.mark.parametrize("way", ["one dataset", "a mix"])
def test_a_loop_that_is_left_does_not_wait_for_the_index_of_a_shard(
    serve: Serve, out: Path, tmp_path: Path, way: str
) -> None:
    web = serve(folder=out)
    dataset: Any = open_set(web, tmp_path / "cache", window=1)
    (key, *_) = next(iter(open_set(web, tmp_path / "other", window=1)))["__key__"]
    if way == "a mix":
        dataset = shardio.Mix([dataset], weights=[1.0])
    first = int(key) // shards.SAMPLES
    for number in {*range(8)} - {first}:
        web.fail(f"/index/shard-{number:06d}.tar.idx", stall=LONG)
    loop = iter(shardio.Loader(dataset, threads=2))
    next(loop)
    start = time.monotonic()
    loop.close()  # type: ignore[attr-defined]
    assert time.monotonic() - start < LONG / 3


def run(code: str, web: Nginx, cache: Path) -> subprocess.Popen[str]:
    """Start a script of a user, which has `dataset`."""
    head = f"""
    import signal, sys, time, shardio
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
    dataset = shardio.ShardDataset({f"{web.url}/"!r}, cache_dir={str(cache)!r}, batch_size=8,
                                   shuffle=True, window=2, decode=False)
    """
    root = Path(shardio.__file__).parents[1]
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(head) + textwrap.dedent(code)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(root)},
    )


SCRIPTS = {
    "a script that ends": """
        loop = iter(shardio.Loader(dataset, threads=2))
        next(loop)
        print("ready", flush=True)
        time.sleep(1)
        """,
    "a script that fails": """
        loop = iter(dataset)
        next(loop)
        print("ready", flush=True)
        time.sleep(1)
        raise KeyError("mine")
        """,
    "an interrupt": """
        for batch in dataset:
            print("ready", flush=True)
        """,
}


@pytest.mark.parametrize("how", SCRIPTS)
def test_a_process_ends_amid_downloads_without_waiting(
    serve: Serve, out: Path, tmp_path: Path, how: str
) -> None:
    web, cache = serve(folder=out), tmp_path / "cache"
    web.fail("*.tar", stall=600, at=6 * BYTES)  # more than is asked for a batch
    with run(SCRIPTS[how], web, cache) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        if how == "an interrupt":
            time.sleep(1)
            process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=LONG)
    assert errors.count("Traceback") == (how != "a script that ends")
    assert parts(cache) == []
    web.heal()
    assert len(read(open_set(web, cache))) == 64


@pytest.mark.parametrize("policy", ["raise", "skip"])
@pytest.mark.parametrize(
    ("status", "error"),
    [(404, "RemoteMissing"), (403, "RemoteDenied"), (503, "RemoteUnreachable")],
)
@pytest.mark.parametrize("threads", [0, 2])
def test_a_store_that_fails_ends_the_loop_with_its_error(
    serve: Serve, out: Path, tmp_path: Path, policy: str, status: int, error: str, threads: int
) -> None:
    web = serve(folder=out)
    dataset = open_set(web, tmp_path / "cache", on_bad_sample=policy, window=1, download_retry=1)
    source: Any = shardio.Loader(dataset, threads=threads) if threads else dataset
    loop = iter(source)
    next(loop)
    web.fail("*.tar", status=status)
    kind = getattr(shardio.errors, error)
    with pytest.raises(kind, match=r"\.tar: .*HTTP " + str(status)):
        next(batch for batch in loop if not batch)
    assert dataset.num_bad_samples == 0
    assert parts(tmp_path / "cache") == []
    web.heal()
    assert len(read(source)) == 64


@pytest.mark.parametrize("change", [-1024, 1024])
def test_an_object_of_another_size_is_an_error(serve: Serve, tmp_path: Path, change: int) -> None:
    out = make_set(tmp_path / "out", shards=4)
    web = serve(folder=out)
    dataset = open_set(web, tmp_path / "cache", on_bad_sample="skip")
    for shard in out.glob("*.tar"):
        os.truncate(shard, shard.stat().st_size + change)
    with pytest.raises(shardio.TarError, match=r"its index expects .* upload the shard again"):
        read(dataset)
    assert stored(tmp_path / "cache") == []


def test_a_body_that_breaks_off_goes_on_where_it_ended(
    serve: Serve, out: Path, expected: shards.Read, tmp_path: Path
) -> None:
    web = serve(folder=out)
    dataset = open_set(web, tmp_path / "cache")
    web.fail("*.tar", cut=BYTES, probability=0.5)
    assert read(dataset) == expected


def test_samples_come_while_their_shard_does(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first samples of a shard are delivered before the last have come."""
    monkeypatch.setattr(http, "_GATHERING", 0.0)  # bytes are written when they come
    out = make_set(tmp_path / "out", shards=1, size=50_000, samples=40)
    web, cache = serve(folder=out), tmp_path / "cache"
    dataset = open_set(web, cache, shuffle=False, batch_size=4)
    web.fail("*.tar", stall=600, at=1_000_000)  # half of the shard
    loop = iter(dataset)
    first = [next(loop) for _ in range(4)]
    assert stored(cache) == []
    web.heal()
    assert len(first) + len([*loop]) == 10
    assert ranges(web) <= 20  # of two batches, and before the shard was asked for
    assert len(stored(cache)) == 1


def test_the_first_batch_does_not_wait_for_a_shard(
    serve: Serve, out: Path, expected: shards.Read, tmp_path: Path
) -> None:
    web = serve(folder=out)
    dataset = open_set(web, tmp_path / "cache")
    web.fail("*.tar", stall=600, at=2 * BYTES)  # more than is asked for a sample
    loop = iter(dataset)
    batch = next(loop)
    assert stored(tmp_path / "cache") == []
    assert ranges(web) >= 8
    assert bytes(batch["bin"][0]) == expected[batch["__key__"][0]]
    loop.close()  # type: ignore[attr-defined]


@pytest.mark.parametrize("has_ranges", [True, False])
def test_a_single_shard_comes_in_pieces_where_the_server_has_ranges(
    serve: Serve, tmp_path: Path, has_ranges: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(downloads, "_SPLIT", 100_000)
    out = make_set(tmp_path / "out", shards=1, samples=64)
    web, cache = serve(folder=out), tmp_path / "cache"
    dataset = open_set(web, cache)
    if not has_ranges:
        web.fail("*.tar", ignore=["Range"])
    expected = local(out)
    assert read(dataset) == expected
    assert read(dataset) == expected
    until(lambda: read(dataset) == expected and stored(cache))
    assert stored(cache)[0].read_bytes() == next(out.glob("*.tar")).read_bytes()
    assert (whole_gets(web).total() > 0) != has_ranges


def test_an_object_replaced_in_mid_epoch_is_an_error_or_the_old_bytes(
    serve: Serve, tmp_path: Path
) -> None:
    """A set of others has no digest of its shards, so that versions tell."""
    out = make_set(tmp_path / "out", shards=4)
    web = serve(folder=out)
    dataset = open_set(web, tmp_path / "cache", window=1)
    loop = iter(dataset)
    next(loop)
    for shard in out.glob("*.tar"):
        content = bytearray(shard.read_bytes())
        content[2000] ^= 1
        replacement = tmp_path / "replacement"
        replacement.write_bytes(content)
        replacement.rename(shard)
    with pytest.raises(shardio.ShardioError, match=r"SHA-256 differs|CRC-32 differs|replaced"):
        next(batch for batch in loop if not batch)


def test_a_process_with_no_more_threads_reads_ranges(
    serve: Serve,
    out: Path,
    expected: shards.Read,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    dataset = open_set(serve(folder=out), tmp_path / "cache")
    start = threading.Thread.start

    def refuse(thread: threading.Thread) -> None:
        if thread.name == "shardio-fetch":
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refuse)
    assert read(dataset) == expected
    assert files(tmp_path / "cache")[".tar"] == 0


def test_a_full_shuffle_reads_ranges_until_the_shards_have_come(
    serve: Serve, out: Path, tmp_path: Path
) -> None:
    web, cache = serve(folder=out, latency=0.01), tmp_path / "cache"
    dataset = open_set(web, cache, shuffle="full")
    here = shardio.ShardDataset(out, batch_size=8, shuffle="full", decode=False)
    assert read(dataset) == read(here)
    until(lambda: len(stored(cache)) == 8 or not read(dataset))
    web.forget()
    assert len(read(dataset)) == 64
    assert whole_gets(web) == {}


def test_a_loop_that_ends_waits_for_shards_that_are_only_about_to_come(
    serve: Serve, out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when other processes hold the lock of the cache; a part would be left behind."""
    claim = ShardCache.claim

    def claim_late(*arguments: Any) -> Any:
        time.sleep(0.5)
        return claim(*arguments)

    monkeypatch.setattr(ShardCache, "claim", claim_late)
    assert len(read(open_set(serve(folder=out), tmp_path / "cache", shuffle="full"))) == 64
    assert len(stored(tmp_path / "cache")) == 8


def test_a_full_shuffle_of_more_than_the_cache_holds_keeps_the_same_part(
    serve: Serve, out: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    web, cache = serve(folder=out), tmp_path / "cache"
    size = max(path.stat().st_size for path in out.glob("*.tar"))
    dataset = open_set(web, cache, shuffle="full", cache_limit=3 * size)
    for _ in range(3):
        assert len(read(dataset)) == 64
    kept = stored(cache)
    assert len(read(dataset)) == 64
    assert stored(cache) == kept
    (message,) = [each.message for each in caplog.records if "has no room" in each.message]
    assert "has no room left for a shard of" in message


def test_a_mixture_that_ends_waits_for_the_shards_that_come(
    serve: Serve, out: Path, tmp_path: Path
) -> None:
    """As a dataset does: other processes may need more of them, and this one's next epoch."""
    web, cache = serve(folder=out), tmp_path / "cache"
    web.fail("*.tar", rate=50_000)
    mix = shardio.Mix(open_set(web, cache).split(0.2, 0.8), weights=[0.5, 0.5])
    assert len(read(mix)) == 8 * len(mix) < 64
    assert parts(cache) == []
    assert stored(cache)


def test_a_first_batch_is_three_rounds_of_requests(serve: Serve, out: Path, tmp_path: Path) -> None:
    """The manifest alone, then all indexes at once, then all samples at once, and no shard."""
    web = serve(folder=out)
    dataset = open_set(web, tmp_path / "cache", window=8, batch_size=32)
    assert [each.method for each in web.requests()] == ["GET"]  # of the manifest
    web.fail("*.idx", stall=ROUND)
    web.fail("*.tar", stall=ROUND)
    loop = iter(shardio.Loader(dataset, threads=2, prefetch=1))
    first = threading.Thread(target=next, args=(loop,), daemon=True)
    first.start()
    until(lambda: len(asked(web, ".idx")) == 8)
    assert asked(web, ".tar") == set()
    until(lambda: len(asked(web, ".tar")) == 32)  # one after the other they would take minutes
    assert whole_gets(web).total() == 0
    first.join()
    loop.close()  # type: ignore[attr-defined]
    assert len(asked(web, ".json")) == 1
