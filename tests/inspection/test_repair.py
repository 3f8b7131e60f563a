from __future__ import annotations

import gzip
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import shardio
from shardio.indexing.manifest import index_path, read_manifest
from shardio.indexing.scan import index_shard
from shardio.indexing.shard_index import encode_index, read_index
from shardio.inspection.repair import RepairSummary
from shardio.tar.writer import END_OF_ARCHIVE, header_block, padding
from shardio.testing import Damage, damaged, digests, make_shard

Sample = dict[str, bytes]
JPEG = cv2.imencode(".jpg", np.arange(192, dtype=np.uint8).reshape(8, 8, 3))[1].tobytes()


def repair(source: Path, new: Path, **options: Any) -> RepairSummary:
    return shardio.repair(source, new, jobs=1, **options)


def make_samples(count: int) -> dict[str, Sample]:
    numbers = np.random.default_rng(0)
    return {
        f"a/{number:03d}": {
            "jpg": JPEG,
            "cls": b"%d" % number,
            "bin": numbers.bytes(int(numbers.integers(2000))),
        }
        for number in range(count)
    }


def contents(folder: Path) -> dict[str, Sample]:
    found: dict[str, Sample] = {}
    for shard in sorted(folder.glob("*.tar")):
        data, index = shard.read_bytes(), read_index(index_path(shard))
        for row in range(len(index)):
            places = zip(index.fields, index.offsets[row], index.sizes[row], strict=True)
            found[index.key(row)] = {
                field: data[offset : offset + size] for field, offset, size in places if offset >= 0
            }
    return found


def dropped(new: Path) -> list[dict[str, str]]:
    ledger = new / "dropped.jsonl"
    return [*map(json.loads, ledger.read_text().splitlines())] if ledger.exists() else []


def write_members(path: Path, *members: tuple[str, bytes]) -> Path:
    blocks = [
        header_block(name.encode(), len(data)) + data + padding(len(data)) for name, data in members
    ]
    path.write_bytes(b"".join(blocks) + END_OF_ARCHIVE)
    return path


def shard_of(folder: Path, number: int = 0) -> Path:
    return folder / f"shard-{number:06d}.tar"


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """30 samples of three fields in two shards; do not change."""
    folder = tmp_path_factory.mktemp("original")
    shard = make_shard(folder / "all.tar", make_samples(30))
    shardio.pack(shard, folder / "out", shards=2, shuffle=False, jobs=1)
    return folder / "out"


@pytest.fixture
def out(original: Path, tmp_path: Path) -> Path:
    """A copy, to be damaged."""
    return shutil.copytree(original, tmp_path / "out")


def test_repairing_what_is_sound_gives_the_same_bytes(packed: Path, tmp_path: Path) -> None:
    assert repair(packed, tmp_path / "new") == RepairSummary(
        samples=600,
        shards=8,
        bytes=sum(shard.size for shard in read_manifest(packed).shards),
        dropped=0,
        lost=0,
        damaged=0,
    )
    assert digests(tmp_path / "new") == digests(packed)


@settings(max_examples=25)
@given(
    damage=st.sampled_from(get_args(Damage)),
    seed=st.integers(0, 2**32),
    with_index=st.booleans(),
    times=st.integers(1, 3),
)
def test_after_any_damage_what_is_kept_is_what_was_packed(
    original: Path,
    tmp_path_factory: pytest.TempPathFactory,
    damage: Damage,
    seed: int,
    with_index: bool,
    times: int,
) -> None:
    folder = tmp_path_factory.mktemp("damage")
    out = shutil.copytree(original, folder / "out")
    shard, numbers = shard_of(out), np.random.default_rng(seed)
    for _ in range(times):
        shard.write_bytes(damaged(shard.read_bytes() or b"\0", damage, numbers))
    if not with_index:
        index_path(shard).unlink()
    before = digests(out)
    summary = repair(out, folder / "new")
    assert digests(out) == before, "the source is left as it is"
    assert shardio.verify(folder / "new", jobs=1).sound
    whole, kept = contents(original), contents(folder / "new")
    assert len(kept) == summary.samples >= 15
    assert kept.keys() <= whole.keys()
    if with_index:
        assert all(kept[key] == whole[key] for key in kept)
        lost = {f"{shard}: {key}" for key in whole.keys() - kept.keys()}
        assert {row["path"] for row in dropped(folder / "new")} == lost
    shutil.rmtree(folder)


