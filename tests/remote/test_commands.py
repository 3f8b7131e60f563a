"""Every command with URLs: what is read and written there is what local folders give."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from click.testing import CliRunner

import shardio
from servers import Nginx, SeaweedS3
from shardio.cli import commands, main
from shardio.packing.task import pack_shard
from shardio.storage import remote
from shardio.testing import make_images, make_shard

pytest.importorskip("boto3")
SHARDS = 3


@pytest.fixture(autouse=True)
def environment(s3: SeaweedS3, monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment of a user of the store."""
    for name in [each for each in os.environ if each.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3.url)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", s3.keys.access)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", s3.keys.secret)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")


@pytest.fixture(scope="module")
def packed_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("packed")
    make_images(folder / "images", classes=3, per_class=20)
    shardio.pack(folder / "images", folder / "packed", shards=SHARDS, seed=1)
    return folder / "packed"


@pytest.fixture
def packed(packed_once: Path, tmp_path: Path) -> Path:
    """A packed folder of 60 images of 3 classes; it may be changed."""
    return shutil.copytree(packed_once, tmp_path / "packed")


@pytest.fixture
def tars(tmp_path: Path) -> Path:
    """Shards of another program, one of them compressed."""
    folder = tmp_path / "tars"
    for number in range(SHARDS):
        samples = {
            f"{number}{sample:04d}": {
                field: f"{field} {number} {sample}".encode() * 400 for field in ("txt", "bin")
            }
            for sample in range(30)
        }
        folder.mkdir(exist_ok=True)
        make_shard(folder / f"part-{number}.tar", samples)
    last = folder / f"part-{SHARDS - 1}.tar"
    (folder / f"{last.name}.gz").write_bytes(gzip.compress(last.read_bytes()))
    last.unlink()
    return folder


@pytest.fixture
def bucket(s3: SeaweedS3) -> str:
    return s3.bucket()


