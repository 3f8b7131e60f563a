"""Shards as TFRecord files, and their indexes for other tools."""

from __future__ import annotations

import gzip
import io
import json
import shutil
import signal
import struct
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tfrecord.reader import example_loader
from webdataset.tariterators import base_plus_ext

import shardio
from shardio.testing import make_shard

SAMPLES = {
    "a/one": {"jpg": b"first", "cls": b"7", "json": b'{"x": [1]}'},
    "two": {"jpg": b"second" * 100, "txt": "grün".encode(), "cls": b" -2\n"},
}


def read_records(path: Path) -> list[dict[str, Any]]:
    """The Examples of a file, as the package tfrecord reads them."""
    found = [*example_loader(str(path), None)]
    return [{name: value if isinstance(value, bytes) else value.tolist()
             for name, value in sample.items()} for sample in found]  # fmt: skip


def digests(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def with_tarfile(path: Path) -> list[list[tuple[str, tarfile.TarInfo]]]:
    """Extensions and members of the samples of a shard, as Python and webdataset see them."""
    samples: dict[str, list[tuple[str, tarfile.TarInfo]]] = {}
    with tarfile.open(path) as archive:
        for member in archive:
            key, extension = base_plus_ext(member.name)
            other = "__meta__" in member.name or "/." in member.name
            if member.isreg() and key and not other:
                samples.setdefault(key, []).append((extension, member))
    return [*samples.values()]


def test_the_tfrecord_package_reads_every_sample(packed: Path, tmp_path: Path) -> None:
    summary = shardio.convert(packed, tmp_path / "out", to="tfrecord")
    assert (summary.samples, summary.shards, summary.files) == (600, 8, 8)
    names = [path.name for path in sorted((tmp_path / "out").iterdir())]
    assert names == [f"shard-{number:06d}.tfrecord" for number in range(8)]
    assert summary.bytes == sum(path.stat().st_size for path in (tmp_path / "out").iterdir())
    for name in names:
        with tarfile.open(packed / name.replace("tfrecord", "tar")) as archive:
            members = {each.name: archive.extractfile(each).read() for each in archive}  # type: ignore[union-attr]
        samples = read_records(tmp_path / "out" / name)
        assert len(samples) == len(members) // 2
        for sample in samples:
            key = sample["__key__"].decode()
            assert sample["png"] == members[f"{key}.png"]
            assert sample["label"] == [int(members[f"{key}.cls"])]


def test_packing_what_was_converted_gives_the_same_shards(packed: Path, tmp_path: Path) -> None:
    shardio.convert(packed, tmp_path / "records", to="tfrecord")
    shardio.pack(tmp_path / "records", tmp_path / "out", shards=8, shuffle=False)
    for shard in packed.glob("*.tar"):
        assert (tmp_path / "out" / shard.name).read_bytes() == shard.read_bytes()


WORDS = st.text(st.characters(codec="utf-8")).map(str.encode)
ARRAYS = st.binary().map(lambda data: shardio.Array("npy").encode(np.frombuffer(data, np.uint8)))
JSON = st.dictionaries(st.text(), st.integers()).map(lambda value: json.dumps(value).encode())


@settings(max_examples=20)
@given(
    st.dictionaries(
        st.from_regex(r"[a-z0-9_/]{0,6}[a-z0-9]", fullmatch=True).filter(lambda k: k[0] != "/"),
        st.fixed_dictionaries({"npy": ARRAYS}, optional={"x.txt": WORDS, "json": JSON}),
        min_size=1,
        max_size=5,
    ),
    st.integers(-(2**63), 2**63 - 1),
)
def test_shards_to_records_to_shards_is_an_identity(
    tmp_path_factory: pytest.TempPathFactory, samples: dict[str, dict[str, bytes]], label: int
) -> None:
    folder = tmp_path_factory.mktemp("convert")
    given = {key: {"cls": b"%d" % label, **fields} for key, fields in samples.items()}
    make_shard(folder / "a.tar", given)
    shardio.convert(folder / "a.tar", folder / "records", to="tfrecord", jobs=1)
    shardio.pack(folder / "records", folder / "out", shards=1, shuffle=False, jobs=1)
    names = {"label": "cls"}
    found = {
        sample["__key__"]: {
            names.get(name, name): data
            for name, data in sample.items()
            if name != "valid" and not name.startswith("__")
        }
        for sample in shardio.ShardDataset(folder / "out", decode=False)
    }
    assert found == given
    shutil.rmtree(folder)


def test_fields_can_be_named_and_left_out(tmp_path: Path) -> None:
    make_shard(tmp_path / "a.tar", SAMPLES)
    pairs = ["jpg=image/encoded", "cls=image/class/label", "json=", "__key__=image/filename"]
    shardio.convert(tmp_path / "a.tar", tmp_path / "out", to="tfrecord", features=pairs)
    assert read_records(tmp_path / "out/a.tfrecord") == [
        {"image/encoded": b"first", "image/class/label": [7], "image/filename": b"a/one"},
        {
            "image/encoded": b"second" * 100,
            "image/class/label": [-2],
            "image/filename": b"two",
            "txt": "grün".encode(),
        },
    ]


def test_any_number_of_processes_gives_the_same_bytes(packed: Path, tmp_path: Path) -> None:
    for jobs in (1, 2):
        shardio.convert(packed, tmp_path / str(jobs), to="tfrecord", jobs=jobs)
    assert digests(tmp_path / "1") == digests(tmp_path / "2")


def test_shards_with_gzip_become_records(tmp_path: Path) -> None:
    plain = make_shard(tmp_path / "a.tar", SAMPLES)
    with gzip.open(tmp_path / "b.tgz", "wb") as stream:
        stream.write(plain.read_bytes())
    shardio.convert([plain, tmp_path / "b.tgz"], tmp_path / "out", to="tfrecord")
    one, other = digests(tmp_path / "out").values()
    assert one == other


def test_a_member_that_changed_stops_the_conversion_and_leaves_nothing(tmp_path: Path) -> None:
    shard = make_shard(tmp_path / "a.tar", SAMPLES)
    shardio.index(shard)
    data = bytearray(shard.read_bytes())
    data[data.index(b"first")] ^= 1
    shard.write_bytes(data)
    with pytest.raises(shardio.SampleError) as caught:
        shardio.convert(shard, tmp_path / "out", to="tfrecord")
    error = caught.value
    assert str(error).startswith(f"{shard}: a/one, field 'jpg': the data at offset 512 of {shard}")
    assert (error.shard, error.key, error.field) == (str(shard), "a/one", "jpg")
    assert not (tmp_path / "out").exists()


def test_a_class_that_is_no_number_stops_the_conversion(tmp_path: Path) -> None:
    shard = make_shard(tmp_path / "a.tar", {"x": {"cls": b"cat"}})
    with pytest.raises(shardio.SampleError, match="x, field 'cls': not a 64-bit decimal integer"):
        shardio.convert(shard, tmp_path / "out", to="tfrecord")


def test_a_conversion_that_was_killed_is_finished_by_running_it_again(
    packed: Path, tmp_path: Path
) -> None:
    shardio.convert(packed, tmp_path / "whole", to="tfrecord")
    out = tmp_path / "out"
    code = (
        "import shardio, sys, os, shardio.conversion.tfrecord as files\n"
        "real = files.frame_record; seen = []\n"
        "def frame(pieces):\n"
        "    seen.append(1)\n"
        "    if len(seen) == 200: os.kill(os.getpid(), 9)\n"
        "    return real(pieces)\n"
        "files.frame_record = frame\n"
        "shardio.convert(*sys.argv[1:], to='tfrecord', jobs=1)"
    )
    done = subprocess.run([sys.executable, "-c", code, packed, out], check=False)
    assert done.returncode == -signal.SIGKILL
    left = sorted(path.name for path in out.iterdir())
    assert [name for name in left if name.endswith("tfrecord")] == [
        "shard-000000.tfrecord",
        "shard-000001.tfrecord",
    ]
    with pytest.raises(shardio.PackError, match="a different conversion into this folder was"):
        shardio.convert(packed, out, to="tfrecord", features=["cls="])
    before = (out / "shard-000000.tfrecord").stat().st_mtime_ns
    shardio.convert(packed, out, to="tfrecord")
    assert digests(out) == digests(tmp_path / "whole")
    assert (out / "shard-000000.tfrecord").stat().st_mtime_ns == before


def test_files_that_are_there_are_not_overwritten(packed: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.tfrecord").write_bytes(b"mine")
    with pytest.raises(shardio.PackError, match=r"already has TFRecord files \(mine\.tfrecord\)"):
        shardio.convert(packed, tmp_path, to="tfrecord")
    assert digests(tmp_path) == {"mine.tfrecord": b"mine"}


def test_two_conversions_do_not_write_to_one_folder(packed: Path, tmp_path: Path) -> None:
    code = (
        "import shardio, sys, time, shardio.conversion.tfrecord as files\n"
        "def frame(pieces): time.sleep(60)\n"
        "files.frame_record = frame\n"
        "shardio.convert(*sys.argv[1:], to='tfrecord', jobs=1)"
    )
    other = subprocess.Popen([sys.executable, "-c", code, packed, tmp_path / "out"])
    try:
        while not any(path.name.startswith(".shard") for path in tmp_path.glob("out/*")):
            assert other.poll() is None
            time.sleep(0.02)
        with pytest.raises(shardio.PackError, match="another conversion is writing to this folder"):
            shardio.convert(packed, tmp_path / "out", to="tfrecord")
    finally:
        other.kill()
        other.wait()


def odd_shard(path: Path) -> Path:
    """Folders, long names, PAX headers, upper case, and members that belong to no sample."""
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:
        names = ["__meta__/x.json", "dir", "dir/a.JPG", "dir/a.seg.png", "dir/._a.jpg"]
        names += ["x" * 180 + ".jpg", "x" * 180 + ".cls", "b.txt", "README"]
        for number, name in enumerate(names):
            info = tarfile.TarInfo(name)
            info.size = 0 if name == "dir" else 300 * number
            if name == "dir":
                info.type = tarfile.DIRTYPE
            if name == "b.txt":
                info.pax_headers = {"comment": "grün"}
            archive.addfile(info, io.BytesIO(bytes(info.size)))
    return path


@pytest.fixture(params=["packed", "odd"])
def shards(request: pytest.FixtureRequest, packed: Path, tmp_path: Path) -> list[Path]:
    if request.param == "packed":
        return sorted(packed.glob("*.tar"))
    return [odd_shard(tmp_path / "odd.tar")]


def test_dalis_index_says_where_tarfile_finds_the_members(
    shards: list[Path], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    shardio.convert([*shards], out, to="dali")
    assert sorted(path.name for path in out.iterdir()) == [f"{path.stem}.idx" for path in shards]
    for shard in shards:
        samples = with_tarfile(shard)
        expected = [f"v1.2 {len(samples)}"]
        for sample in samples:
            parts = [f"{ext} {each.offset_data} {each.size} {each.name}" for ext, each in sample]
            expected.append(" ".join(parts))
        assert (out / f"{shard.stem}.idx").read_text() == "\n".join([*expected, ""])


def test_dalis_index_of_a_small_shard_is_this(tmp_path: Path) -> None:
    make_shard(tmp_path / "a.tar", {"k/1": {"jpg": b"x" * 600, "cls": b"3"}, "k/2": {"jpg": b""}})
    shardio.convert(tmp_path / "a.tar", to="dali")
    assert (tmp_path / "a.idx").read_text() == (
        "v1.2 2\njpg 512 600 k/1.jpg cls 2048 1 k/1.cls\njpg 3072 0 k/2.jpg\n"
    )


def test_energons_index_says_where_tarfile_finds_the_samples(
    shards: list[Path], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    shardio.convert([*shards], out, to="energon")
    assert sorted(path.name for path in out.iterdir()) == [f"{path.name}.idx" for path in shards]
    for shard in shards:
        starts = [sample[0][1].offset for sample in with_tarfile(shard)]
        with tarfile.open(shard) as archive:
            archive.getmembers()
            end = archive.offset
        data = (out / f"{shard.name}.idx").read_bytes()
        assert struct.unpack(f"<{len(data) // 8}Q", data) == (*starts, end)
        for start, stop in zip(starts, [*starts[1:], end], strict=True):
            piece = io.BytesIO(shard.read_bytes()[start:stop])
            with tarfile.open(fileobj=piece) as archive:
                assert archive.getmembers()


def test_the_wids_index_lists_shards_by_paths_from_where_it_lies(
    packed: Path, tmp_path: Path
) -> None:
    copied = tmp_path / "shards"
    copied.mkdir()
    for shard in packed.glob("*.tar"):
        shutil.copy(shard, copied)
    shardio.convert(copied, to="wids")
    document = json.loads((copied / "shardindex.json").read_text())
    assert document["__kind__"] == "wids-shard-index-v1"
    assert document["wids_version"] == 1
    names = [path.name for path in sorted(packed.glob("*.tar"))]
    assert document["shardlist"] == [
        {"url": name, "nsamples": 75, "filesize": (copied / name).stat().st_size} for name in names
    ]
    shardio.convert(copied, tmp_path / "elsewhere/deep", to="wids")
    document = json.loads((tmp_path / "elsewhere/deep/shardindex.json").read_text())
    assert [each["url"] for each in document["shardlist"]] == [f"../../shards/{n}" for n in names]


def test_wids_opens_its_index(packed: Path, tmp_path: Path, capfd: Any) -> None:
    wids = pytest.importorskip("wids")
    shardio.convert(packed, tmp_path, to="wids")
    found = wids.ShardListDataset(
        str(tmp_path / "shardindex.json"), cache_dir=str(tmp_path / "cache"), transformations=[]
    )
    expected = [sample["__key__"] for sample in shardio.ShardDataset(packed, decode=False)]
    assert [found[number]["__key__"] for number in range(0, 600, 37)] == expected[::37]
    found.close()
    capfd.readouterr()


def test_indexes_go_beside_their_shards_and_can_be_written_again(tmp_path: Path) -> None:
    for folder in "ab":
        (tmp_path / folder).mkdir()
        make_shard(tmp_path / folder / "x.tar", SAMPLES)
    for _ in range(2):
        shardio.convert([tmp_path / "a", tmp_path / "b"], to="energon")
        assert (tmp_path / "a/x.tar.idx").read_bytes() == (tmp_path / "b/x.tar.idx").read_bytes()
        assert len((tmp_path / "a/x.tar.idx").read_bytes()) == 24


@pytest.mark.parametrize("inside", [True, False])
@pytest.mark.parametrize(
    ("to", "name"), [("wids", "shardindex.json"), ("dali", "x.idx"), ("energon", "x.tar.idx")]
)
def test_an_index_never_replaces_a_file_that_differs(
    tmp_path: Path, to: Any, name: str, inside: bool
) -> None:
    shard = make_shard(tmp_path / "x.tar", SAMPLES)
    out = None if inside else tmp_path / "out"
    shardio.convert(shard, out, to=to)
    taken = (out or tmp_path) / name
    for data in (b"mine", taken.read_bytes() + b"x", b""):
        taken.write_bytes(data)
        with pytest.raises(shardio.PackError, match="differs from what this conversion") as caught:
            shardio.convert(shard, out, to=to)
        assert (caught.value.where, taken.read_bytes()) == (str(taken), data)
        assert caught.value.remedy is not None


@pytest.mark.parametrize("to", ["wids", "dali", "energon"])
def test_indexes_of_compressed_shards_are_refused(tmp_path: Path, to: Any) -> None:
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as archive:
        info = tarfile.TarInfo("x.txt")
        archive.addfile(info)
    with pytest.raises(shardio.PackError, match="uncompressed tars only; decompress it with"):
        shardio.convert(tmp_path, to=to)


def test_what_dalis_index_cannot_hold_is_refused(tmp_path: Path) -> None:
    shard = make_shard(tmp_path / "a.tar", {"a b": {"txt": b""}})
    with pytest.raises(shardio.IndexFileError, match=r"the member 'a b\.txt' contains white space"):
        shardio.convert(shard, to="dali")
    make_shard(shard, {})
    with pytest.raises(
        shardio.IndexFileError, match="DALI does not support a shard without samples"
    ):
        shardio.convert(shard, to="dali")
    assert not (tmp_path / "a.idx").exists()


def test_an_index_of_another_tool_never_replaces_shardios(tmp_path: Path) -> None:
    shard = make_shard(tmp_path / "a.tar", SAMPLES)
    shardio.index(shard)
    before = (tmp_path / "index/a.tar.idx").read_bytes()
    with pytest.raises(shardio.UsageError, match="shardio's own index has this name"):
        shardio.convert(shard, tmp_path / "index", to="energon")
    assert (tmp_path / "index/a.tar.idx").read_bytes() == before


def test_a_shard_that_changed_after_it_was_indexed_is_noticed(tmp_path: Path) -> None:
    shard = make_shard(tmp_path / "a.tar", SAMPLES)
    shardio.index(shard)
    size = shard.stat().st_size
    make_shard(shard, {"one": {"txt": b"x"}})
    with shard.open("ab") as stream:
        stream.write(bytes(size - shard.stat().st_size))
    with pytest.raises(shardio.IndexFileError, match="it lists 2 samples, but the shard has 1"):
        shardio.convert(shard, to="dali")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"to": "zip"}, "to='zip': it must be 'tfrecord', 'wids', 'dali' or 'energon'"),
        ({"to": "tfrecord", "out": None}, "TFRecord files require an output folder"),
        ({"to": "dali", "features": ["jpg=x"]}, "features is for to='tfrecord' only"),
        ({"to": "tfrecord", "features": ["png=x"]}, "no field 'png'; the fields are cls, jpg, "),
        ({"to": "tfrecord", "features": ["jpg=label"]}, "would become the feature 'label'"),
        ({"to": "tfrecord", "features": ["=x"]}, "features='=x': it has no field name"),
        ({"to": "tfrecord", "jobs": 0}, "jobs=0: it must be a whole number"),
    ],
)
def test_arguments_that_cannot_be_meant_are_refused(
    tmp_path: Path, options: Any, message: str
) -> None:
    make_shard(tmp_path / "a.tar", SAMPLES)
    with pytest.raises(shardio.UsageError, match=message):
        shardio.convert(tmp_path / "a.tar", **{"out": tmp_path / "out", **options})
    assert not (tmp_path / "out").exists()