def test_a_damaged_header_loses_nothing_where_an_index_is(out: Path, tmp_path: Path) -> None:
    whole = contents(out)
    data = bytearray(shard_of(out).read_bytes())
    offsets = read_index(index_path(shard_of(out))).offsets
    for offset in offsets.ravel().tolist():
        data[offset - 512] ^= 1
    shard_of(out).write_bytes(data)
    assert repair(out, tmp_path / "new").dropped == 0
    assert contents(tmp_path / "new") == whole


def test_bytes_lost_within_a_member_lose_its_sample_alone(out: Path, tmp_path: Path) -> None:
    whole = contents(out)
    data = bytearray(shard_of(out).read_bytes())
    index = read_index(index_path(shard_of(out)))
    row = int(np.argmax(index.sizes[:5, 0]))
    offset = int(index.offsets[row, 0])
    del data[offset + 100 : offset + 333]
    shard_of(out).write_bytes(data)
    for name in ("with", "without"):
        repair(out, tmp_path / name)
        assert contents(tmp_path / name) == {
            key: sample for key, sample in whole.items() if key != index.key(row)
        }
        rows = dropped(tmp_path / name)
        assert f"{shard_of(out)}: {index.key(row)}" in {row["path"] for row in rows}
        index_path(shard_of(out)).unlink(missing_ok=True)
    reasons = " ".join(row["reason"] for row in rows)
    assert "the shard differs from the one packed, and no index shows" in reasons
    assert f"bytes {offset} to " in reasons


def test_a_damaged_header_without_an_index_loses_its_sample_alone(tmp_path: Path) -> None:
    samples = make_samples(9)
    shard = make_shard(tmp_path / "a.tar", samples)
    data = bytearray(shard.read_bytes())
    data[data.index(b"a/004.cls") + 100] ^= 2
    shard.write_bytes(data)
    summary = repair(shard, tmp_path / "new")
    assert (summary.dropped, summary.lost, summary.damaged) == (2, 1, 1)
    assert contents(tmp_path / "new") == {
        key: sample for key, sample in samples.items() if key != "a/004"
    }
    first, second = dropped(tmp_path / "new")
    assert "belong to no intact member: the header's checksum does not" in first["reason"]
    assert second["reason"].startswith("some of its members may have been in bytes ")


def test_bytes_added_within_a_member_lose_its_sample_alone(tmp_path: Path) -> None:
    samples = make_samples(9)
    shard = make_shard(tmp_path / "a.tar", samples)
    data = bytearray(shard.read_bytes())
    at = data.index(b"a/004.bin") + 512
    data[at:at] = bytes(range(256)) * 4
    shard.write_bytes(data)
    repair(shard, tmp_path / "new")
    assert contents(tmp_path / "new") == {
        key: sample for key, sample in samples.items() if key != "a/004"
    }
    reasons = [row["reason"] for row in dropped(tmp_path / "new")]
    assert "no valid header follows its field 'bin'" in reasons


def test_names_of_classes_that_go_with_a_manifest_are_listed(out: Path, tmp_path: Path) -> None:
    whole = contents(out)
    (out / "shardio.json").write_text("{}")
    summary = repair(out, tmp_path / "new")
    assert (summary.dropped, summary.lost, summary.damaged) == (1, 0, 0)
    assert contents(tmp_path / "new") == whole
    (row,) = dropped(tmp_path / "new")
    assert row["reason"] == "the manifest is corrupt, so its class names and field types are lost"


def test_samples_of_a_missing_shard_are_listed_by_key(out: Path, tmp_path: Path) -> None:
    shard_of(out).unlink()
    summary = repair(out, tmp_path / "new")
    assert (summary.samples, summary.lost, summary.damaged) == (15, 15, 1)
    rows = dropped(tmp_path / "new")
    assert {row["path"] for row in rows} >= {f"{shard_of(out)}: a/{n:03d}" for n in range(15)}
    assert rows[0]["reason"] == "the shard cannot be read (No such file or directory)"


def test_members_that_are_not_adjacent_are_put_together(tmp_path: Path) -> None:
    members = [("x.jpg", JPEG), ("y.jpg", JPEG), ("x.cls", b"1"), ("y.cls", b"2")]
    repair(write_members(tmp_path / "a.tar", *members), tmp_path / "new")
    assert contents(tmp_path / "new") == {
        "x": {"jpg": JPEG, "cls": b"1"},
        "y": {"jpg": JPEG, "cls": b"2"},
    }
    assert shardio.verify(tmp_path / "new").findings == ()
    assert dropped(tmp_path / "new") == []


