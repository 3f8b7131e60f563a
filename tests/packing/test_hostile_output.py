"""Output folders in which something lies where a pack writes: nothing is lost, nothing leaks."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import shardio
from shardio.indexing.manifest import index_path
from shardio.indexing.shard_index import encode_index, read_index
from shardio.inspection.repair import find_whole
from shardio.packing.listing import Listing
from shardio.profiling.profile import check_writable
from shardio.reading.shards import ShardPool
from shardio.testing import digests, make_images, make_shard

LOCK = ".shardio-pack"
CLAIM = b"A pack writes to this folder; if none runs, run the same pack again to finish it.\n"
SPLIT = {"train": 0.5, "val": 0.5}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_images(tmp_path_factory.mktemp("in") / "in", classes=2, per_class=8)


@pytest.fixture(scope="module")
def finished(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A packed folder; do not change."""
    out = tmp_path_factory.mktemp("finished") / "out"
    shardio.pack(source, out, shards=3, jobs=1)
    return out


@pytest.fixture
def victim(finished: Path, tmp_path: Path) -> Path:
    """A packed folder of somebody else beside the output."""
    return Path(shutil.copytree(finished, tmp_path / "victim"))


def stop(source: Path, out: Path, **options: Any) -> None:
    """Leave a folder as a pack that was interrupted after its first shards."""
    seen: list[int] = []

    def advance(count: int) -> None:
        seen.append(count)
        if sum(seen) > 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        shardio.pack(source, out, shards=4, jobs=1, progress=lambda _: advance, **options)


def everything(folder: Path) -> dict[str, bytes | str | int]:
    """What lies below a folder, links as what they name."""
    found: dict[str, bytes | str | int] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_symlink():
            found[name] = str(path.readlink())
        else:
            found[name] = path.read_bytes() if path.is_file() else path.stat().st_mode
    return found


# Locks


@pytest.mark.parametrize("name", ["{victim}", "../victim", "val/../../victim", "..", "sub/victim"])
def test_a_lock_that_names_a_folder_elsewhere_is_refused_and_nothing_is_removed(
    source: Path, victim: Path, tmp_path: Path, name: str
) -> None:
    out = tmp_path / "out"
    shutil.copytree(victim, out / "sub/victim")
    (out / ".shardio-work").mkdir()
    names = json.dumps([name.format(victim=victim)]).encode()
    (out / LOCK).write_bytes(CLAIM + names + b"\n")
    before = everything(tmp_path)
    with pytest.raises(
        shardio.PackError, match=r"out/\.shardio-pack: it is not a lock that a pack"
    ):
        shardio.pack(source, out, shards=2)
    assert everything(tmp_path) == before


@pytest.mark.parametrize("part", ["", "other"])
def test_a_lock_alone_does_not_make_a_finished_dataset_the_output_of_a_pack(
    source: Path, finished: Path, tmp_path: Path, part: str
) -> None:
    out = tmp_path / "out"
    shutil.copytree(finished, out / part)
    (out / LOCK).write_bytes(CLAIM + json.dumps([part]).encode() + b"\n")
    before = everything(tmp_path)
    with pytest.raises(shardio.PackError, match="the folder has shards already"):
        shardio.pack(source, out, shards=2)
    assert everything(tmp_path) == before


