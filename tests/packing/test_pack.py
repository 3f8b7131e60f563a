from __future__ import annotations

import io
import json
import os
import shutil
import struct
import subprocess
import sys
import tarfile
import zlib
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import shardio
from shardio.indexing.manifest import read_manifest
from shardio.testing import digests, make_images
from tests import programs

ReadSamples = Callable[[Path], list[dict[str, Any]]]
PHOTO = cv2.imencode(".jpg", np.arange(192, dtype=np.uint8).reshape(8, 8, 3))[1].tobytes()
PNG = cv2.imencode(".png", np.zeros((2, 2, 3), np.uint8))[1].tobytes()


def write(folder: Path, *names: str, data: bytes = PNG) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def keys_of(folder: Path) -> list[str]:
    return [sample["__key__"] for sample in shardio.ShardDataset(folder, decode=False)]


def test_webdataset_reads_the_same_keys_fields_and_bytes(
    packed: Path, images: Path, read_with_webdataset: ReadSamples
) -> None:
    found = {}
    for shard in sorted(packed.glob("*.tar")):
        for sample in read_with_webdataset(shard):
            assert set(sample) == {"__key__", "cls", "png"}
            found[sample["__key__"]] = (sample["png"], int(sample["cls"]))
    expected = {
        f"class{label:02d}/image{number:04d}": label for label in range(10) for number in range(60)
    }
    assert {key: label for key, (_, label) in found.items()} == expected
    for key, (data, _) in found.items():
        assert data == (images / f"{key}.png").read_bytes()


def test_packing_photos_then_reading_is_an_identity(
    shared_data: Path, tmp_path: Path, read_with_webdataset: ReadSamples
) -> None:
    photos = shared_data / "photos"
    summary = shardio.pack(photos, tmp_path / "out", shards=8)
    assert (summary.samples, summary.shards, summary.classes) == (600, 8, 10)
    found = {
        sample["__key__"]: sample["jpg"]
        for shard in sorted((tmp_path / "out").glob("*.tar"))
        for sample in read_with_webdataset(shard)
    }
    assert found == {
        str(path.relative_to(photos).with_suffix("")): path.read_bytes()
        for path in photos.rglob("*.jpg")
    }


@settings(max_examples=25)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 5), st.booleans())
def test_shards_are_balanced_and_hold_every_sample(
    tmp_path_factory: pytest.TempPathFactory, count: int, shards: int, seed: int, shuffle: bool
) -> None:
    folder = tmp_path_factory.mktemp("pack")
    write(folder / "in", *(f"{i}.png" for i in range(count)))
    if shards > count:
        with pytest.raises(shardio.PackError, match=f"{count} samples do not fill {shards} shards"):
            shardio.pack(folder / "in", folder / "out", shards=shards)
        assert not (folder / "out").exists()
        return
    shardio.pack(folder / "in", folder / "out", shards=shards, seed=seed, shuffle=shuffle)
    sizes = [shard.samples for shard in read_manifest(folder / "out").shards]
    assert len(sizes) == shards
    assert max(sizes) - min(sizes) <= 1
    assert sorted(keys_of(folder / "out")) == sorted(str(i) for i in range(count))
    shutil.rmtree(folder)


def test_a_seed_gives_one_order_and_no_shuffle_the_sorted_one(images: Path, tmp_path: Path) -> None:
    orders = []
    choices: list[tuple[str, dict[str, Any]]] = [("a", {"seed": 1}), ("b", {"seed": 2})]
    for name, options in [*choices, ("c", {"shuffle": False})]:
        shardio.pack(images, tmp_path / name, shards=2, **options)
        orders.append(keys_of(tmp_path / name))
    assert orders[0] != orders[1]
    assert orders[2] == sorted(orders[0]) == sorted(orders[1])


def test_packing_twice_gives_the_same_bytes_whatever_the_surroundings(tmp_path: Path) -> None:
    """Another order of readdir, locale, time zone, umask, clock and number of cores."""
    source = make_images(tmp_path / "one", classes=3, per_class=9)
    write(source, "class00/grün ß.png", "class00/dots.in.name.png")
    (source / os.fsdecode(b"class01/latin-\xe9.png")).write_bytes(PNG)
    other = tmp_path / "other"
    for path in sorted(source.rglob("*.png"), reverse=True):
        target = other / path.relative_to(source)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
        os.utime(target, (1, 1))
    shardio.pack(source, tmp_path / "a", shards=4)
    command = "umask 077; exec taskset -c 0 " if shutil.which("taskset") else ""
    command += f"{sys.executable} -m shardio pack other b --shards 4"
    surroundings = {**os.environ, "LC_ALL": "C", "TZ": "Asia/Tokyo", "PYTHONUTF8": "0"}
    subprocess.run(["/bin/sh", "-c", command], check=True, cwd=tmp_path, env=surroundings)
    assert digests(tmp_path / "a") == digests(tmp_path / "b")
    assert len(digests(tmp_path / "a")) == 4 + 4 + 1 + 1