def test_copies_are_one_sample_and_others_with_its_key_are_dropped(tmp_path: Path) -> None:
    members = [("x.txt", b"1"), ("x.txt", b"1"), ("x.cls", b"1"), ("y.txt", b"2")]
    more = [("y.txt", b"3"), ("y.cls", b"3"), ("z.txt", b"4"), ("x.cls", b"1")]
    twice = [("w.txt", b"5"), ("w.txt", b"6")]
    shard = write_members(tmp_path / "a.tar", *members, ("z.txt", b"4"), *more, *twice)
    repair(shard, tmp_path / "new")
    assert contents(tmp_path / "new") == {
        "x": {"txt": b"1", "cls": b"1"},
        "y": {"txt": b"2"},
        "z": {"txt": b"4"},
    }
    assert {row["path"]: row["reason"] for row in dropped(tmp_path / "new")} == {
        f"{shard}: y": "another sample at byte 5632 has this key and different data in the "
        "field 'txt'; the first is kept",
        f"{shard}: w": "it has the field 'txt' twice, with different data",
    }


def test_of_a_key_in_two_shards_the_first_is_kept(tmp_path: Path) -> None:
    for number in range(2):
        own = (f"own{number}.txt", b"")
        write_members(tmp_path / f"{number}.tar", ("x.txt", b"%d" % number), own)
    summary = repair(tmp_path, tmp_path / "../new")
    assert (summary.samples, summary.lost) == (3, 1)
    assert contents(tmp_path / "../new")["x"] == {"txt": b"0"}
    (row,) = dropped(tmp_path / "../new")
    assert row["path"] == f"{tmp_path}/1.tar: x"
    assert "as that of" in row["reason"]
    shutil.rmtree(tmp_path / "../new")


def test_fields_that_do_not_decode_are_dropped_when_deep(tmp_path: Path) -> None:
    members = [("x.cls", b"cat"), ("y.cls", b"1"), ("z.jpg", JPEG[:-5])]
    shard = write_members(tmp_path / "a.tar", *members)
    for deep, kept in ((False, {"x", "y"}), (True, {"y"})):
        repair(shard, tmp_path / f"{deep}", deep=deep)
        assert contents(tmp_path / f"{deep}").keys() == kept
    reasons = [row["reason"] for row in dropped(tmp_path / "True")]
    assert reasons[0].startswith("field 'cls' at byte 512: not a 64-bit decimal integer")
    assert len(reasons) == 2


