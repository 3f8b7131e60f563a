"""A URL where a path is meant is refused by every command, and nothing is written."""

from __future__ import annotations

import re
import zipfile
from pathlib import Path

import pytest
from click.testing import CliRunner

import shardio
from shardio.cli import commands
from shardio.storage import remote
from shardio.storage.cache import cache_entry
from shardio.storage.local import url_fault
from shardio.testing import make_images

REMOTE = "gopher storage is not read or written here; name a local path"
LOCAL_ONLY = (
    "are written to local folders only; name a local folder as OUT, and upload what is in it"
)


def run(*arguments: object) -> tuple[int, str]:
    """Exit code and what the command says, whichever way it says so."""
    done = CliRunner().invoke(commands, [*map(str, arguments)])
    return done.exit_code, done.output + str(done.exception)


@pytest.mark.parametrize(
    "command",
    [
        ["pack", "{images}", "gopher://bucket/out", "--shards", "2"],
        ["pack", "gopher://bucket/images", "{out}", "--shards", "2"],
        ["pack", "gopher://bucket/a.tar", "{out}", "--shards", "2"],
        ["pack", "gopher://bucket/a.tfrecord", "{out}", "--shards", "2"],
        ["pack", "{images}", "{out}", "--shards", "2", "--manifest", "gopher://bucket/t.csv"],
        ["reshard", "gopher://bucket/old", "{out}", "--shards", "2"],
        ["reshard", "{packed}", "gopher://bucket/new", "--shards", "2"],
        ["index", "gopher://bucket/a.tar"],
        ["info", "gopher://bucket/packed"],
        ["verify", "gopher://bucket/packed"],
        ["convert", "gopher://bucket/packed", "{out}", "--to", "tfrecord"],
        ["convert", "{packed}", "gopher://bucket/records", "--to", "tfrecord"],
        ["convert", "{packed}", "gopher://bucket/indexes", "--to", "dali"],
        ["convert", "{packed}", "gopher://bucket/indexes", "--to", "wids"],
        ["plan", "gopher://bucket/packed", "--batch-size", "4"],
        ["replay", "gopher://bucket/packed", "--batch-size", "4", "--step", "0", "--to", "{out}"],
        ["replay", "{packed}", "--batch-size", "4", "--step", "0", "--to", "gopher://bucket/batch"],
        ["profile", "gopher://bucket/packed"],
    ],
    ids=" ".join,
)
def test_every_command_refuses_a_url_and_writes_nothing(
    command: list[str],
    images: Path,
    packed: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    places = {"images": images, "packed": packed, "out": tmp_path / "out"}
    code, text = run(*(part.format(**places) for part in command))
    assert code != 0
    told = LOCAL_ONLY if command[:2] == ["convert", "{packed}"] else REMOTE
    assert told in " ".join(text.replace("\n", " ").split())
    assert [*tmp_path.iterdir()] == []


def test_python_refuses_urls_as_text_and_as_paths(tmp_path: Path) -> None:
    sources: list[str | Path | list[str]] = [
        "gopher://bucket/shard-{000000..000003}.tar",
        Path("gopher://bucket/packed"),
        [str(tmp_path), "gopher://bucket/packed"],
    ]
    for source in sources:
        with pytest.raises(shardio.UsageError, match=REMOTE):
            shardio.ShardDataset(source)


def test_a_repair_writes_to_no_url(
    packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(shardio.UsageError, match=REMOTE):
        shardio.repair(packed, "gopher://bucket/new")
    assert [*tmp_path.iterdir()] == []


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("gopher://example.org/shard-{000000..000003}.tar", "gopher storage is not read"),
        ("hf://a/b", "a URL of the hub must be like hf://datasets/org/name/path"),
        (
            "pipe:curl -s http://example.org/a.tar",
            "shardio runs no commands; fetch the shards, .* name what the command reads, as s3://",
        ),
        ("file:///data/out", "a path is needed, not a URL; leave out .* file://"),
        ("a-{0..1}.tar::", "nothing is named beside a '::'; leave it out"),
    ],
)
def test_each_kind_of_source_that_is_no_path_has_its_way_out(source: str, message: str) -> None:
    with pytest.raises(shardio.UsageError, match=message):
        shardio.ShardDataset(source)