def test_the_bytes_of_shards_are_those_of_every_version(tmp_path: Path) -> None:
    """Folders packed by another version must not come out another dataset."""
    bitmap = struct.pack("<2sIIIIiiHHIIiiII", b"BM", 70, 0, 54, 40, 2, 2, 1, 24, *[0] * 6)
    for number in range(7):
        path = f"{'ab'[number % 2]}/dotted.{number}.bmp"
        write(tmp_path / "in", path, data=bitmap + bytes(range(number, number + 16)))
    shardio.pack(tmp_path / "in", tmp_path / "out", shards=2)
    found = digests(tmp_path / "out")
    assert found["shard-000000.tar"] == (
        "fff98182ab0646a8f3f1e18b1d6c2b8afd6306ff40b1019b9f61d30022d4a120"
    )
    assert found["shard-000001.tar"] == (
        "60423ab6040c45925fde62c320f50a790aeb8ce398dec897688fbd1d2affe1c9"
    )


def test_members_have_fixed_metadata_and_adjacent_fields(packed: Path) -> None:
    with tarfile.open(packed / "shard-000000.tar") as archive:
        assert archive.format == tarfile.USTAR_FORMAT or not archive.pax_headers
        members = archive.getmembers()
    assert len(members) == 150
    assert {(m.mode, m.uid, m.gid, m.mtime, m.uname, m.gname) for m in members} == {
        (0o644, 0, 0, 0, "", "")
    }
    names = [member.name for member in members]
    assert [name.removesuffix(".cls") for name in names[::2]] == [
        name.removesuffix(".png") for name in names[1::2]
    ]


def test_a_flat_folder_has_no_labels(tmp_path: Path) -> None:
    summary = shardio.pack(write(tmp_path / "in", "a.png", "b.png"), tmp_path / "out", shards=1)
    assert summary.classes is None
    assert set(next(iter(shardio.ShardDataset(tmp_path / "out")))) == {"image", "valid", "__key__"}


def test_nested_folders_belong_to_the_class_of_the_first(tmp_path: Path) -> None:
    write(tmp_path / "in", "b/x/y/1.png", "b/2.png", "a.dotted/x/3.png")
    shardio.pack(tmp_path / "in", tmp_path / "out", shards=1, shuffle=False)
    dataset = shardio.ShardDataset(tmp_path / "out")
    assert dataset.classes == ("a.dotted", "b")
    assert {sample["__key__"]: sample["label"] for sample in dataset} == {
        "a.dotted/x/3": 0,
        "b/2": 1,
        "b/x/y/1": 1,
    }
    shardio.pack(tmp_path / "in", tmp_path / "flat", shards=1, labels=False)
    assert "label" not in next(iter(shardio.ShardDataset(tmp_path / "flat")))


def test_classes_are_the_folders_also_empty_ones(tmp_path: Path) -> None:
    """So that labels of a training and a validation folder mean the same."""
    source = write(tmp_path / "in", "a/1.png", "c/2.png")
    (source / "b").mkdir()
    shardio.pack(source, tmp_path / "out", shards=1, shuffle=False)
    dataset = shardio.ShardDataset(tmp_path / "out")
    assert dataset.classes == ("a", "b", "c")
    assert [sample["label"] for sample in dataset] == [0, 2]


def test_the_field_is_the_extension_or_else_the_format(tmp_path: Path) -> None:
    jpeg = cv2.imencode(".jpg", np.zeros((2, 2, 3), np.uint8))[1].tobytes()
    write(tmp_path / "in", "a.JPEG", "b", "c.bak", data=jpeg)
    write(tmp_path / "in", "d", ".hidden.png", "e.v2.png")
    shardio.pack(tmp_path / "in", tmp_path / "out", shards=1, shuffle=False)
    with tarfile.open(tmp_path / "out/shard-000000.tar") as archive:
        assert archive.getnames() == ["a.jpeg", "b.jpg", "c_bak.jpg", "d.png", "e_v2.png"]
    rows = (tmp_path / "out/renamed.jsonl").read_text().splitlines()
    assert [json.loads(row) for row in rows] == [
        {"key": "c_bak", "path": "c.bak"},
        {"key": "e_v2", "path": "e.v2.png"},
    ]