def test_a_sample_is_not_lost_for_too_little_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def use_up(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(shardio.Text, "decode", use_up)
    shard = write_members(tmp_path / "a.tar", ("x.txt", b"1"), ("y.bin", b"1"))
    with pytest.raises(MemoryError):
        repair(shard, tmp_path / "new", deep=True)
    assert not (tmp_path / "new").exists()


def test_what_a_cut_off_gzip_shard_still_has_is_kept(tmp_path: Path) -> None:
    samples = make_samples(20)
    data = gzip.compress(make_shard(tmp_path / "plain", samples).read_bytes())
    (tmp_path / "a.tgz").write_bytes(data[: len(data) // 2])
    repair(tmp_path / "a.tgz", tmp_path / "new")
    kept = contents(tmp_path / "new")
    assert 5 < len(kept) < 15
    assert kept.items() <= samples.items()
    assert any("the gzip data" in row["reason"] for row in dropped(tmp_path / "new"))


def test_a_stale_index_of_a_sound_shard_is_not_believed(tmp_path: Path) -> None:
    shard = make_shard(tmp_path / "a.tar", make_samples(3))
    shardio.index(shard)
    samples = make_samples(5)
    make_shard(shard, samples)
    repair(shard, tmp_path / "new")
    assert contents(tmp_path / "new") == samples


def test_an_index_that_was_made_after_the_damage_vouches_for_nothing(
    out: Path, tmp_path: Path
) -> None:
    shard = shard_of(out)
    data = bytearray(shard.read_bytes())
    data[read_index(index_path(shard)).offsets[0, 0]] ^= 1
    shard.write_bytes(data)
    index = index_shard(shard, name="x", checksums=True)
    index_path(shard).write_bytes(b"".join(encode_index(index)))
    repair(out, tmp_path / "new")
    (row,) = dropped(tmp_path / "new")
    assert row["path"] == str(shard)
    assert row["reason"].startswith("the shard differs from the one packed, and no index shows")


def test_classes_and_splits_are_kept(images: Path, tmp_path: Path) -> None:
    shardio.pack(images, tmp_path / "a", shards=3, split={"train": 0.8, "val": 0.2}, jobs=1)
    shard = shard_of(tmp_path / "a/val")
    data = bytearray(shard.read_bytes())
    data[512] ^= 1
    shard.write_bytes(data)
    summary = repair(tmp_path / "a", tmp_path / "new")
    assert (summary.samples, summary.shards, summary.dropped) == (599, 3, 1)
    assert shardio.verify(tmp_path / "new", jobs=1).findings == ()
    assert read_manifest(tmp_path / "new/val").classes == read_manifest(tmp_path / "a/val").classes
    assert digests(tmp_path / "new/train") == digests(tmp_path / "a/train")


def test_any_number_of_processes_gives_the_same_bytes(out: Path, tmp_path: Path) -> None:
    shard_of(out, 1).write_bytes(shard_of(out, 1).read_bytes()[:9000])
    for jobs in (1, 2):
        shardio.repair(out, tmp_path / f"{jobs}", jobs=jobs)
    assert digests(tmp_path / "1") == digests(tmp_path / "2")


def test_an_interrupted_repair_goes_on(out: Path, tmp_path: Path) -> None:
    flipped = bytearray(shard_of(out, 1).read_bytes())
    flipped[512] ^= 1
    shard_of(out, 1).write_bytes(flipped)
    repair(out, tmp_path / "whole")
    told: list[list[int]] = []

    def start(_: int) -> Callable[[int], None]:
        told.append([])
        return stop_in_the_second_shard

    def stop_in_the_second_shard(count: int) -> None:
        told[-1].append(count)
        if len(told) == 2 and len(told[-1]) == 20:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        repair(out, tmp_path / "new", progress=start)
    first = shard_of(tmp_path / "new").stat()
    repair(out, tmp_path / "new")
    assert digests(tmp_path / "new") == digests(tmp_path / "whole")
    assert shard_of(tmp_path / "new").stat().st_mtime_ns == first.st_mtime_ns


def test_what_cannot_be_repaired_is_explained(out: Path, tmp_path: Path) -> None:
    with pytest.raises(shardio.PackError, match="the output lies inside the source"):
        repair(out, out / "new")
    with pytest.raises(shardio.PackError, match="has shards already"):
        repair(shard_of(out), out)
    with pytest.raises(shardio.PackError, match="15 samples do not fill 16 shards"):
        repair(shard_of(out), tmp_path / "new", shards=16)
    for number in range(2):
        shard_of(out, number).write_bytes(b"")
    with pytest.raises(shardio.PackError, match="out: no sample is intact; fetch or pack"):
        repair(out, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_bytes_that_are_no_archive_do_not_stop_a_repair(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).bytes(5000)
    samples = make_samples(3)
    shard = make_shard(tmp_path / "a.tar", samples)
    shard.write_bytes(noise + shard.read_bytes())
    repair(shard, tmp_path / "new")
    assert contents(tmp_path / "new") == samples


def test_members_that_the_index_does_not_have_are_listed(out: Path, tmp_path: Path) -> None:
    shard = out / "shard-000000.tar"
    data = shard.read_bytes()
    extra = header_block(b"extra/1.jpg", len(JPEG)) + JPEG + padding(len(JPEG))
    shard.write_bytes(data[: -len(END_OF_ARCHIVE)] + extra + END_OF_ARCHIVE)
    before = contents(out)
    repair(out, tmp_path / "new")
    assert contents(tmp_path / "new") == before
    assert [row["path"].rpartition(": ")[2] for row in dropped(tmp_path / "new")] == ["extra/1"]


def test_fewer_samples_than_shards_are_repaired_into_fewer_shards(tmp_path: Path) -> None:
    samples = ({"__key__": f"{i}", "bin": b"x" * 2000} for i in range(4))
    shardio.pack(samples, tmp_path / "out", shards=4, shuffle=False)
    path = tmp_path / "out/shard-000002.tar"
    data = bytearray(path.read_bytes())
    data[600] ^= 1
    path.write_bytes(data)
    summary = repair(tmp_path / "out", tmp_path / "new")
    assert (summary.samples, summary.shards) == (3, 3)