def run(*arguments: object) -> str:
    """What a command prints, which must succeed."""
    done = CliRunner().invoke(commands, [*map(str, arguments)], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def digests(folder: Path) -> dict[str, str]:
    """Digest of each file below a folder."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def samples(source: Any) -> list[Any]:
    """Keys and data of all samples, in order."""
    dataset = shardio.ShardDataset(source, decode=False, batch_size=16, tail="short")
    return [
        [(name, list(batch[name])) for name in sorted(batch.keys() - {"__epoch__", "__step__"})]
        for batch in shardio.Loader(dataset)
    ]


def stored_digests(s3: SeaweedS3, bucket: str, prefix: str) -> dict[str, str]:
    client = s3.client()
    listed = client.list_objects_v2(Bucket=bucket, Prefix=prefix).get("Contents", [])
    return {
        each["Key"].removeprefix(prefix): hashlib.sha256(
            client.get_object(Bucket=bucket, Key=each["Key"])["Body"].read()
        ).hexdigest()
        for each in listed
    }


@pytest.mark.parametrize("jobs", [1, 3])
@pytest.mark.parametrize("options", [["--shards", "5"], ["--shards", "4", "--shuffle"]])
def test_a_reshard_from_a_bucket_makes_the_bytes_of_a_local_one(
    s3: SeaweedS3, bucket: str, packed: Path, tmp_path: Path, options: list[str], jobs: int
) -> None:
    s3.upload(packed, bucket, "packed/")
    run("reshard", packed, tmp_path / "expected", *options)
    run("reshard", f"s3://{bucket}/packed", tmp_path / "new", *options, "--jobs", jobs)
    assert digests(tmp_path / "new") == digests(tmp_path / "expected")
    run("verify", tmp_path / "new")


def test_a_reshard_from_bucket_to_bucket_makes_the_bytes_of_a_local_one(
    s3: SeaweedS3, bucket: str, packed: Path, tmp_path: Path
) -> None:
    s3.upload(packed, bucket, "packed/")
    shardio.reshard(packed, tmp_path / "expected", shards=5, shuffle=True)
    run("reshard", f"s3://{bucket}/packed", f"s3://{bucket}/new", "--shards", 5, "--shuffle")
    assert stored_digests(s3, bucket, "new/") == digests(tmp_path / "expected")


@pytest.mark.parametrize("command", ["reshard", "pack"])
@pytest.mark.parametrize("name", ["", "/part-*.tar*", "/part-{0..1}.tar"])
def test_tars_of_others_in_a_bucket_are_packed(
    s3: SeaweedS3, bucket: str, tars: Path, tmp_path: Path, command: str, name: str
) -> None:
    s3.upload(tars, bucket, "tars/")
    source = name.replace("/part-*.tar*", "")  # pack takes local patterns of .tar alone
    local: Any = [*sorted(tars.iterdir())] if "{" not in name else f"{tars}{name}"
    shardio.reshard(local, tmp_path / "expected", shards=2)
    named = name if command == "reshard" else source
    run(command, f"s3://{bucket}/tars{named}", tmp_path / "new", "--shards", 2, "--no-shuffle")
    assert digests(tmp_path / "new") == digests(tmp_path / "expected")


def test_a_reshard_from_a_server_that_lists_nothing(
    serve: Callable[..., Nginx], packed: Path, tmp_path: Path
) -> None:
    web = serve(folder=packed.parent)
    shardio.reshard(packed, tmp_path / "expected", shards=5)
    web.forget()
    run("reshard", f"{web.url}/packed", tmp_path / "new", "--shards", 5, "--jobs", 1)
    assert digests(tmp_path / "new") == digests(tmp_path / "expected")


def test_what_is_packed_again_is_what_a_changed_shard_went_into(
    s3: SeaweedS3,
    bucket: str,
    tars: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    s3.upload(tars, bucket, "tars/")
    source, out = f"s3://{bucket}/tars", tmp_path / "new"
    with _interrupted(monkeypatch, after=4), pytest.raises(InterruptedError):
        shardio.reshard(source, out, samples_per_shard=15, jobs=1)
    made = {path.name: path.stat().st_mtime_ns for path in sorted(out.glob("*.tar"))}
    assert len(made) == 4
    changed = {f"1{sample:04d}": {"txt": b"other"} for sample in range(30)}
    make_shard(tars / "part-1.tar", changed)
    s3.upload(tars, bucket, "tars/")
    shardio.reshard(source, out, samples_per_shard=15, jobs=1)
    shardio.reshard([*sorted(tars.iterdir())], tmp_path / "expected", samples_per_shard=15)
    assert digests(out) == digests(tmp_path / "expected")
    kept = [name for name, made_at in made.items() if (out / name).stat().st_mtime_ns == made_at]
    assert kept == ["shard-000000.tar", "shard-000001.tar"]  # those of the shard that is the same


def test_an_interrupted_reshard_to_a_bucket_is_finished_by_the_same_command(
    s3: SeaweedS3, bucket: str, packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    s3.upload(packed, bucket, "packed/")
    source, out = f"s3://{bucket}/packed", f"s3://{bucket}/new"
    with _interrupted(monkeypatch, after=3), pytest.raises(InterruptedError):
        shardio.reshard(source, out, shards=6, jobs=1)
    left = stored_digests(s3, bucket, "new/")
    assert "shard-000002.tar" in left
    assert "shardio.json" not in left
    with pytest.raises(shardio.ShardioError, match="interrupted or still runs"):
        shardio.ShardDataset(out)
    run("reshard", source, out, "--shards", 6)
    shardio.reshard(packed, tmp_path / "expected", shards=6)
    assert stored_digests(s3, bucket, "new/") == digests(tmp_path / "expected")


@contextmanager
def _interrupted(monkeypatch: pytest.MonkeyPatch, *, after: int) -> Iterator[None]:
    """Have a pack fail after it has made some shards."""
    real, done = pack_shard, [0]

    def fail(*arguments: Any) -> Any:
        if done[0] == after:
            raise InterruptedError("stopped by the test")
        done[0] += 1
        return real(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr("shardio.packing.job.pack_shard", fail)
        yield


def test_records_of_a_bucket_become_the_same_shards_again(
    s3: SeaweedS3, bucket: str, packed: Path, tmp_path: Path
) -> None:
    s3.upload(packed, bucket, "packed/")
    run("convert", packed, tmp_path / "expected", "--to", "tfrecord")
    run("convert", f"s3://{bucket}/packed", tmp_path / "records", "--to", "tfrecord")
    assert digests(tmp_path / "records") == digests(tmp_path / "expected")
    back = f"s3://{bucket}/back"
    run("pack", tmp_path / "records", back, "--shards", SHARDS, "--no-shuffle")
    assert samples(back) == samples(packed)


def test_records_of_compressed_tars_of_others(
    s3: SeaweedS3, bucket: str, tars: Path, tmp_path: Path
) -> None:
    s3.upload(tars, bucket, "tars/")
    run("convert", tars, tmp_path / "expected", "--to", "tfrecord")
    run("convert", f"s3://{bucket}/tars", tmp_path / "records", "--to", "tfrecord")
    assert digests(tmp_path / "records") == digests(tmp_path / "expected")


@pytest.mark.parametrize("to", ["dali", "energon"])
def test_indexes_of_other_tools_are_those_of_local_shards(
    s3: SeaweedS3, bucket: str, packed: Path, tmp_path: Path, to: str
) -> None:
    s3.upload(packed, bucket, "packed/")
    run("convert", packed, tmp_path / "expected", "--to", to)
    run("convert", f"s3://{bucket}/packed", tmp_path / "indexes", "--to", to)
    assert digests(tmp_path / "indexes") == digests(tmp_path / "expected")


def test_the_index_for_wids_names_the_urls(
    s3: SeaweedS3, bucket: str, packed: Path, tmp_path: Path
) -> None:
    s3.upload(packed, bucket, "packed/")
    run("convert", f"s3://{bucket}/packed", tmp_path / "indexes", "--to", "wids")
    listed = json.loads((tmp_path / "indexes/shardindex.json").read_bytes())["shardlist"]
    assert [shard["url"] for shard in listed] == [
        f"s3://{bucket}/packed/shard-{number:06d}.tar" for number in range(SHARDS)
    ]


def test_a_compressed_shard_has_no_index_of_other_tools(
    s3: SeaweedS3, bucket: str, tars: Path, tmp_path: Path
) -> None:
    s3.upload(tars, bucket, "tars/")
    with pytest.raises(shardio.PackError, match="uncompressed tars only; decompress it with"):
        shardio.convert(f"s3://{bucket}/tars", tmp_path / "indexes", to="dali")


def test_indexes_beside_shards_of_a_bucket_are_refused(
    s3: SeaweedS3, bucket: str, packed: Path
) -> None:
    s3.upload(packed, bucket, "packed/")
    for to in ("dali", "energon", "wids"):
        with pytest.raises(shardio.UsageError, match="name a local folder as OUT"):
            shardio.convert(f"s3://{bucket}/packed", to=to)


def test_a_batch_is_replayed_from_a_bucket(
    s3: SeaweedS3, bucket: str, packed: Path, tmp_path: Path
) -> None:
    s3.upload(packed, bucket, "packed/")
    order = ["--batch-size", 8, "--shuffle", "true", "--step", 2, "--to"]
    run("replay", packed, *order, tmp_path / "expected")
    run("replay", f"s3://{bucket}/packed", *order, tmp_path / "batch")
    expected, found = digests(tmp_path / "expected"), digests(tmp_path / "batch")
    assert {**found, "batch.json": ""} == {**expected, "batch.json": ""}


def damage(shard: Path) -> None:
    """Change a byte of the data in the middle of a shard, and a header."""
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    header = data.index(b"ustar", len(data) * 2 // 3) - 257
    data[header : header + 8] = b"\xff" * 8
    shard.write_bytes(data)


def test_verify_finds_in_a_bucket_what_it_finds_in_a_folder(
    s3: SeaweedS3, bucket: str, packed: Path
) -> None:
    damage(packed / "shard-000001.tar")
    (packed / "shard-000002.tar").unlink()
    s3.upload(packed, bucket, "packed/")
    expected, found = shardio.verify(packed), shardio.verify(f"s3://{bucket}/packed")
    url = f"s3://{bucket}/packed"
    assert len(expected.problems) > 1
    assert [str(each) for each in found.findings] == [
        str(each).replace(str(packed), url) for each in expected.findings
    ]


@pytest.mark.parametrize("name", ["", "/part-*", "/part-{0,1}.tar", "/part-2.tar.gz"])
def test_verify_reads_tars_of_others(s3: SeaweedS3, bucket: str, tars: Path, name: str) -> None:
    s3.upload(tars, bucket, "tars/")
    found = shardio.verify(f"s3://{bucket}/tars{name}", jobs=1)
    assert found.sound, found.problems
    assert found.shards == {"": 3, "/part-*": 3, "/part-{0,1}.tar": 2}.get(name, 1)
    assert found.samples == 30 * found.shards


@pytest.mark.parametrize("to_bucket", [False, True])
def test_a_repair_from_a_bucket_saves_what_a_local_one_saves(
    s3: SeaweedS3, bucket: str, packed: Path, tmp_path: Path, to_bucket: bool
) -> None:
    damage(packed / "shard-000001.tar")
    s3.upload(packed, bucket, "packed/")
    expected = shardio.repair(packed, tmp_path / "expected")
    out = f"s3://{bucket}/new" if to_bucket else str(tmp_path / "new")
    found = shardio.repair(f"s3://{bucket}/packed", out)
    assert found == expected
    assert found.dropped > 0
    digests_of = stored_digests(s3, bucket, "new/") if to_bucket else digests(tmp_path / "new")
    kept = digests(tmp_path / "expected")
    assert digests_of.pop("dropped.jsonl")
    kept.pop("dropped.jsonl")
    assert digests_of == kept


def test_what_a_command_has_written_is_named_without_secrets(
    s3: SeaweedS3, bucket: str, packed: Path
) -> None:
    there = f"s3://{bucket}"
    secret = quote(s3.keys.secret)
    given = f"s3://{quote(s3.keys.access)}:{secret}@{bucket}"
    text = run("reshard", packed, f"{given}/parts/", "--split", "train=0.5,val=0.5", "--shards", 2)
    assert f"{there}/parts/train: 30 samples" in text
    assert secret not in text
    assert f"{there}/new: not written" in run("verify", packed, "--fix", f"{given}/new")
    damage(packed / "shard-000001.tar")
    done = CliRunner().invoke(commands, ["verify", str(packed), "--fix", f"{given}/new"])
    assert f"{there}/new: " in done.output
    assert secret not in done.output


def test_a_repair_of_compressed_tars_of_a_bucket(
    s3: SeaweedS3, bucket: str, tars: Path, tmp_path: Path
) -> None:
    s3.upload(tars, bucket, "tars/")
    found = shardio.repair(f"s3://{bucket}/tars", tmp_path / "new")
    assert (found.samples, found.dropped) == (90, 0)
    assert samples(tmp_path / "new") == samples(tars)


def test_a_repair_stops_where_the_store_fails_and_drops_nothing(
    serve: Callable[..., Nginx], packed: Path, tmp_path: Path
) -> None:
    web = serve(folder=packed.parent)
    for place in ("*.tar", "*.idx"):
        web.fail(place, status=403, method="GET")
        with pytest.raises(shardio.errors.RemoteDenied, match=r"shard-000000\.tar"):
            shardio.repair(f"{web.url}/packed", tmp_path / "new", jobs=1)
        assert not (tmp_path / "new").exists()
        web.heal()


@pytest.fixture
def splits(images: Path, tmp_path: Path) -> Path:
    shardio.pack(images, tmp_path / "splits", shards=4, split={"train": 0.8, "val": 0.2})
    return tmp_path / "splits"


def test_folders_of_splits_are_described_verified_and_repaired(
    s3: SeaweedS3, bucket: str, splits: Path, tmp_path: Path
) -> None:
    s3.upload(splits, bucket, "splits/")
    url = f"s3://{bucket}/splits"
    expected, found = (
        json.loads(run("info", splits, "--json")),
        json.loads(run("info", url, "--json")),
    )
    assert found["samples"] == expected["samples"]
    assert found["splits"].keys() == {"train", "val"}
    assert shardio.verify(url).samples == expected["samples"]
    shardio.repair(url, tmp_path / "new")
    assert samples(tmp_path / "new/train") == samples(splits / "train")


def test_a_reshard_in_order_reads_each_byte_about_once(
    serve: Callable[..., Nginx], tmp_path: Path
) -> None:
    big = {f"{number:03d}": {"bin": os.urandom(60_000), "cls": b"1"} for number in range(500)}
    (tmp_path / "tars").mkdir()
    make_shard(tmp_path / "tars/a.tar", big)
    shardio.reshard(tmp_path / "tars", tmp_path / "packed", shards=1)
    web = serve(folder=tmp_path)
    run("reshard", f"{web.url}/packed", tmp_path / "new", "--shards", 1, "--jobs", 1)
    ranges = [
        each.headers.get("range", "")
        for each in web.requests()
        if each.method == "GET" and each.target.endswith("0.tar")
    ]
    spans = [tuple(map(int, each.removeprefix("bytes=").split("-"))) for each in ranges]
    size = (tmp_path / "packed/shard-000000.tar").stat().st_size
    assert sum(last + 1 - first for first, last in spans) < 1.05 * size
    assert len(spans) < 20


@pytest.mark.parametrize("room", [True, False])
def test_a_shuffled_reshard_fetches_each_shard_once_where_the_cache_has_room(
    serve: Callable[..., Nginx], packed: Path, tmp_path: Path, room: bool
) -> None:
    shardio.reshard(packed, tmp_path / "expected", shards=4, shuffle=True)
    sizes = [path.stat().st_size for path in packed.glob("*.tar")]
    web = serve(folder=packed.parent)
    options: dict[str, Any] = {"cache_dir": str(tmp_path / "cache")}  # others have these shards too
    options |= {} if room else {"cache_limit": sum(sizes) - 1}
    source, out = f"{web.url}/packed", tmp_path / "new"
    shardio.reshard(source, out, shards=4, shuffle=True, jobs=2, storage_options=options)
    assert digests(out) == digests(tmp_path / "expected")
    asked = sum(
        n for (how, path), n in web.counts().items() if how == "GET" and ".tar" in path[-4:]
    )
    assert asked == SHARDS if room else asked > SHARDS


FAULTS = {
    "missing": (1, "s3://{bucket}", "no such object|no shards|none is there"),
    "no bucket": (1, "s3://no-such-bucket", "no such object"),
    "denied by S3": (1, "s3://{bucket}", "the store denies access"),
    "missing behind HTTP": (1, "{web}", "no such object|no such shard|no packed|none is there"),
    "denied by HTTP": (1, "{web}", "the store denies access"),
    "down": (1, "http://127.0.0.1:1", "the store does not answer as it should"),
    "unknown": (2, "gopher://bucket", "gopher storage is not read or written here"),
}
READ = [
    "pack URL/tars {out} --shards 2",
    "pack URL/a.tar {out} --shards 2",
    "reshard URL/old {out} --shards 2",
    "reshard {packed} URL/a-{{0..1}}.tar {out} --shards 2",
    "info URL/packed",
    "verify URL/packed",
    "verify URL/a.tar --fix {out}",
    "convert URL/packed {out} --to tfrecord",
    "convert URL/packed {out} --to dali",
    "convert URL/packed {out} --to wids",
    "plan URL/packed --batch-size 4",
    "replay URL/packed --batch-size 4 --step 0 --to {out}",
    "profile URL/packed --seconds 0.1",
]
INDEXED = ["index URL/a.tar", "index URL/tars"]
WRITTEN = ["pack {images} URL/out --shards 2", "reshard {packed} URL/out --shards 2"]
LOCAL = [
    "pack {images} {out} --shards 2 --manifest URL/t.csv",
    "pack {images} {out} --shards 2 --coco URL/t.json",
    "pack {images} {out} --shards 2 --classes URL/t.txt",
    "reshard {packed} {out} --shards 2 --keys URL/keys.txt",
    "info {packed} --preview URL/a.png",
    "convert {packed} URL/records --to tfrecord",
    "convert {packed} URL/records --to wids",
    "convert {packed} URL/records --to energon",
    "replay {packed} --batch-size 4 --step 0 --to URL/out",
    "profile {packed} --html URL/a.html",
    "profile {packed} --png URL/a.png",
    "profile {packed} --trace URL/a.json",
]


@pytest.mark.parametrize("fault", FAULTS)
def test_what_fails_behind_a_url_is_one_sentence_of_every_command(
    serve: Callable[..., Nginx],
    bucket: str,
    images: Path,
    packed: Path,
    tmp_path: Path,
    fault: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(remote, "_LONGEST_PAUSE", 0.0)
    (tmp_path / "empty").mkdir()
    web = serve(folder=tmp_path / "empty")
    if fault == "denied by S3":
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    if fault == "denied by HTTP":
        web.fail("*", status=403)
    expected, url, told = FAULTS[fault]
    places = {"images": images, "packed": packed, "out": tmp_path / "out"}
    url = url.format(bucket=bucket, web=web.url)
    local = "[a-z0-9]+ storage is not read or written here; name a local path|to local folders only"
    written = INDEXED if fault == "missing" else INDEXED + WRITTEN
    read_only = "nothing is written there" if url.startswith("http") else told
    for some, code, sentence in (
        (READ, expected, told),
        (written, expected, read_only),
        (LOCAL, 2, local),
    ):
        for command in some:
            words = [word.format(**places).replace("URL", url) for word in command.split()]
            monkeypatch.setattr("sys.argv", ["shardio", *words])
            with pytest.raises(SystemExit) as ended:
                main()
            said = capsys.readouterr().err.strip().rpartition("\n")[2]
            assert ended.value.code == code, (command, said)
            assert re.match(f"shardio: .*({sentence})", said), (command, said)
            assert "Errno" not in said, (command, said)
            assert not (tmp_path / "out").exists(), command