BAD_SOURCES: dict[str, tuple[Callable[[Path], object], str]] = {
    "no image": (
        lambda folder: write(folder, "x/a.png", data=b"hello world"),
        r"x/a\.png: not a JPEG, PNG, WebP or BMP",
    ),
    "empty file": (lambda folder: write(folder, "x/a.png", data=b""), r"x/a\.png: .*empty"),
    "cut off": (lambda folder: write(folder, "x/a.png", data=PNG[:-9]), r"x/a\.png: .*truncated"),
    "cut off after its header": (
        lambda folder: write(folder, "x/a.jpg", data=PHOTO[:-9]),
        r"x/a\.jpg: truncated JPEG: no end-of-image marker",
    ),
    "huge": (
        lambda folder: os.truncate(write(folder, "x/a.png") / "x/a.png", 8 << 40),
        r"x/a\.png: 8,796,093,022,208 bytes, more than the limit of 1 GiB .*; fix, rename or",
    ),
    "no longer there": (
        lambda folder: (folder / "x/a.png").symlink_to("nowhere"),
        r"x/a\.png: a link to nothing; fix, rename or remove the file, or leave all such",
    ),
    "same key, other extension": (
        lambda folder: write(folder, "x/good.bmp"),
        r"x/good\.png: its key would be 'x/good', as that of x/good\.bmp",
    ),
    "same key after dots": (
        lambda folder: write(folder, "x/a.b.png", "x/a_b.png"),
        r"x/a_b\.png: its key would be 'x/a_b', as that of x/a\.b\.png",
    ),
    "unreadable": (
        lambda folder: (folder / "x/a.png").symlink_to("/proc/self/mem"),
        r"x/a\.png: Input/output error",
    ),
    "metadata": (
        lambda folder: write(folder, "__meta__/a.png"),
        r"__meta__/a\.png: readers of shards pass over a member with the key '__meta__/a'",
    ),
    "a fifo": (lambda folder: os.mkfifo(folder / "x/a.png"), "neither a file nor a folder"),
    "a loose file": (
        lambda folder: write(folder, "loose.png"),
        r"loose\.png: it lies beside the class folders; move it into one, or pack without",
    ),
    "a link to itself": (
        lambda folder: (folder / "x/a.png").symlink_to("a.png"),
        r"x/a\.png: Too many levels of symbolic links; fix, rename or remove the file",
    ),
    "a link to itself as class": (
        lambda folder: (folder / "y").symlink_to("y"),
        "y: Too many levels of symbolic links",
    ),
    "a loop": (lambda folder: (folder / "x/loop").symlink_to(".."), "leads back to a folder above"),
}


def test_folders_may_be_as_deep_as_paths_may_be_long(tmp_path: Path) -> None:
    source = deepest = write(tmp_path / "in", "x/good.png")
    for _ in range(1500):
        deepest /= "x"
        deepest.mkdir(exist_ok=True)
    write(deepest, "a.png")
    try:
        summary = shardio.pack(source, tmp_path / "out", shards=1)
    finally:
        command = ["rm", "-r", str(source)]  # pytest's way of it recurses
        subprocess.run(command, check=True)
    assert summary.samples == 2
    keys = {sample["__key__"] for sample in shardio.ShardDataset(tmp_path / "out")}
    assert keys == {"x/good", "x/" * 1500 + "a"}


def test_links_to_one_folder_are_followed_but_not_without_end(tmp_path: Path) -> None:
    """Two links in each of 28 folders to the next one are 2 ** 28 paths."""
    source = write(tmp_path / "in", "x/a.png")
    for name in ("y", "z"):
        (source / name).symlink_to("x")
    assert shardio.pack(source, tmp_path / "out", shards=1).samples == 3
    folders = [tmp_path / "chain" / f"{depth:02}" for depth in range(29)]
    for folder in folders:
        folder.mkdir(parents=True)
    for folder, below in pairwise(folders):
        for name in ("a", "b"):
            (folder / name).symlink_to(below)
    write(folders[-1], "a.png")
    with pytest.raises(shardio.PackError, match=r"/[ab]/: links lead to .* than 100 times; remove"):
        shardio.pack(folders[0], tmp_path / "other", shards=1)