@pytest.mark.parametrize(
    "path", ["C:\\data\\out", "c:/data", "/s3://x", "./s3://x", "a:b/c", "12:30/x", "a b://c", ""]
)
def test_a_path_with_a_colon_is_a_path(path: str) -> None:
    assert url_fault(path) is None


def test_a_url_that_is_refused_is_shown_without_its_secrets() -> None:
    with pytest.raises(
        shardio.UsageError, match=r"gopher://example\.org/a: gopher storage"
    ) as caught:
        shardio.ShardDataset("gopher://alibaba:sesame@example.org/a?sesame")
    assert "sesame" not in str(caught.value)


def test_a_row_that_names_a_url_is_an_error_with_its_row(tmp_path: Path) -> None:
    make_images(tmp_path / "in", classes=0, per_class=1)
    (tmp_path / "t.csv").write_text("path\nhttps://example.org/a/0.jpg\n")
    with pytest.raises(
        shardio.PackError, match=r"row 1: https://example\.org/a/0\.jpg: https stor"
    ):
        shardio.pack(tmp_path / "in", tmp_path / "out", shards=1, manifest=tmp_path / "t.csv")


def test_a_cache_folder_is_no_url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHARDIO_CACHE", "gopher://bucket/cache")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a").touch()
    with pytest.raises(shardio.UsageError, match=REMOTE):
        cache_entry(tmp_path / "a", ".x")


def test_an_archive_as_source_is_said_to_be_a_file(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "images.zip", "w") as archive:
        archive.writestr("cat/0.jpg", b"x")
    with pytest.raises(
        shardio.PackError, match=r"images\.zip: it is a file, not a folder; unpack it"
    ):
        shardio.pack(tmp_path / "images.zip", tmp_path / "out", shards=1)


