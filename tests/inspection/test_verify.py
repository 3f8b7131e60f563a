from __future__ import annotations

import gzip
import io
import json
import re
import shutil
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

import shardio
from shardio.indexing.manifest import index_path, read_manifest
from shardio.indexing.shard_index import read_index
from shardio.inspection.findings import Finding, Verification
from shardio.tar.header import HEADER_PARTS, checksum
from shardio.testing import Damage, damaged, make_images, make_shard

PIXELS = np.random.default_rng(0).integers(0, 256, (12, 8, 3), np.uint8)
PNG = cv2.imencode(".png", PIXELS)[1].tobytes()
JPEG = cv2.imencode(".jpg", PIXELS)[1].tobytes()


def verify(source: Path, *, deep: bool = False) -> Verification:
    return shardio.verify(source, deep=deep, jobs=1)


def make_samples(count: int, prefix: str = "a") -> dict[str, dict[str, bytes]]:
    array = io.BytesIO()
    np.save(array, PIXELS[:, :, 0])
    return {
        f"{prefix}/{number:03d}": {
            "jpg": JPEG,
            "cls": b"%d" % number,
            "json": json.dumps({"n": number}).encode(),
            "npy": array.getvalue(),
        }
        for number in range(count)
    }


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 samples of four fields in two shards; do not change."""
    folder = tmp_path_factory.mktemp("original")
    shard = make_shard(folder / "all.tar", make_samples(40))
    shardio.pack(shard, folder / "out", shards=2, jobs=1)
    return folder / "out"


@pytest.fixture
def out(original: Path, tmp_path: Path) -> Path:
    """A copy, to be damaged."""
    return shutil.copytree(original, tmp_path / "out")


def shard_of(folder: Path, number: int = 0) -> Path:
    return folder / f"shard-{number:06d}.tar"


def add_members(path: Path, *members: tuple[str, bytes], kind: bytes = tarfile.REGTYPE) -> Path:
    with tarfile.open(path, "a" if path.exists() else "w") as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.type = kind
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


# What is sound


def test_a_packed_folder_is_sound_and_its_counts_are_those_of_the_manifest(packed: Path) -> None:
    manifest = read_manifest(packed)
    for deep in (False, True):
        found = shardio.verify(packed, deep=deep, jobs=2)
        assert found.findings == ()
        assert found.sound
        assert (found.shards, found.samples, found.members) == (8, 600, 1200)
        assert found.bytes == sum(shard.size for shard in manifest.shards)


def test_photos_splits_pixels_and_single_shards_are_sound(images: Path, tmp_path: Path) -> None:
    shardio.pack(images, tmp_path / "a", shards=3, split={"train": 0.8, "val": 0.2}, jobs=1)
    assert verify(tmp_path / "a", deep=True).findings == ()
    assert verify(tmp_path / "a").samples == 600
    shardio.pack(images, tmp_path / "b", shards=2, store="raw", jobs=1)
    for source in (tmp_path / "b", tmp_path / "b/shardio.json", tmp_path / "b/shard-000000.tar"):
        assert verify(source, deep=True).findings == ()
    assert verify(tmp_path / "b/*.tar").samples == 600


def test_real_shards_are_sound(shared_data: Path) -> None:
    shards = [path for path in (shared_data / "shards").rglob("*.t*") if path.suffix != ".tfrecord"]
    assert len(shards) > 10
    images = shardio.Image("png", bits=8)  # some have 16
    for shard in shards:
        assert shardio.verify(shard, deep=True, fields={"image": images}).findings == (), shard


def test_what_tar_writes_is_sound_with_and_without_indexes(images: Path, tmp_path: Path) -> None:
    for format_ in ("gnu", "ustar", "posix", "v7"):
        tar = tmp_path / f"{format_}.tar"
        command = ["tar", f"--format={format_}", "-cf", str(tar), "-C", str(images)]
        subprocess.run([*command, f"--transform=s,^,{format_}/,", "class00"], check=True)
    (tmp_path / "zipped.tgz").write_bytes(
        gzip.compress(make_shard(tmp_path / "../z", make_samples(3)).read_bytes())
    )
    for _ in range(2):
        found = verify(tmp_path, deep=True)
        assert [finding for finding in found.findings if finding.severity == "problem"] == []
        assert (found.shards, found.samples) == (5, 243)
        shardio.index(tmp_path)


# What is damaged


def facts_differ(path: Path, before: bytes, after: bytes) -> bool:
    try:
        return path.name != "shardio.json" or json.loads(before) != json.loads(after)
    except ValueError:
        return True


@pytest.mark.parametrize(
    ("damage", "times"),
    [("flip", 150), ("truncate", 40), ("swap", 15), ("double", 15), ("zero", 15), ("drop", 15)],
)
def test_random_damage_of_any_file_is_found(out: Path, damage: Damage, times: int) -> None:
    files = [path for path in sorted(out.rglob("*")) if path.is_file()]
    if damage not in {"flip", "truncate"}:
        files = sorted(out.glob("*.tar"))
    numbers = np.random.default_rng(4)
    for _ in range(times):
        path = files[numbers.integers(len(files))]
        before = path.read_bytes()
        after = damaged(before, damage, numbers)
        if after != before and facts_differ(path, before, after):
            path.write_bytes(after)
            problems = verify(out).problems
            assert problems, path
            folders = {str(path), str(shard_of(out)), str(shard_of(out, 1))}
            assert {problem.shard for problem in problems} <= folders
            path.write_bytes(before)
    assert verify(out).sound


def test_bits_of_a_header_of_a_foreign_tar_count(tmp_path: Path) -> None:
    shard = make_shard(tmp_path / "a.tar", make_samples(2))
    whole = shard.read_bytes()
    for at in range(0, 512, 3):
        data = bytearray(whole)
        data[at] ^= 1 << at % 8
        shard.write_bytes(data)
        assert verify(shard).sound == (at == 154), "how the checksum field ends says nothing"


def sentence(found: Verification) -> str:
    return "\n".join(map(str, found.findings))


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def set_mode(shard: Path) -> None:
    data = bytearray(shard.read_bytes())
    before, _, after, rest = HEADER_PARTS.unpack(data[:512])
    before = before[:100] + b"0000600\0" + before[108:]
    stated = b"%06o\0 " % checksum(before, after, rest)
    data[:512] = HEADER_PARTS.pack(before, stated, after, rest)
    shard.write_bytes(data)


def put_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def second_member(shard: Path) -> int:
    return int(np.sort(read_index(index_path(shard)).offsets, axis=None)[1])


def change_manifest(out: Path, change: Callable[[dict[str, object]], object]) -> None:
    document = json.loads((out / "shardio.json").read_bytes())
    change(document)
    (out / "shardio.json").write_text(json.dumps(document))


FAULTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "a shard less": (
        lambda out: shard_of(out).unlink(),
        r"shard-000000\.tar: the shard is missing; the manifest lists 20 samples in it; restore "
        r"the shard, or pack the same samples into a new folder and copy the shard from there$",
    ),
    "a shard more": (
        lambda out: shutil.copy(shard_of(out), out / "more.tar"),
        r"more\.tar: the manifest does not list this shard; remove it",
    ),
    "no index": (
        lambda out: index_path(shard_of(out)).unlink(),
        r"idx: the index is missing; run `shardio index` on",
    ),
    "index of another": (
        lambda out: shutil.copy(index_path(shard_of(out)), index_path(shard_of(out, 1))),
        "shard-000001.tar: the index is of another shard than the manifest",
    ),
    "an index more": (
        lambda out: shutil.copy(index_path(shard_of(out)), out / "index/more.tar.idx"),
        r"more\.tar\.idx: the shard of this index is missing; remove it",
    ),
    "temporary file": (
        lambda out: (out / ".shard-000001.tar.12-34.tmp").touch(),
        r"\.tmp: a temporary file is left from an interrupted pack or index; remove it",
    ),
    "lock": (
        lambda out: (out / ".shardio-pack").touch(),
        r"\.shardio-pack: writing into this folder was interrupted or is still running; wait",
    ),
    "work folder": (
        lambda out: (out / ".shardio-work").mkdir(),
        r"\.shardio-work: writing into this folder was interrupted",
    ),
    "manifest of nothing": (
        lambda out: (out / "shardio.json").write_text("{"),
        r"shardio\.json: the manifest is damaged or of another version",
    ),
    "kind of manifest": (
        lambda out: change_manifest(out, lambda document: document.update(__kind__="other")),
        r"shardio\.json: the manifest was changed after shardio wrote it: '__kind__'; run",
    ),
    "fields of manifest": (
        lambda out: change_manifest(
            out, lambda document: document.update(shardio={**NO_CHECKSUM, "fields": ["cls"]})
        ),
        "the manifest lists the fields cls, but the shards have cls, jpg, json, npy",
    ),
    "a folder for a shard": (
        lambda out: put_folder(shard_of(out)),
        r"shard-000000\.tar: the shard cannot be read \(Is a directory\)",
    ),
    "data": (
        lambda out: flip(shard_of(out), 600),
        r"byte 512, sample 'a/\d+', field 'jpg': the data are not what was packed \(CRC-32 differs",
    ),
    "header": (
        lambda out: flip(shard_of(out), 3),
        r"byte 0, sample 'a/\d+', field 'jpg': the header's checksum does not match, and tar tools "
        r"do not find this member, though its data are intact; fetch or pack it again, or write",
    ),
    "header with its checksum made right": (
        lambda out: set_mode(shard_of(out)),
        r"shard-000000\.tar: the SHA-256 of the shard is not that in the manifest",
    ),
    "padding": (
        lambda out: flip(shard_of(out), second_member(shard_of(out)) - 513),
        r"byte \d+: the padding after the data of 1 member is not zero; readers skip it, but",
    ),
    "end": (
        lambda out: shard_of(out).write_bytes(shard_of(out).read_bytes() + b"x"),
        "1 bytes that are no members follow the end of the archive",
    ),
    "one zero more": (
        lambda out: shard_of(out).write_bytes(shard_of(out).read_bytes() + b"\0"),
        r"the shard has [\d,]+ bytes, but the manifest says ",
    ),
    "another shard": (
        lambda out: shutil.copy(shard_of(out, 1), shard_of(out)),
        r"shard-000000\.tar, byte 512, sample .*: the index does not have this member",
    ),
}
NO_CHECKSUM: dict[str, object] = {"version": 1, "classes": None}


@pytest.mark.parametrize("name", FAULTS)
def test_each_fault_gets_a_sentence_with_place_and_remedy(out: Path, name: str) -> None:
    damage, expected = FAULTS[name]
    assert verify(out).sound
    damage(out)
    found = verify(out)
    assert not found.sound
    assert re.search(expected, sentence(found)), sentence(found)
    assert all(finding.remedy and finding.what for finding in found.findings)


SAMPLE_IN_HEADERS = r"byte \d+, sample 'a/\d+', field '\w+': "
ONE_BYTE = {
    **dict.fromkeys(
        (*range(0, 512, 9), 148, 153),
        SAMPLE_IN_HEADERS
        + "the header's checksum does not match, and tar tools do not find this member, though "
        "its data are intact",
    ),
    155: r"\.tar: the SHA-256 of the shard is not that in the manifest, though the data of all",
    512: SAMPLE_IN_HEADERS + r"the data are not what was packed \(CRC-32 differs\)",
    -1025: r"byte \d+: the padding after the data of 1 member is not zero",
    -1024: r"byte \d+: this block is neither a header nor the end of the archive",
    -1: r"byte \d+: a single block of zeros precedes .* or the end-of-archive mark is corrupt",
}


@pytest.mark.parametrize("at", ONE_BYTE)
def test_a_changed_byte_is_one_finding_with_its_place_and_remedy(out: Path, at: int) -> None:
    start = second_member(shard_of(out)) - 512 if at >= 0 else shard_of(out).stat().st_size
    flip(shard_of(out), start + at)
    (found,) = verify(out).findings
    assert (found.severity, found.shard) == ("problem", str(shard_of(out)))
    assert re.search(
        ONE_BYTE[at] + r".*; .*(fetch or pack|restore the shard, or pack the same samples)",
        str(found),
    ), str(found)


@pytest.mark.parametrize("at", range(0, 512, 37))
def test_a_changed_byte_of_a_foreign_header_is_one_finding(tmp_path: Path, at: int) -> None:
    shard = make_shard(tmp_path / "a.tar", make_samples(3))
    flip(shard, at)
    (found,) = verify(tmp_path).findings
    assert (found.severity, found.shard, found.offset) == ("problem", str(shard), 0)
    assert re.match("the header's checksum does not match, and bytes 0 to 1[0-9]{3} ", found.what)


def test_fields_are_not_said_to_lack_where_members_are_missing(tmp_path: Path) -> None:
    shards = [tmp_path / "a.tar", tmp_path / "b.tar"]
    for shard in shards:
        add_members(shard, (f"{shard.stem}0.jpg", JPEG), (f"{shard.stem}0.cls", b"1"))
        add_members(shard, (f"{shard.stem}1.jpg", JPEG))
    flip(shards[0], 0)
    (note,) = [finding for finding in verify(tmp_path).findings if finding.severity == "note"]
    assert (note.key, note.field) == ("b1", "cls")
    assert note.what.startswith("1 of 2 samples in complete shards lack this field")


def test_members_without_headers_are_one_finding_a_gap(out: Path) -> None:
    shard = shard_of(out)
    data = bytearray(shard.read_bytes())
    end = second_member(shard) + 600
    data[:512], data[end - 1112 : end] = bytes(512), bytes(1112)
    shard.write_bytes(data)
    (found,) = verify(out).findings
    assert found.offset == 0
    assert re.search(
        r"tar tools do not find this and \d+ other members?, though the data of \d+", found.what
    )


def test_a_damaged_index_is_named_as_the_file_at_fault(out: Path) -> None:
    path = index_path(shard_of(out))
    flip(path, path.stat().st_size // 2)
    (found,) = verify(out).findings
    assert found.shard == str(path)
    assert str(found).startswith(f"{path}: the index is damaged")


def test_a_broken_shard_does_not_stop_the_others(out: Path) -> None:
    shard_of(out).write_bytes(b"no tar at all" * 100)
    flip(shard_of(out, 1), 600)
    found = verify(out)
    assert (found.shards, found.samples) == (2, 20)
    assert {problem.shard for problem in found.problems} == {
        str(shard_of(out)),
        str(shard_of(out, 1)),
    }
    assert found.findings == shardio.verify(out, jobs=2).findings


def test_an_interrupted_pack_is_a_finding_and_what_is_there_is_checked(out: Path) -> None:
    (out / "shardio.json").unlink()
    (out / ".shardio-pack").touch()
    flip(shard_of(out), 600)
    found = verify(out)
    assert found.samples == 40
    assert "interrupted" in sentence(found)
    assert "CRC-32 differs" in sentence(found)


def test_a_split_without_its_manifest_is_noticed(images: Path, tmp_path: Path) -> None:
    shardio.pack(images, tmp_path / "a", shards=3, split={"train": 0.8, "val": 0.2}, jobs=1)
    (tmp_path / "a/val/shardio.json").unlink()
    found = verify(tmp_path / "a")
    assert f"{tmp_path}/a/val: the manifest is missing, though other splits have one" in sentence(
        found
    )
    assert found.samples == 600


# Names and keys


def messages(shard: Path, *, severity: str = "problem") -> list[Finding]:
    return [finding for finding in verify(shard).findings if finding.severity == severity]


def test_members_that_are_not_adjacent_are_named(tmp_path: Path) -> None:
    shard = add_members(tmp_path / "a.tar", ("x.txt", b"1"), ("y.txt", b"2"), ("x.cls", b"3"))
    (found,) = messages(shard)
    assert (found.key, found.offset, found.what) == (
        "x",
        2560,
        "the members of this sample are not adjacent",
    )


def test_a_field_that_is_there_twice_is_named(tmp_path: Path) -> None:
    shard = add_members(tmp_path / "a.tar", ("x.txt", b"1"), ("x.TXT", b"2"))
    (found,) = messages(shard)
    assert (found.key, found.field, found.offset) == ("x", "txt", 1536)


def test_keys_that_are_there_again_are_named_within_and_across_shards(tmp_path: Path) -> None:
    for number in range(3):
        own = (f"own{number}.txt", b"")
        add_members(tmp_path / f"{number}.tar", ("x.txt", b"1"), own, ("x.txt", b"1"))
    found = messages(tmp_path)
    assert {(finding.shard, finding.key) for finding in found} == {
        (str(tmp_path / f"{number}.tar"), "x") for number in range(3)
    }
    text = sentence(verify(tmp_path))
    assert text.count("the sample at byte 512 has the same key") == 3
    assert text.count(f"a sample in {tmp_path}/0.tar has the same key") == 2
    assert verify(tmp_path).findings == shardio.verify(tmp_path, jobs=3).findings


def test_a_key_in_two_splits_is_named(images: Path, tmp_path: Path) -> None:
    for name in ("train", "val"):
        shardio.pack(images, tmp_path / "a" / name, shards=1, jobs=1)
    found = verify(tmp_path / "a")
    assert len(found.problems) == 600
    assert f"a sample in {tmp_path}/a/train/shard-000000.tar" in found.problems[0].what


def test_links_have_no_data_and_are_problems(tmp_path: Path) -> None:
    shard = add_members(tmp_path / "a.tar", ("x.txt", b"1"))
    add_members(shard, ("x.cls", b""), kind=tarfile.SYMTYPE)
    (found,) = messages(shard)
    assert "the member 'x.cls' is a link or device and has no data" in str(found)


def test_members_of_no_sample_and_lacking_fields_are_notes(tmp_path: Path) -> None:
    shard = add_members(
        tmp_path / "a.tar",
        ("README", b""),
        ("._x.jpg", b""),
        ("x.jpg", JPEG),
        ("x.cls", b"1"),
        ("y.png", PNG),
        ("z.png", PNG),
        ("z.cls", b"1"),
    )
    found = verify(shard)
    assert found.sound
    assert [(finding.key, finding.field) for finding in found.findings] == [
        (None, None),
        ("y", "cls"),
    ]
    assert "2 members outside any sample, the first is 'README'; readers skip" in str(
        found.findings[0]
    )
    assert str(found.findings[1]).startswith(f"note: {shard}, sample 'y', field 'cls': 1 of 3")


# Contents


@pytest.mark.parametrize(
    ("name", "data", "deep", "message"),
    [
        ("x.jpg", JPEG[:-9], False, "truncated JPEG"),
        ("x.png", PNG[:40], False, "truncated PNG"),
        ("x.jpg", b"GIF89a", False, "a GIF"),
        ("x.png", PNG[:60] + b"\0\0" + PNG[62:], False, "corrupt PNG"),
        ("x.cls", b"cat", True, "not a 64-bit decimal integer"),
        ("x.json", b"{", True, "not JSON"),
        ("x.txt", b"\xff", True, "not UTF-8"),
        ("x.npy", b"no", True, r"not a \.npy file"),
        ("x.rgb.npy", b"no", True, r"not a \.npy file"),
    ],
)
def test_fields_that_are_not_what_their_name_says_are_found(
    tmp_path: Path, name: str, data: bytes, deep: bool, message: str
) -> None:
    shard = add_members(tmp_path / "a.tar", (name, data), ("y.bin", data))
    assert verify(shard).sound == deep
    found = verify(shard, deep=deep).findings[0]
    assert (found.key, found.field, found.offset) == ("x", name[2:], 512)
    with pytest.raises(shardio.CodecError, match=message):
        raise shardio.CodecError(found.what)


def test_a_gzip_shard_that_is_cut_off_is_a_finding(tmp_path: Path) -> None:
    data = gzip.compress(make_shard(tmp_path / "z", make_samples(3)).read_bytes())
    (tmp_path / "a.tgz").write_bytes(data)
    assert verify(tmp_path / "a.tgz").sound
    (tmp_path / "a.tgz").write_bytes(data[:-20])
    assert "the gzip data is truncated" in sentence(verify(tmp_path / "a.tgz"))


def test_a_shard_without_index_but_with_that_of_another_differs(tmp_path: Path) -> None:
    shard = make_shard(tmp_path / "a.tar", make_samples(3))
    shardio.index(shard)
    make_shard(shard, make_samples(4))
    assert "the index does not have this member" in sentence(verify(shard))


def test_findings_of_one_shard_are_counted_beyond_a_thousand(tmp_path: Path) -> None:
    members = [(f"{number}.txt", b"\xff") for number in range(1200)]
    found = verify(add_members(tmp_path / "a.tar", *members), deep=True)
    assert len(found.findings) == 1001
    assert "200 more problems of this shard are not listed" in str(found.findings[-1])


def test_progress_counts_bytes(packed: Path) -> None:
    told: list[int] = []

    def start(total: int) -> Callable[[int], None]:
        told.append(-total)
        return told.append

    shardio.verify(packed, jobs=1, progress=start)
    assert sum(told) == 0
    assert told[0] == -sum(path.stat().st_size for path in packed.glob("*.tar"))


def test_nothing_at_the_source_is_a_mistake(tmp_path: Path) -> None:
    for source in (tmp_path, tmp_path / "none", tmp_path / "*.tar"):
        with pytest.raises(shardio.UsageError):
            verify(source)
    with pytest.raises(shardio.UsageError, match="jobs=0"):
        shardio.verify(make_images(tmp_path / "a", classes=0, per_class=1), jobs=0)


@pytest.mark.parametrize("left", [0.1, 0.5, 0.8])
def test_a_shard_that_was_cut_off_is_one_problem(out: Path, left: float) -> None:
    shard = sorted(out.glob("*.tar"))[0]
    size = int(shard.stat().st_size * left)
    index = read_index(index_path(shard))
    lost = int((index.offsets + index.sizes > size).sum())
    with shard.open("r+b") as stream:
        stream.truncate(size)
    (problem,) = verify(out).problems
    assert problem.shard == str(shard)
    more = f" and {lost - 1} more" if lost > 1 else ""
    assert problem.what == (
        f"the shard is truncated at byte {size:,}, before the end of this member{more}"
    )


def test_bytes_behind_the_data_of_a_jpeg_are_a_note_and_delivered_in_every_epoch(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
    sound = cv2.imencode(".jpg", cv2.resize(pixels, (640, 480)))[1].tobytes()
    for number in range(3):
        (folder / f"{number}.jpg").write_bytes(sound[:-2] + b"\x12\x34\x56" * 40 + sound[-2:])
    (folder / "3.jpg").write_bytes(sound.replace(b"JFIF\0\1\1", b"JFIF\0\0\0"))
    out = tmp_path / "out"
    shardio.pack(folder, out, shards=1, labels=False)
    found = verify(out, deep=True)
    assert found.sound
    (note,) = found.findings
    assert note.severity == "note"
    assert "3 fields with bytes too many behind the data" in str(note)
    for transform in (None, shardio.RandomResizedCrop(32)):
        dataset = shardio.ShardDataset(out, transform=transform, batch_size=1)
        for epoch in range(5):
            dataset.set_epoch(epoch)
            assert sum(int(batch["valid"].sum()) for batch in dataset) == 4
    shardio.pack(folder, tmp_path / "small", shards=1, labels=False, resize=32)
    assert shardio.repair(out, tmp_path / "repaired", deep=True).samples == 4
    index_path(out / "shard-000000.tar").unlink()
    (out / "shardio.json").unlink()
    problems = verify(out, deep=True).problems
    assert len(problems) == 3
    assert "extraneous bytes before marker 0xd9" in str(problems[0])