@pytest.mark.parametrize("case", BAD_SOURCES)
def test_a_bad_file_stops_the_pack_and_nothing_is_left_of_a_shard(
    tmp_path: Path, case: str
) -> None:
    source = write(tmp_path / "in", *(f"x/{i}.png" for i in range(9)), "x/good.png")
    spoil, message = BAD_SOURCES[case]
    spoil(source)
    with pytest.raises(shardio.PackError, match=message):
        shardio.pack(source, tmp_path / "out", shards=1)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("jobs", [1, 2])
def test_after_a_bad_file_is_mended_the_pack_goes_on_where_it_was(
    tmp_path: Path, jobs: int
) -> None:
    source = write(tmp_path / "in", *(f"{i}.png" for i in range(9)))
    write(source, "8.png", data=b"no")
    with pytest.raises(shardio.PackError, match=r"8\.png: not a JPEG"):
        shardio.pack(source, tmp_path / "out", shards=9, shuffle=False, jobs=jobs)
    first = tmp_path / "out/shard-000000.tar"
    before = first.stat().st_ino
    with pytest.raises(shardio.IndexFileError, match="interrupted or still runs"):
        shardio.ShardDataset(tmp_path / "out")
    write(source, "8.png")
    shardio.pack(source, tmp_path / "out", shards=9, shuffle=False, jobs=jobs)
    assert first.stat().st_ino == before
    shardio.pack(source, tmp_path / "whole", shards=9, shuffle=False)
    assert digests(tmp_path / "out") == digests(tmp_path / "whole")


