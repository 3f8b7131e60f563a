"""Datasets on the hub, whose documented routes two servers answer; see servers.Hub."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from typing import Any

import pytest

import shardio
from servers import Hub
from shardio.errors import (
    RemoteDenied,
    RemoteError,
    RemoteMissing,
    RemoteUnreachable,
)
from shardio.storage import remote
from shardio.storage.location import Location, locate

DATASET = "hf://datasets/org/name"


@pytest.fixture(autouse=True)
def environment(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (
        "HF_TOKEN",
        "HUGGING_FACE_HUB_TOKEN",
        "HF_TOKEN_PATH",
        "HF_HUB_DISABLE_IMPLICIT_TOKEN",
    ):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    remote._clients.clear()  # those of another environment


@pytest.fixture
def folder(tmp_path: Path, packed: Path) -> Path:
    shutil.copytree(packed, tmp_path / "files/out")
    return tmp_path / "files"


def at(url: str, **options: Any) -> Location:
    """Locate; the host of large files has no public address here."""
    return locate(url, options={"trusted_hosts": ["localhost"], "retries": 2, **options})


def read(location: Location) -> bytes:
    file = location.open()
    return file.read(0, file.size)


def test_batches_of_the_hub_are_those_of_local_files(hub: Hub, folder: Path, packed: Path) -> None:
    hub.add("org/name", folder)
    options: dict[str, Any] = {"batch_size": 50, "shuffle": True}
    there = shardio.ShardDataset(
        f"{DATASET}/out", storage_options={"trusted_hosts": ["localhost"]}, **options
    )
    here = shardio.ShardDataset(packed, **options)
    assert there.contents == here.contents
    for one, other in zip(there, here, strict=True):
        assert one["__key__"] == other["__key__"]
        assert bool((one["image"] == other["image"]).all())


def test_it_lists_and_measures(hub: Hub, folder: Path) -> None:
    commit = hub.add("org/name", folder)
    here = at(f"{DATASET}/out")
    assert here.path == f"{DATASET}@{commit}/out"
    assert here.names() == sorted(path.name for path in (folder / "out").iterdir())
    assert at(DATASET).names() == ["out"]
    assert (here / "missing").names() == []
    shard, manifest = (here / "shard-000000.tar").find(), (here / "shardio.json").find()
    data = (folder / "out/shard-000000.tar").read_bytes()
    assert shard is not None
    assert (shard.size, shard.sha256) == (len(data), hashlib.sha256(data).hexdigest())
    assert manifest is not None
    assert manifest.sha256 is None
    assert manifest.size == (folder / "out/shardio.json").stat().st_size
    assert read(here / "shard-000000.tar") == data
    assert not here.is_file()
    assert not at(DATASET).is_file()
    with pytest.raises(RemoteMissing, match="EntryNotFound"):
        (here / "missing").open()


def test_names_with_special_characters_are_found(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "files/a b").mkdir(parents=True)
    (tmp_path / "files/a b/c#%41?é.tar").write_bytes(b"x")
    hub.add("org/name", tmp_path / "files")
    here = at(f"{DATASET}/a b")
    assert here.names() == ["c#%41?é.tar"]
    assert read(here / "c#%41?é.tar") == b"x"


def test_a_branch_that_moves_is_not_mixed(hub: Hub, folder: Path) -> None:
    first = hub.add("org/name", folder)
    here = at(f"{DATASET}/out")
    old = (folder / "out/shardio.json").read_bytes()
    (folder / "out/shardio.json").write_bytes(b"{}")
    (folder / "out/other.tar").write_bytes(b"other")
    assert hub.add("org/name", folder) != first
    assert read(here / "shardio.json") == old
    assert "other.tar" not in here.names()
    assert read(at(f"{DATASET}/out/other.tar")) == b"other"


@pytest.mark.parametrize(
    ("revision", "written"),
    [
        ("v1.0", "v1.0"),
        ("refs/convert/parquet", "refs/convert/parquet"),
        ("refs/pr/3", "refs/pr/3"),
        ("feature/x", "feature%2Fx"),
    ],
)
def test_revisions_are_found(hub: Hub, folder: Path, revision: str, written: str) -> None:
    commit = hub.add("org/name", folder, revision=revision)
    for name in (written, commit):
        here = at(f"{DATASET}@{name}/out/shardio.json")
        assert here.path == f"{DATASET}@{commit}/out/shardio.json"
        assert read(here) == (folder / "out/shardio.json").read_bytes()
    with pytest.raises(RemoteMissing, match="RevisionNotFound"):
        at(f"{DATASET}@other/out")


@pytest.mark.parametrize("way", ["HF_TOKEN", "file", "option", "header"])
def test_the_token_goes_to_the_hub_and_never_to_another_host(
    hub: Hub, folder: Path, way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add("org/name", folder, token="hf_sesame")  # noqa: S106  of no one
    with pytest.raises(RemoteDenied, match="the token is wrong, or there is no such dataset"):
        at(f"{DATASET}/out")
    remote._clients.clear()
    options: dict[str, Any] = {}
    if way == "HF_TOKEN":
        monkeypatch.setenv("HF_TOKEN", "hf_sesame")
    elif way == "file":
        (tmp_path / "hf").mkdir()
        (tmp_path / "hf/token").write_text("hf_sesame\n")
    elif way == "option":
        options["token"] = "hf_sesame"  # noqa: S105
    else:
        options["headers"] = {"authorization": "Bearer hf_sesame"}
    hub.front.forget()
    here = at(f"{DATASET}/out/shard-000000.tar", **options)
    assert read(here) == (folder / "out/shard-000000.tar").read_bytes()
    assert "sesame" not in f"{here!r} {here}"
    asked = hub.front.requests()
    assert {request.headers["authorization"] for request in asked} == {"Bearer hf_sesame"}
    assert hub.cdn.requests()
    for request in hub.cdn.requests():
        assert "authorization" not in request.headers
        assert "sesame" not in str(request)


def test_anonymous_readers_send_no_token(
    hub: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add("org/name", folder)
    monkeypatch.setenv("HF_TOKEN", "hf_sesame")
    at(f"{DATASET}/out", anon=True).names()
    assert not [each for each in hub.front.requests() if "authorization" in each.headers]
    with pytest.raises(shardio.UsageError, match="excludes a token"):
        at(DATASET, anon=True, token="hf_sesame")  # noqa: S106


def test_complaint_litdata_458_a_token_that_is_renewed_is_read_again(
    hub: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add("org/name", folder, token="old")  # noqa: S106
    monkeypatch.setenv("HF_TOKEN", "old")
    here = at(f"{DATASET}/out")
    hub.add("org/name", folder, token="new")  # noqa: S106
    with pytest.raises(RemoteDenied):
        here.names()
    monkeypatch.setenv("HF_TOKEN", "new")
    assert "shardio.json" in here.names()


def test_signed_addresses_that_expire_are_asked_for_again(hub: Hub, folder: Path) -> None:
    hub.add("org/name", folder)
    file = at(f"{DATASET}/out/shard-000000.tar").open()
    data = (folder / "out/shard-000000.tar").read_bytes()
    for start in (0, 10, 5000):
        hub.cdn.fail("*", cut=10, times=1)
        assert file.read(start, 100) == data[start : start + 100]


def test_the_host_of_large_files_must_be_public_or_trusted(hub: Hub, folder: Path) -> None:
    hub.add("org/name", folder)
    with pytest.raises(RemoteError, match="localhost, whose address is not public") as caught:
        read(locate(f"{DATASET}/out/shard-000000.tar"))
    assert "Signature" not in str(caught.value)


def test_the_limit_of_requests_is_waited_for(hub: Hub, folder: Path) -> None:
    hub.add("org/name", folder)
    hub.front.fail("*", status=429, times=2, headers={"RateLimit": '"api";r=0;t=0'})
    assert at(f"{DATASET}/out").names()
    hub.front.fail("*", status=503)
    with pytest.raises(RemoteUnreachable, match="3 times in a row"):
        at(f"{DATASET}/out")


@pytest.mark.parametrize("text", ["", "no json", "[1]", '{"sha": 5}', '{"sha": "x/../y"}'])
def test_answers_that_are_none_of_the_hub_are_errors(hub: Hub, folder: Path, text: str) -> None:
    hub.add("org/name", folder)
    hub.front.fail("/api/datasets/org/name/revision/main", status=200, text=text)
    with pytest.raises(RemoteError, match="the hub"):
        at(f"{DATASET}/out")


@pytest.mark.parametrize("text", ["no json", "5", '[{"type": "file"}]', "[5]"])
def test_lists_that_are_none_of_the_hub_are_errors(hub: Hub, folder: Path, text: str) -> None:
    hub.add("org/name", folder)
    here = at(DATASET)
    hub.front.fail("*", status=200, text=text)
    with pytest.raises(RemoteError, match="the hub"):
        here.names()


def test_a_list_that_never_ends_is_an_error(hub: Hub, folder: Path) -> None:
    hub.add("org/name", folder)
    here = at(f"{DATASET}/out")
    link = f'<{hub.url}/api/datasets/org/name/tree/x?cursor=MQ==>; rel="next"'
    hub.front.fail("*", headers={"Link": link})
    with pytest.raises(RemoteError, match="does not end"):
        here.names()


def test_the_list_goes_on_at_the_hub_whatever_its_link_says(hub: Hub, folder: Path) -> None:
    """Its token must not go where an answer says."""
    hub.add("org/name", folder)
    here = at(f"{DATASET}/out")
    elsewhere = '<http://169.254.169.254/api?cursor=MQ%3D%3D>; rel="next"'
    hub.front.fail("*", times=1, headers={"Link": elsewhere})
    assert here.names() == sorted(path.name for path in (folder / "out").iterdir())


@pytest.mark.parametrize(
    "url", ["hf://org/name", "hf://datasets/name", "hf://models/a/b", "hf://spaces/a/b/c", "hf://"]
)
def test_other_urls_of_the_hub_are_refused(url: str) -> None:
    with pytest.raises(shardio.UsageError, match="must be like hf://datasets/org/name/path"):
        locate(url)


def test_it_is_read_only(hub: Hub, folder: Path, images: Path) -> None:
    hub.add("org/name", folder)
    with pytest.raises(RemoteDenied, match=r"hf storages are read-only.*to a local folder"):
        shardio.pack(images, f"{DATASET}/new", shards=2)


def test_it_verifies(hub: Hub, folder: Path) -> None:
    hub.add("org/name", folder)
    there = at(f"{DATASET}/out")
    found = shardio.verify(there.path, storage=there.storage, jobs=1)
    assert found.sound
    assert found.samples == 600