def test_a_dataset_that_took_the_place_of_a_split_is_kept(
    source: Path, finished: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    stop(source, out, split=SPLIT)
    shutil.rmtree(out / "train")
    shutil.copytree(finished, out / "train")
    before = everything(out)
    with pytest.raises(shardio.PackError, match=r"train: the folder has shards already"):
        shardio.pack(source, out, shards=2)
    assert everything(out) == before


def test_folders_that_a_lock_names_and_no_pack_made_are_left_alone(
    source: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    stop(source, out)
    (out / "empty").mkdir()
    (out / LOCK).write_bytes(CLAIM + b'["", "empty", "never"]\n')
    shardio.pack(source, out, shards=4)
    assert (out / "empty").is_dir()
    assert not (out / "never").exists()


def test_another_interrupted_pack_in_the_folder_of_a_split_is_kept(
    source: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    stop(source, out / "train")
    before = everything(out)
    with pytest.raises(shardio.PackError, match=r"train: the folder has shards already"):
        shardio.pack(source, out, shards=4, split=SPLIT)
    for path in (out / "train").glob("*.tar"):
        path.unlink()
    shutil.rmtree(out / "train/index")
    shutil.rmtree(out / "train/.shardio-work")
    with pytest.raises(shardio.PackError, match=r"train: another pack into this folder"):
        shardio.pack(source, out, shards=4, split=SPLIT)
    assert (out / "train" / LOCK).read_bytes() == before[f"train/{LOCK}"]


DEEP = b"[" * 100_000


@pytest.mark.parametrize(
    "text",
    [
        *(CLAIM + line + b"\n" for line in (b"5", b"[5]", DEEP, b"\xff", b"{}", b'["\\ud800"]')),
        *(CLAIM + line + b"\n" for line in (b'["a\\u0000b"]', b'["index"]', b'[".shardio-work"]')),
        CLAIM + b'["train"]\n5\n',
        CLAIM + b" " * (2 << 20),
        b"5",
        b"notes of mine\n",
    ],
    ids=range(13),
)
def test_what_is_no_lock_of_a_pack_is_one_sentence_and_stays(
    source: Path, tmp_path: Path, text: bytes
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / ".shardio-work").mkdir()
    (out / "shard-000000.tar").write_bytes(b"mine")
    (out / LOCK).write_bytes(text)
    before = everything(out)
    with pytest.raises(shardio.PackError, match=r"\.shardio-pack: it is not a lock") as caught:
        shardio.pack(source, out, shards=2)
    assert "\n" not in str(caught.value)
    assert everything(out) == before


@given(st.binary(max_size=40), st.integers(0, 100))
@example(b"5\n", len(CLAIM))
def test_no_lock_whatever_is_in_it_gives_a_dataset_away(
    finished_twice: Callable[[], tuple[Path, Path]], text: bytes, kept: int
) -> None:
    source, out = finished_twice()
    (out / LOCK).write_bytes(CLAIM[:kept] + text)
    before = {name: data for name, data in everything(out).items() if name != LOCK}
    with pytest.raises(shardio.PackError):
        shardio.pack(source, out, shards=2)
    (out / LOCK).unlink(missing_ok=True)
    assert everything(out) == before


@pytest.fixture(scope="module")
def finished_twice(
    source: Path, finished: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[], tuple[Path, Path]]:
    out = Path(shutil.copytree(finished, tmp_path_factory.mktemp("twice") / "out"))
    return lambda: (source, out)


@pytest.mark.parametrize("cut", [0, 10, len(CLAIM), len(CLAIM) + 3])
def test_a_lock_that_was_cut_off_while_it_was_written_claims_nothing(
    source: Path, tmp_path: Path, cut: int
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / LOCK).write_bytes((CLAIM + b'["train"]')[:cut])
    (out / "a.tar").write_bytes(b"mine")
    with pytest.raises(shardio.PackError, match=r"has shards already \(a\.tar\)"):
        shardio.pack(source, out, shards=2)
    (out / "a.tar").rename(tmp_path / "a.tar")
    (out / LOCK).write_bytes((CLAIM + b'["train"]')[:cut])
    shardio.pack(source, out, shards=2)
    assert not (out / LOCK).exists()


def test_a_line_that_was_cut_off_does_not_spoil_the_lock_for_later_runs(
    source: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    stop(source, out)
    with (out / LOCK).open("ab") as stream:
        stream.write(b'["tr')
    stop(source, out)
    shardio.pack(source, out, shards=4)
    shardio.pack(source, tmp_path / "whole", shards=4)
    assert digests(out) == digests(tmp_path / "whole")


# Links, pipes, folders


def names_below(out: Path) -> list[str]:
    return [str(path.relative_to(out)) for path in sorted(out.rglob("*"))]


PLACES = [
    LOCK,
    ".shardio-work",
    ".shardio-work/samples.jsonl",
    ".shardio-work/receipts",
    ".shardio-work/receipts/train",
    ".shardio-work/receipts/train/shard-000000.tar.json",
    "skipped.jsonl",
    "train",
    f"train/{LOCK}",
    "train/index",
    "train/index/shard-000000.tar.idx",
    "train/shard-000000.tar",
    "train/shardio.json",
]


@pytest.mark.parametrize(
    ("place", "kind"),
    [
        *itertools.product(PLACES, ["link", "dangling", "pipe"]),
        *((place, "hard link") for place in PLACES if "." in place.rpartition("/")[2][1:]),
        *((place, "hard link") for place in PLACES if place.endswith(LOCK)),
    ],
)
def test_nothing_is_written_or_removed_through_what_is_no_file_or_folder_of_a_pack(
    source: Path, victim: Path, tmp_path: Path, place: str, kind: str
) -> None:
    out = tmp_path / "out"
    stop(source, out, split=SPLIT)
    path = out / place
    is_folder = path.is_dir()
    moved = tmp_path / "moved"
    moved.mkdir()
    if path.exists():
        path.rename(moved / path.name)
    target = moved / path.name if is_folder else victim / "shardio.json"
    if kind == "link":
        path.symlink_to(target)
    elif kind == "dangling":
        path.symlink_to(tmp_path / "nothing")
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.hardlink_to(target)
    before = everything(moved), everything(victim)
    left = names_below(out)
    may_pass = kind == "hard link" and not place.endswith(LOCK)  # they are never written in place
    if may_pass:
        shardio.pack(source, out, shards=4, split=SPLIT, jobs=1)
    else:
        with pytest.raises(shardio.PackError) as caught:
            shardio.pack(source, out, shards=4, split=SPLIT, jobs=1)
        assert f"{place}: it is " in str(caught.value) or kind == "hard link"
        assert "\n" not in str(caught.value)
        assert names_below(out) == left
    assert (everything(moved), everything(victim)) == before
    assert not (tmp_path / "nothing").exists()


def test_a_pipe_in_place_of_the_lock_of_a_new_folder_does_not_hang(
    source: Path, tmp_path: Path
) -> None:
    (tmp_path / "out").mkdir()
    os.mkfifo(tmp_path / "out" / LOCK)
    with pytest.raises(shardio.OutputError, match=r"\.shardio-pack: it is a pipe, where shardio"):
        shardio.pack(source, tmp_path / "out", shards=2)


def test_the_output_folder_itself_may_be_a_link(source: Path, tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "out").symlink_to("real")
    shardio.pack(source, tmp_path / "out", shards=2)
    shardio.pack(source, tmp_path / "whole", shards=2)
    assert digests(tmp_path / "real") == digests(tmp_path / "whole")


SWAP = """
import os, sys
from pathlib import Path
import shardio
from shardio.packing import listing

out, victim, place = map(Path, sys.argv[2:])
real = listing.from_line

def swapping(line):
    path = out / place
    if path.exists() and not path.is_symlink():
        path.rename(out / "aside")
        path.symlink_to(victim)
    return real(line)

listing.from_line = swapping
try:
    shardio.pack(sys.argv[1], out, shards=4, jobs=1, split={"train": 0.5, "val": 0.5})
except (shardio.ShardioError, OSError) as error:
    print(error)
"""


@pytest.mark.parametrize("place", [".shardio-work", "train", "train/index"])
def test_a_folder_that_becomes_a_link_while_a_pack_runs_is_no_way_out(
    source: Path, victim: Path, tmp_path: Path, place: str
) -> None:
    before = everything(victim)
    arguments = map(str, (source, tmp_path / "out", victim, place))
    command = [sys.executable, "-c", SWAP, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "it is a link" in done.stdout or "No such file" in done.stdout
    assert done.stdout.count("\n") == 1
    assert everything(victim) == before


# Splits


@pytest.mark.parametrize(
    "name", ["", ".", "..", "a/b", "/abs", "a\0b", ".hidden", "index", "a.tar", "shardio.json"]
)
def test_a_split_has_a_plain_name_that_no_file_of_a_pack_has(
    source: Path, tmp_path: Path, name: str
) -> None:
    with pytest.raises(shardio.UsageError, match="cannot be the name of a folder of a split"):
        shardio.pack(source, tmp_path / "out", shards=2, split={name: 1.0})
    assert [*tmp_path.iterdir()] == []


# Other commands


@pytest.mark.parametrize("place", ["index", "index/shard-000000.tar.idx", "shardio.json"])
def test_index_writes_through_no_link(finished: Path, tmp_path: Path, place: str) -> None:
    out = Path(shutil.copytree(finished, tmp_path / "out"))
    (out / place).rename(tmp_path / "moved")
    (out / place).symlink_to(tmp_path / "moved")
    before = everything(tmp_path)
    with pytest.raises(shardio.OutputError, match=rf"{place}: it is a link"):
        shardio.index(out, force=True)
    assert everything(tmp_path) == before


@pytest.mark.parametrize(
    ("to", "place"),
    [
        ("tfrecord", ".converting"),
        ("tfrecord", "shard-000000.tfrecord"),
        ("wids", "shardindex.json"),
        ("dali", "shard-000000.idx"),
    ],
)
def test_convert_writes_through_no_link(
    finished: Path, tmp_path: Path, to: Any, place: str
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (tmp_path / "victim").write_bytes(b"")
    (out / place).symlink_to(tmp_path / "victim")
    with pytest.raises(shardio.PackError, match=place.replace(".", r"\.")):
        shardio.convert(finished, out, to=to, jobs=1)
    assert everything(tmp_path)["victim"] == b""
    assert (out / place).is_symlink()


@pytest.mark.parametrize("text", [b"5", b"\xff" * 64, b"a" * 100, DEEP])
def test_what_is_no_lock_of_a_conversion_is_one_sentence_and_stays(
    finished: Path, tmp_path: Path, text: bytes
) -> None:
    (tmp_path / ".converting").write_bytes(text if text != b"5" else b"5 of mine")
    before = everything(tmp_path)
    with pytest.raises(
        shardio.PackError, match=r"\.converting: the file was not written by a conversion"
    ):
        shardio.convert(finished, tmp_path, to="tfrecord", jobs=1)
    assert everything(tmp_path) == before


def test_repair_writes_through_no_link(finished: Path, victim: Path, tmp_path: Path) -> None:
    new = tmp_path / "new"
    new.mkdir()
    (new / LOCK).write_bytes(CLAIM + b'[""]\n')
    (new / ".shardio-work").mkdir()
    for name in ("whole-000000.jsonl", "samples.jsonl"):
        (new / ".shardio-work" / name).symlink_to(victim / "shardio.json")
        before = everything(tmp_path)
        with pytest.raises(shardio.OutputError, match=rf"{name}: it is a link"):
            shardio.repair(finished, new, jobs=1)
        assert everything(tmp_path) == before
        (new / ".shardio-work" / name).unlink()


@pytest.mark.parametrize("name", ["..", "", "a/b", "a\0b"])
def test_a_manifest_names_shards_in_its_folder_alone(
    finished: Path, tmp_path: Path, name: str
) -> None:
    out = Path(shutil.copytree(finished, tmp_path / "out"))
    document = json.loads((out / "shardio.json").read_text())
    document["shardlist"][0]["url"] = name
    del document["shardio"]["crc32"]
    (out / "shardio.json").write_text(json.dumps(document))
    with pytest.raises(shardio.IndexFileError, match=r"shardio\.json: the manifest is damaged"):
        shardio.index(out, force=True)


def test_pipes_in_place_of_a_manifest_or_an_index_do_not_hang(
    finished: Path, tmp_path: Path
) -> None:
    out = Path(shutil.copytree(finished, tmp_path / "out"))
    for name in ("shardio.json", "index/shard-000000.tar.idx"):
        (out / name).unlink()
        os.mkfifo(out / name)
    found = "\n".join(map(str, shardio.verify(out, jobs=1).findings))
    assert "shardio.json: the manifest is damaged" in found


def test_replay_writes_through_no_link(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even one that appears in the empty folder meanwhile."""
    out, victim = tmp_path / "batch", tmp_path / "victim"
    victim.write_bytes(b"mine")

    def pool(*arguments: Any) -> Any:
        (out / "batch.json").symlink_to(victim)
        return ShardPool(*arguments)

    monkeypatch.setattr("shardio.inspection.replay.ShardPool", pool)
    with pytest.raises(shardio.OutputError, match=r"batch\.json: it is a link"):
        shardio.replay(finished, out, batch_size=4, step=0)
    assert victim.read_bytes() == b"mine"


@pytest.mark.parametrize("command", ["index", "info", "verify", "verify --fix new"])
def test_a_pipe_in_a_shards_place_is_no_wait(tmp_path: Path, command: str) -> None:
    os.mkfifo(tmp_path / "a.tar")
    name, *options = command.split()
    run = [sys.executable, "-m", "shardio", name, str(tmp_path), *options]
    done = subprocess.run(
        run, check=False, capture_output=True, text=True, timeout=60, cwd=tmp_path
    )
    assert done.returncode == 1 or (name == "info" and done.returncode == 2)
    assert "a.tar" in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


def test_a_pipe_in_an_indexs_place_is_named(tmp_path: Path) -> None:
    make_shard(tmp_path / "a.tar", {"0": {"txt": b"a"}})
    (tmp_path / "index").mkdir()
    os.mkfifo(tmp_path / "index/a.tar.idx")
    with pytest.raises(shardio.IndexFileError, match=r"a\.tar\.idx: .*it is not a file"):
        shardio.ShardDataset(tmp_path / "a.tar")


def test_a_finished_dataset_outlives_a_lock_that_claims_it(tmp_path: Path, packed: Path) -> None:
    claim = "A pack writes to this folder; if none runs, run the same pack again to finish it.\n"
    images = make_images(tmp_path / "images", classes=0, per_class=2)
    for lock, work in ((f'{claim}[""]\n"finished"\n', False), (f'{claim}[""]\n', True)):
        out = tmp_path / f"out{work}"
        shutil.copytree(packed, out)
        whole = digests(out)
        (out / ".shardio-pack").write_text(lock)
        if work:
            (out / ".shardio-work").mkdir()
        for source in (images, tmp_path / "typo"):
            with pytest.raises(shardio.PackError):
                shardio.pack(source, out, shards=1)
        assert {name: digest for name, digest in digests(out).items() if name in whole} == whole


def test_a_device_or_a_pipe_is_not_replaced_by_a_preview(tmp_path: Path, packed: Path) -> None:
    os.mkfifo(tmp_path / "a.png")
    with pytest.raises(OSError, match="something other than a file"):
        shardio.info(packed, preview=tmp_path / "a.png")
    assert (tmp_path / "a.png").is_fifo()


def test_fields_with_like_names_are_all_replayed(tmp_path: Path) -> None:
    fields = {"2._": b"1", "\u00e9": b"2", "\u00fc": b"3"}
    shard = make_shard(tmp_path / "a.tar", {"k": fields})
    found = shardio.replay(shard, tmp_path / "batch", batch_size=1, step=0, rank=0)
    (sample,) = found.samples
    written = {
        name: (tmp_path / "batch" / file).read_bytes() for name, file in sample.files.items()
    }
    assert written == fields


def test_an_index_for_another_tool_takes_no_shards_place(tmp_path: Path) -> None:
    for name in ("a.tar", "b.tar"):
        make_shard(tmp_path / name, {name[0]: {"txt": b"a"}})
    (tmp_path / "b.tar").rename(tmp_path / "a.idx")
    before = (tmp_path / "a.idx").read_bytes()
    with pytest.raises(
        shardio.UsageError, match="a shard has this name; name another folder for it"
    ):
        shardio.convert([tmp_path / "a.tar", tmp_path / "a.idx"], to="dali")
    assert (tmp_path / "a.idx").read_bytes() == before


def test_an_empty_folder_of_the_user_stays_after_a_failed_conversion(tmp_path: Path) -> None:
    shard = make_shard(tmp_path / "a.tar", {"0": {"cls": b"no"}})
    (tmp_path / "mine").mkdir()
    with pytest.raises(shardio.ShardioError):
        shardio.convert(shard, tmp_path / "mine", to="tfrecord")
    assert (tmp_path / "mine").is_dir()


def test_files_of_others_in_an_interrupted_pack_stay(tmp_path: Path) -> None:
    source, out = make_images(tmp_path / "in", classes=0, per_class=12), tmp_path / "out"

    def stop(_: int) -> Any:
        done = itertools.count()

        def advance(_: int) -> None:
            if next(done) > 6:
                raise RuntimeError("stop")

        return advance

    with pytest.raises(RuntimeError):
        shardio.pack(source, out, shards=4, jobs=1, progress=stop)
    mine = [out / "shard-123456.tar", out / ".shardio-work/notes.txt"]
    for path in mine:
        path.write_text("mine")
    with pytest.raises(shardio.PackError, match=r"shard-123456\.tar: it is not known whether"):
        shardio.pack(source, out, shards=4)
    mine.pop(0).rename(tmp_path / "away.tar")
    assert shardio.pack(source, out, shards=4).samples == 12
    assert mine[0].read_text() == "mine"
    assert (tmp_path / "away.tar").read_text() == "mine"


def test_a_link_to_the_output_that_is_changed_meanwhile_leads_nowhere_else(tmp_path: Path) -> None:
    source = make_images(tmp_path / "in", classes=0, per_class=12)
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    link = tmp_path / "latest"
    link.symlink_to(tmp_path / "one")

    def change(_: int) -> Any:
        link.unlink()
        link.symlink_to(tmp_path / "two")
        return lambda _: None

    shardio.pack(source, link, shards=4, jobs=1, progress=change)
    assert not [*(tmp_path / "two").iterdir()]
    assert shardio.verify(tmp_path / "one").sound


def test_a_link_to_nothing_is_no_place_for_a_report(tmp_path: Path) -> None:
    link = tmp_path / "report.html"
    link.symlink_to(tmp_path / "target.html")
    with pytest.raises(shardio.UsageError, match="it is not a file"):
        check_writable(str(link))
    assert link.is_symlink()
    assert not (tmp_path / "target.html").exists()


def test_pipes_in_the_place_of_sources_are_no_wait(tmp_path: Path) -> None:
    for name in ("t.csv", "a.tfrecord"):
        os.mkfifo(tmp_path / name)
    images = make_images(tmp_path / "in", classes=0, per_class=1)
    with pytest.raises(shardio.PackError, match=r"t\.csv: it is not a file"):
        shardio.pack(images, tmp_path / "out", shards=1, manifest=tmp_path / "t.csv")
    with pytest.raises(shardio.UsageError, match=r"a\.tfrecord: it is not a file"):
        shardio.pack(tmp_path / "a.tfrecord", tmp_path / "out", shards=1)


def test_a_key_of_an_index_that_no_reader_finds_is_not_packed(tmp_path: Path) -> None:
    shard = make_shard(tmp_path / "a.tar", {"aa": {"txt": b"1"}, "bb": {"txt": b"2"}})
    shardio.index(shard)
    path = index_path(shard)
    known = read_index(path)
    keys = np.frombuffer(b"..bb", np.uint8)
    path.write_bytes(b"".join(encode_index(replace(known, keys=keys))))
    with pytest.raises(shardio.PackError, match=r"readers of shards pass over"):
        shardio.reshard(shard, tmp_path / "out", shards=1)


def test_a_packed_shards_index_without_checksums_is_not_believed(
    tmp_path: Path, packed: Path
) -> None:
    shutil.copytree(packed, tmp_path / "out")
    path = index_path(tmp_path / "out/shard-000000.tar")
    path.write_bytes(b"".join(encode_index(replace(read_index(path), checksums=None))))
    with pytest.raises(shardio.IndexFileError, match="the index has no checksums"):
        [*shardio.ShardDataset(tmp_path / "out")]


# Lists and files of an interrupted run, which others may have changed


LIST = ".shardio-work/samples.jsonl"


def forged(lines: bytes, victim: Path) -> bytes:
    """A list of samples of the same length whose files lie elsewhere."""
    secret = str(victim / "keep.txt")
    rows = [json.loads(line) for line in lines.splitlines()]
    for row in rows:
        row[4] = [["txt", secret]]
    text = b"".join(json.dumps(row).encode() + b"\n" for row in rows)
    assert len(text) <= len(lines) + len(rows) * len(secret)
    return text


@pytest.mark.parametrize("how", ["other content", "link", "one byte"])
@pytest.mark.parametrize("options", [{}, {"on_error": "skip"}, {"dedupe": "exact"}], ids=str)
def test_a_list_of_samples_that_is_not_the_packs_own_is_not_packed(
    source: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    how: str,
    options: dict[str, Any],
) -> None:
    (tmp_path / "keep.txt").write_text("secret")
    out = tmp_path / "out"

    def listing(*arguments: Any, **options: Any) -> Any:
        listed = Listing(*arguments, **options)
        path, lines = out / LIST, (out / LIST).read_bytes()
        if how == "one byte":
            path.write_bytes(lines.replace(b"image", b"imagf", 1))
        elif how == "other content":
            path.unlink()
            path.write_bytes(forged(lines, tmp_path))
        else:
            (tmp_path / "other").write_bytes(lines)
            path.unlink()
            path.symlink_to(tmp_path / "other")
        return listed

    monkeypatch.setattr("shardio.packing.job.Listing", listing)
    message = r"samples\.jsonl: (the list of samples was changed|it is a link)"
    with pytest.raises(shardio.PackError, match=message):
        shardio.pack(source, out, shards=2, jobs=1, shuffle=False, **options)
    assert not [*out.rglob("*.tar")]


@pytest.mark.parametrize("how", ["other content", "link"])
def test_a_list_of_whole_samples_that_is_not_the_repairs_own_is_not_packed(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    new = tmp_path / "new"

    def finding(task: Any, ticker: Any) -> Any:
        found = find_whole(task, ticker)
        path = new / ".shardio-work" / task.lines
        lines = path.read_bytes()
        path.unlink()
        if how == "link":
            (tmp_path / task.lines).write_bytes(lines)
            path.symlink_to(tmp_path / task.lines)
        else:
            path.write_bytes(forged(lines, tmp_path))
        return found

    monkeypatch.setattr("shardio.inspection.repair.find_whole", finding)
    message = r"whole-000000\.jsonl: (the list of samples was changed|it is a link)"
    with pytest.raises(shardio.PackError, match=message):
        shardio.repair(finished, new, jobs=1)
    assert not [*new.rglob("*.tar")]


@pytest.mark.parametrize("how", ["other content", "cut off", "longer"])
def test_a_conversion_believes_no_file_that_it_would_not_write(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """Not even beside a lock that an interrupted conversion of the same shards left."""
    out, whole = tmp_path / "out", tmp_path / "whole"
    shardio.convert(finished, whole, to="tfrecord", jobs=1)

    def dying(*_: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("shardio.conversion.tfrecord.write_records", dying)
        patch.setattr("shardio.conversion.tfrecord._record_files", lambda _: ["one"])
        patch.setattr("shardio.conversion.tfrecord._refuse_files", lambda _: None)
        with pytest.raises(KeyboardInterrupt):
            shardio.convert(finished, out, to="tfrecord", jobs=1)
    assert (out / ".converting").exists()
    data = (whole / "shard-000000.tfrecord").read_bytes()
    planted = {"other content": bytes(len(data)), "cut off": data[:-1], "longer": data + b"\0"}
    (out / "shard-000000.tfrecord").write_bytes(planted[how])
    with pytest.raises(
        shardio.PackError,
        match=r"shard-000000\.tfrecord: the file differs from what this conversion",
    ):
        shardio.convert(finished, out, to="tfrecord", jobs=1)
    assert (out / "shard-000000.tfrecord").read_bytes() == planted[how]
    (out / "shard-000000.tfrecord").unlink()
    shardio.convert(finished, out, to="tfrecord", jobs=1)
    assert digests(out) == digests(whole)