def test_bad_files_are_skipped_and_listed(tmp_path: Path) -> None:
    source = write(tmp_path / "in", *(f"x/{i}.png" for i in range(9)), "x/good.png", "x/good.bmp")
    write(source, "x/text.png", "y/alone.png", data=b"hello")
    (source / "x/link.png").symlink_to("nowhere")
    (source / "x/mem.png").symlink_to("/proc/self/mem")
    os.mkfifo(source / "x/fifo")
    os.truncate(write(source, "x/huge.png") / "x/huge.png", 8 << 40)
    (source / "self").symlink_to("self")
    summary = shardio.pack(source, tmp_path / "out", shards=3, on_error="skip")
    assert (summary.samples, summary.skipped, summary.classes) == (10, 8, 2)
    rows = [json.loads(row) for row in (tmp_path / "out/skipped.jsonl").read_text().splitlines()]
    names = ["fifo", "good.png", "huge.png", "link.png", "mem.png", "text.png"]
    paths = ["self", *(f"x/{name}" for name in names), "y/alone.png"]
    assert [row["path"] for row in rows] == paths
    assert all(row["reason"] for row in rows)
    sizes = [shard.samples for shard in read_manifest(tmp_path / "out").shards]
    assert sizes == [4, 3, 3]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seed": 1.5}, r"seed=1\.5: it must be a whole number"),
        ({"seed": None, "shuffle": False}, "seed=None: it must be a whole number"),
        ({"on_error": "ignore"}, "on_error='ignore': it must be 'raise' or 'skip'"),
    ],
)
def test_an_argument_that_cannot_be_meant_is_refused(
    tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    source = write(tmp_path / "in", "a.png", "b.png")
    with pytest.raises(shardio.UsageError, match=message):
        shardio.pack(source, tmp_path / "out", shards=1, **options)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("make", ["nothing", "empty"])
def test_an_empty_source_is_refused(tmp_path: Path, make: str) -> None:
    if make == "empty":
        (tmp_path / "in/x").mkdir(parents=True)
    with pytest.raises(shardio.PackError, match=r"no such folder|nothing in it can be packed"):
        shardio.pack(tmp_path / "in", tmp_path / "out", shards=1)


def test_an_output_that_has_shards_is_refused_and_left_alone(packed: Path, tmp_path: Path) -> None:
    before = digests(packed)
    with pytest.raises(shardio.PackError, match=r"the folder has shards already"):
        shardio.pack(write(tmp_path / "in", "a.png"), packed, shards=1)
    assert digests(packed) == before
    write(tmp_path / "mine", "other.tgz")
    with pytest.raises(shardio.PackError, match=r"has shards already \(other\.tgz\)"):
        shardio.pack(tmp_path / "in", tmp_path / "mine", shards=1)
    write(tmp_path, "file")
    with pytest.raises(shardio.PackError, match="it is a file"):
        shardio.pack(tmp_path / "in", tmp_path / "file", shards=1)


@pytest.mark.parametrize("out", ["in", "in/out", "in/../in/x/y"])
def test_an_output_inside_the_source_is_refused(tmp_path: Path, out: str) -> None:
    source = write(tmp_path / "in", "a.png", "b.png")
    with pytest.raises(shardio.PackError, match="the output lies inside the source"):
        shardio.pack(source, tmp_path / out, shards=1)
    assert sorted(path.name for path in source.iterdir()) == ["a.png", "b.png"]


def test_an_output_folder_with_other_files_keeps_them(tmp_path: Path) -> None:
    write(tmp_path / "out", "notes.txt")
    source = write(tmp_path / "in", "a.png", "b.png")
    shardio.pack(source, tmp_path / "out", shards=1)
    assert (tmp_path / "out/notes.txt").exists()
    write(tmp_path / "bad", "a.png", data=b"no")
    write(tmp_path / "out2", "notes.txt")
    with pytest.raises(shardio.PackError):
        shardio.pack(tmp_path / "bad", tmp_path / "out2", shards=1)
    assert [path.name for path in (tmp_path / "out2").iterdir()] == ["notes.txt"]


DYING_PACK = """
import os, signal, sys
import shardio

calls_left = int(sys.argv[3])

def dying(call):
    def counted(*arguments, **options):
        global calls_left
        calls_left -= 1
        if calls_left < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return call(*arguments, **options)
    return counted

os.fsync, os.replace = dying(os.fsync), dying(os.replace)
shardio.pack(sys.argv[1], sys.argv[2], shards=2, jobs=1)
"""


def test_a_pack_killed_at_any_sync_or_rename_and_run_again_ends_with_the_same_bytes(
    images: Path, tmp_path: Path
) -> None:
    shardio.pack(images, tmp_path / "whole", shards=2)
    expected = digests(tmp_path / "whole")
    for calls in range(100):
        out = tmp_path / f"out{calls}"
        if programs.run(DYING_PACK, images, out, calls).returncode == 0:
            break
        left = digests(out)
        for name in left.keys() & expected.keys():
            assert left[name] == expected[name], "a final name on a partial file"
        assert "shardio.json" not in left or expected.keys() <= left.keys()
        shardio.pack(images, out, shards=2)
        assert digests(out) == expected
    assert 12 <= calls < 100


def test_two_packs_into_one_folder_one_wins(images: Path, tmp_path: Path) -> None:
    def second(_: int) -> Callable[[int], None]:
        with pytest.raises(shardio.PackError, match="another pack is writing to this folder"):
            shardio.pack(images, tmp_path / "out", shards=2)
        return lambda _: None

    shardio.pack(images, tmp_path / "out", shards=5, progress=second)
    assert len([*(tmp_path / "out").glob("*.tar")]) == 5


def test_a_file_that_changes_meanwhile_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write(tmp_path / "in", "a.png")
    real = os.fstat

    def smaller(descriptor: int) -> Any:
        status = real(descriptor)
        if Path(f"/proc/self/fd/{descriptor}").readlink() == source / "a.png":
            return os.stat_result([*status[:6], status.st_size - 1, *status[7:]])
        return status

    monkeypatch.setattr(os, "fstat", smaller)
    with pytest.raises(shardio.PackError, match=r"a\.png: the file changed while it was packed"):
        shardio.pack(source, tmp_path / "out", shards=1)


@pytest.mark.parametrize("jobs", [1, 2])
def test_progress_counts_every_sample(images: Path, tmp_path: Path, jobs: int) -> None:
    calls = []

    def start(total: int) -> Callable[[int], None]:
        calls.append(total)
        return calls.append

    shardio.pack(images, tmp_path / "out", shards=3, jobs=jobs, progress=start)
    assert calls[0] == sum(calls[1:]) == 600


def test_a_large_file_is_packed_in_one_piece(tmp_path: Path) -> None:
    """Larger than the writer's buffer."""
    data = io.BytesIO()
    data.write(PNG[:-12])
    text = b"teXt" + bytes(9 << 20)
    checksum = zlib.crc32(text).to_bytes(4, "big")
    data.write((9 << 20).to_bytes(4, "big") + text + checksum + PNG[-12:])
    write(tmp_path / "in", "large.png", data=data.getvalue())
    write(tmp_path / "in", "a.png", "z.png")
    shardio.pack(tmp_path / "in", tmp_path / "out", shards=1, shuffle=False)
    with tarfile.open(tmp_path / "out/shard-000000.tar") as archive:
        member = archive.extractfile("large.png")
        assert member is not None
        assert member.read() == data.getvalue()
        assert archive.getnames() == ["a.png", "large.png", "z.png"]
    assert len(keys_of(tmp_path / "out")) == 3


def test_a_jpeg_that_some_epochs_would_refuse_is_refused_when_it_is_packed(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (480, 640, 3), np.uint8)
    sound = cv2.imencode(".jpg", pixels)[1].tobytes()
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "a.jpg").write_bytes(sound)
    (folder / "b.jpg").write_bytes(sound[: len(sound) * 9 // 10] + sound[-2:])
    with pytest.raises(shardio.PackError, match=r"b\.jpg: .*premature end of data segment"):
        shardio.pack(folder, tmp_path / "out", shards=1, labels=False)
    shardio.pack(folder, tmp_path / "out", shards=1, labels=False, on_error="skip")
    (sample,) = shardio.ShardDataset(tmp_path / "out")
    assert sample["__key__"] == "a"


@pytest.mark.parametrize("other", ["cat ", " cat", "cat\N{NO-BREAK SPACE}"])
def test_class_folders_that_differ_in_white_space_alone_are_refused(
    other: str, tmp_path: Path
) -> None:
    source = write(tmp_path / "in", "cat/a.png", f"{other}/b.png")
    with pytest.raises(shardio.SituationError, match=r"'cat'.*would be two classes.*with classes"):
        shardio.pack(source, tmp_path / "out", shards=1)
    shardio.pack(source, tmp_path / "out", shards=1, classes=["cat", other])
    assert shardio.ShardDataset(tmp_path / "out").classes == ("cat", other)
    shardio.pack(source, tmp_path / "flat", shards=1, labels=False)


def test_class_folders_of_one_name_in_two_normal_forms_are_refused(tmp_path: Path) -> None:
    source = write(tmp_path / "in", "caf\u00e9/a.png", "cafe\u0301/b.png")
    with pytest.raises(shardio.SituationError, match=r"'cafe\\u0301' and 'caf\\xe9' would be two"):
        shardio.pack(source, tmp_path / "out", shards=1)


@pytest.mark.parametrize("names", [("a/x.png", "b/x.png"), ("x.png", "y.png")])
def test_json_that_may_be_of_coco_is_not_only_to_be_moved(
    names: tuple[str, ...], tmp_path: Path
) -> None:
    source = write(write(tmp_path / "in", *names), "instances.json", data=b'{"images": []}')
    with pytest.raises(
        shardio.PackError, match=r"instances\.json: .*name it with coco if it has COC"
    ):
        shardio.pack(source, tmp_path / "out", shards=1)


def photo(side: int, *, corrupt: bool = False) -> bytes:
    pixels = np.random.default_rng(side).integers(0, 256, (side, side, 3), np.uint8)
    data = cv2.imencode(".jpg", pixels)[1].tobytes()
    return data[: len(data) * 3 // 4] + b"\xff\xd9" if corrupt else data


@pytest.mark.parametrize("native", ["0", "1"])
def test_the_first_picture_that_does_not_decode_is_named(
    native: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, sizes = tmp_path / "in", (64, 900, 900, 40)  # some of them fill the buffer of a shard
    for number, side in enumerate(sizes):
        write(source, f"{number}.jpg", data=photo(side))
    write(source, "a.jpg", "c.jpg", data=photo(64, corrupt=True))
    write(source, "b.jpg", data=b"text")
    monkeypatch.setenv("SHARDIO_NATIVE", native)
    out = tmp_path / "out"
    command = [sys.executable, "-m", "shardio", "pack", str(source), str(out)]
    command += ["--shards", "1", "--no-shuffle", "--jobs", "1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "a.jpg: the JPEG data do not decode" in done.stderr
    assert not out.exists()
    subprocess.run([*command, "--on-error", "skip"], capture_output=True, check=True)
    rows = map(json.loads, (out / "skipped.jsonl").read_text().splitlines())
    assert [row["path"] for row in rows] == ["a.jpg", "b.jpg", "c.jpg"]
    assert keys_of(out) == [*map(str, range(len(sizes)))]


def test_the_field_of_a_picture_that_does_not_decode_is_named(tmp_path: Path) -> None:
    source = write(tmp_path / "in", "x/a.left.jpg", data=photo(64))
    write(source, "x/a.right.jpg", data=photo(64, corrupt=True))
    with pytest.raises(shardio.PackError, match=r"its field 'right\.jpg': the JPEG data do not"):
        shardio.pack(source, tmp_path / "out", shards=1, fields="left.jpg,right.jpg")