def test_shards_that_would_become_one_file_are_refused(tmp_path: Path) -> None:
    for folder in "ab":
        (tmp_path / folder).mkdir()
        make_shard(tmp_path / folder / "x.tar", SAMPLES)
    parts = [tmp_path / "a", tmp_path / "b"]
    for to in ("tfrecord", "dali"):
        with pytest.raises(shardio.UsageError, match="two shards would be converted to"):
            shardio.convert(parts, tmp_path / "out", to=to)
    with pytest.raises(shardio.UsageError, match="the shards are in several folders"):
        shardio.convert(parts, to="wids")


def test_tfrecord_files_are_for_pack(packed: Path, tmp_path: Path) -> None:
    shardio.convert(packed, tmp_path / "records", to="tfrecord")
    with pytest.raises(shardio.PackError, match=r"shardio\.pack\('.*records', OUT, shards=N\)"):
        shardio.convert(tmp_path / "records", tmp_path / "out", to="tfrecord")


def test_a_folder_that_no_conversion_has_begun_keeps_its_files(tmp_path: Path) -> None:
    shard, out = make_shard(tmp_path / "a.tar", SAMPLES), tmp_path / "out"
    out.mkdir()
    (out / ".mine.tfrecord.1-2.tmp").write_text("mine")
    shardio.convert(shard, out, to="tfrecord")
    assert (out / ".mine.tfrecord.1-2.tmp").read_text() == "mine"