@pytest.mark.parametrize(
    "options",
    [
        ["info", "--preview", "gopher://bucket/sheet.png"],
        ["profile", "--html", "gopher://bucket/a.html"],
        ["profile", "--png", "gopher://bucket/a.png"],
        ["profile", "--trace", "gopher://bucket/a.json"],
        ["verify", "--fix", "gopher://bucket/new"],
    ],
)
def test_a_url_is_refused_before_anything_is_done(
    packed: Path, options: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    name, *rest = options
    done = CliRunner().invoke(commands, [name, str(packed), *rest])
    assert "gopher storage is not read or written here" in str(done.exception)
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize("command", ["info", "verify"])
def test_options_of_a_store_are_refused_where_no_url_is_named(packed: Path, command: str) -> None:
    _, text = run(command, packed, "--storage-option", "anon=true")
    assert "--storage-option: it is for the store of a URL, and no URL is named; leave it" in text


@pytest.mark.parametrize(
    "command",
    [
        ["verify", "{packed}", "--fix", "URL"],
        ["pack", "{missing}", "URL", "--shards", "2"],
        ["reshard", "{missing}", "URL", "--shards", "2"],
        ["index", "URL/a.tar"],
    ],
    ids=" ".join,
)
@pytest.mark.parametrize("url", ["http://127.0.0.1:1/new", "webhdfs://127.0.0.1:1/new"])
def test_a_storage_that_is_only_read_is_refused_before_anything_is_read(
    packed: Path, command: list[str], url: str, tmp_path: Path
) -> None:
    if url.startswith("webhdfs"):
        pytest.importorskip("fsspec.implementations.webhdfs")
    places = {"packed": packed, "missing": tmp_path / "missing"}
    code, text = run(*(part.format(**places).replace("URL", url) for part in command))
    told = f"nothing is written there ({url.partition(':')[0]} storages are read-only)"
    assert (code, told in text) == (1, True)


# Where boto3 is missing, that is what is said; else nothing listens.
UNREACHABLE = (
    r"s3://bucket/[a-z0-9./-]*: the store does not answer as it should, 7 times in a row "
    r"\(EndpointConnectionError: Connection refused, asked http://127.0.0.1:1\); check network and "
    r"endpoint, or raise timeout or retries in --storage-option|"
    r"s3:// needs boto3, which is not installed; pip install 'shardio\[s3\]'"
)


@pytest.fixture
def no_store(monkeypatch: pytest.MonkeyPatch) -> None:
    """A store that does not answer, for which nobody waits."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setattr(remote, "_LONGEST_PAUSE", 0.0)


@pytest.mark.usefixtures("no_store")
@pytest.mark.parametrize(
    "command",
    [
        ["pack", "{images}", "s3://bucket/out", "--shards", "2"],
        ["pack", "s3://bucket/tars", "{out}", "--shards", "2"],
        ["reshard", "s3://bucket/old", "{out}", "--shards", "2"],
        ["reshard", "{packed}", "s3://bucket/new", "--shards", "2"],
        ["index", "s3://bucket/a.tar"],
        ["info", "s3://bucket/packed"],
        ["verify", "s3://bucket/packed"],
        ["convert", "s3://bucket/packed", "{out}", "--to", "tfrecord"],
        ["plan", "s3://bucket/packed", "--batch-size", "4"],
        ["replay", "s3://bucket/packed", "--batch-size", "4", "--step", "0", "--to", "{out}"],
        ["profile", "s3://bucket/packed"],
    ],
    ids=" ".join,
)
def test_a_store_that_does_not_answer_is_one_sentence_and_nothing_is_written(
    command: list[str],
    images: Path,
    packed: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    places = {"images": images, "packed": packed, "out": tmp_path / "out"}
    done = CliRunner().invoke(commands, [part.format(**places) for part in command])
    assert re.fullmatch(UNREACHABLE, str(done.exception)), done.exception
    assert isinstance(done.exception, shardio.ShardioError)
    assert [*tmp_path.iterdir()] == []


@pytest.mark.usefixtures("no_store")
def test_a_list_of_urls_and_a_pattern_reach_for_the_store(packed: Path) -> None:
    sources: list[str | list[str]] = [
        "s3://bucket/shard-{000000..000003}.tar",
        [str(packed), "s3://bucket/packed"],
    ]
    for source in sources:
        with pytest.raises(shardio.ShardioError, match=r"s3://bucket/|s3:// needs boto3"):
            shardio.ShardDataset(source)


def test_a_url_with_one_slash_is_refused_with_the_way_to_write_it() -> None:
    for source in ("s3:/bucket/out", Path("s3://bucket/out")):
        with pytest.raises(shardio.UsageError, match="or write the URL as text, with two slashes"):
            shardio.ShardDataset(source)


@pytest.mark.parametrize(
    "command",
    [
        ["pack", "{images}", "{out}", "--shards", "2", "--manifest", "s3://bucket/t.csv"],
        ["pack", "{images}", "{out}", "--shards", "2", "--coco", "s3://bucket/t.json"],
        ["pack", "{images}", "{out}", "--shards", "2", "--classes", "s3://bucket/classes.txt"],
        ["reshard", "{packed}", "{out}", "--shards", "2", "--keys", "s3://bucket/keys.txt"],
        ["convert", "{packed}", "s3://bucket/records", "--to", "tfrecord"],
        ["convert", "{packed}", "s3://bucket/indexes", "--to", "wids"],
        ["replay", "{packed}", "--batch-size", "4", "--step", "0", "--to", "s3://bucket/batch"],
        ["profile", "{packed}", "--html", "s3://bucket/a.html"],
    ],
    ids=" ".join,
)
def test_what_must_be_local_is_no_url_of_a_store(
    command: list[str],
    images: Path,
    packed: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    places = {"images": images, "packed": packed, "out": tmp_path / "out"}
    code, text = run(*(part.format(**places) for part in command))
    assert code != 0
    told = LOCAL_ONLY if command[0] == "convert" else "s3 storage is not read or written here"
    assert told in " ".join(text.split())
    assert [*tmp_path.iterdir()] == []
