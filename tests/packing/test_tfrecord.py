"""TFRecord files as a source."""

from __future__ import annotations

import io
import json
import math
import os
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from tfrecord.writer import TFRecordWriter

import shardio
from shardio.packing.sources.records import encode_example, frame_record

ReadSamples = Callable[[Path], list[dict[str, Any]]]
PNG = cv2.imencode(".png", np.zeros((2, 2, 3), np.uint8))[1].tobytes()
MASK = cv2.imencode(".png", np.zeros((4, 6), np.uint8))[1].tobytes()
JPEG = cv2.imencode(".jpg", np.zeros((8, 8, 3), np.uint8))[1].tobytes()


def ints(*numbers: int) -> Any:
    return np.array(numbers, np.int64)


def floats(*numbers: float) -> Any:
    return np.array(numbers, np.float32)


def write(path: Path, *examples: Mapping[str, Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as stream:
        for features in examples:
            stream.writelines(frame_record(encode_example(features)))
    return path


def samples_of(source: Path | str, out: Path, **options: Any) -> dict[str, dict[str, Any]]:
    shardio.pack(source, out, shards=1, shuffle=False, **options)
    samples = shardio.ShardDataset(out, decode=False)
    return {sample.pop("__key__"): without_marks(sample) for sample in samples}


def without_marks(sample: Mapping[str, Any]) -> dict[str, Any]:
    marks = ("valid", "__")
    return {name: value for name, value in sample.items() if not name.startswith(marks)}


IMAGENET = {
    "image/encoded": [JPEG],
    "image/class/label": ints(7),
    "image/filename": [b"n01440764/n01440764_10026.JPEG"],
    "image/class/text": [b"tench"],
    "image/height": ints(500),
    "image/object/bbox/xmin": floats(0.25, 0.5),
}


def test_webdataset_reads_what_was_packed_of_imagenets_features(
    tmp_path: Path, read_with_webdataset: ReadSamples
) -> None:
    source = write(tmp_path / "in/train.tfrecord-00000-of-00001", IMAGENET, IMAGENET)
    shardio.pack(source.parent, tmp_path / "out", shards=1, shuffle=False)
    samples = read_with_webdataset(tmp_path / "out/shard-000000.tar")
    assert [sample["__key__"] for sample in samples] == [
        "train-00000-of-00001/00000000",
        "train-00000-of-00001/00000001",
    ]
    for sample in samples:
        assert sample["jpg"] == JPEG
        assert sample["cls"] == b"7"
        assert json.loads(sample["json"]) == {
            "image/class/text": ["tench"],
            "image/filename": ["n01440764/n01440764_10026.JPEG"],
            "image/height": [500],
            "image/object/bbox/xmin": [0.25, 0.5],
        }


def test_what_the_tfrecord_package_writes_is_packed(tmp_path: Path) -> None:
    writer = TFRecordWriter(str(tmp_path / "a.tfrecord"))
    for number in range(3):
        writer.write({"image": (PNG, "byte"), "label": (number, "int"), "x": (0.5, "float")})
    writer.close()
    found = samples_of(tmp_path / "a.tfrecord", tmp_path / "out")
    assert found == {
        f"a/{number:08d}": {"image": PNG, "label": b"%d" % number, "json": b'{"x": [0.5]}'}
        for number in range(3)
    }


def test_real_files_are_packed(shared_data: Path, tmp_path: Path) -> None:
    source = shared_data / "shards/aistore/single-png-cls-transformed.tfrecord"
    (sample,) = samples_of(source, tmp_path / "out").values()
    assert (sample["image"][:4], len(sample["image"])) == (b"\x89PNG", 9460)
    found = samples_of(shared_data / "shards/torchdata/example.tfrecord", tmp_path / "more")
    assert json.loads(found["example/00000001"]["json"])["x_int"] == [*range(100, 200, 10)]
    with pytest.raises(shardio.PackError, match="it is a SequenceExample"):
        shardio.pack(shared_data / "shards/torchdata/sequence_example.tfrecord", tmp_path / "no",
                     shards=1)  # fmt: skip
    with pytest.raises(shardio.PackError, match=r"grain/morris.*, record 0 at byte 12: a field"):
        shardio.pack(shared_data / "shards/grain", tmp_path / "no", shards=1)


@pytest.mark.parametrize(
    "names",
    [
        ["a.tfrecord", "b.tfrecords"],
        ["x.tfrecord-00000-of-00002", "x.tfrecord-00001-of-00002"],
        ["train-00000-of-00002", "train-00001-of-00002"],
    ],
)
def test_files_are_found_by_their_usual_names(tmp_path: Path, names: list[str]) -> None:
    for number, name in enumerate(names):
        write(tmp_path / "in" / name, {"image": [PNG], "label": ints(number)})
    (tmp_path / "in/notes.txt").write_text("no")
    (tmp_path / "in/x.tfrecord.json").write_text("no")
    folder = samples_of(tmp_path / "in", tmp_path / "folder")
    assert [sample["label"] for sample in folder.values()] == [b"0", b"1"]
    only = samples_of(tmp_path / "in" / names[1], tmp_path / "only")
    assert [*only.items()] == [*folder.items()][1:]
    if "-of-" in names[0]:
        pattern = tmp_path / "in" / names[0].replace("00000-of", "*-of")
        assert samples_of(str(pattern), tmp_path / "pattern") == folder


def test_features_become_the_fields_that_are_named(tmp_path: Path) -> None:
    features = {
        "photo": [JPEG],
        "mask": [MASK],
        "category": ints(3),
        "vector": floats(1, math.nan),
        "words": [b"a", b"b"],
        "junk": [b"\xff"],
        "name": [b"folder/cat.1.jpg"],
    }
    source = write(tmp_path / "a.tfrecord", features)
    pairs = ["jpg=photo", "Mask.png=mask", "cls=category", "vec.npy=vector", "json=words"]
    pairs += ["__key__=name", "=junk", "=name2"]
    with pytest.raises(shardio.PackError, match=r"'name' would go into the field json"):
        samples_of(source, tmp_path / "no", features=pairs)
    pairs.remove("json=words")
    ((key, sample),) = samples_of(source, tmp_path / "out", features=pairs).items()
    assert key == "folder/cat_1"
    assert sample["image"] == JPEG
    assert sample["mask.png"] == MASK
    assert sample["label"] == b"3"
    assert np.load(io.BytesIO(sample["vec.npy"])).tolist() == [
        1,
        pytest.approx(math.nan, nan_ok=True),
    ]
    assert json.loads(sample["json"]) == {"words": ["a", "b"], "name": ["folder/cat.1.jpg"]}
    (renamed,) = (tmp_path / "out/renamed.jsonl").read_text().splitlines()
    assert json.loads(renamed) == {"key": key, "path": f"{source}, record 0 at byte 12"}


def test_features_that_are_called_like_fields_are_these_fields(tmp_path: Path) -> None:
    features = {"jpg": [JPEG], "seg.png": [MASK], "txt": [b"hello"], "index": ints(3)}
    (sample,) = samples_of(write(tmp_path / "a.tfrecord", features), tmp_path / "out").values()
    rest = b'{"index": [3]}'
    assert sample == {"image": JPEG, "seg.png": MASK, "txt": b"hello", "json": rest}


def test_the_first_choice_of_names_is_taken_and_the_other_goes_into_json(tmp_path: Path) -> None:
    features = {
        "image": [b"a.jpg"],
        "image/encoded": [JPEG],
        "image/class/label": ints(1),
        "label": ints(2),
    }
    source = write(tmp_path / "a.tfrecord", features)
    (sample,) = samples_of(source, tmp_path / "a").values()
    rest = {"image": ["a.jpg"], "label": [2]}
    assert (sample["image"], sample["label"]) == (JPEG, b"1")
    assert json.loads(sample["json"]) == rest
    (sample,) = samples_of(source, tmp_path / "b", features=["cls=label"]).values()
    assert sample["label"] == b"2"
    assert json.loads(sample["json"]) == {"image": ["a.jpg"], "image/class/label": [1]}


def test_the_class_comes_first_then_fields_by_name(tmp_path: Path) -> None:
    features = {"b.txt": [b"2"], "a.txt": [b"1"], "label": ints(0), "x": ints(3)}
    shardio.pack(write(tmp_path / "a.tfrecord", features), tmp_path / "out", shards=1)
    with tarfile.open(tmp_path / "out/shard-000000.tar") as archive:
        names = archive.getnames()
    assert [name.partition(".")[2] for name in names] == ["cls", "a.txt", "b.txt", "json"]


def test_labels_can_be_left_out_or_given_names(tmp_path: Path) -> None:
    source = write(tmp_path / "a.tfrecord", {"image": [PNG], "label": ints(1)})
    (sample,) = samples_of(source, tmp_path / "a", labels=False).values()
    assert sample == {"image": PNG}
    shardio.pack(source, tmp_path / "b", shards=1, classes=["cat", "dog"])
    assert shardio.ShardDataset(tmp_path / "b").classes == ("cat", "dog")
    with pytest.raises(shardio.PackError, match="its class 1 is not one of the 1 classes"):
        shardio.pack(source, tmp_path / "c", shards=1, classes=["cat"])


def test_labels_stratify(tmp_path: Path) -> None:
    examples = [{"image": [PNG], "label": ints(number % 2)} for number in range(20)]
    source = write(tmp_path / "a.tfrecord", *examples)
    split = {"train": 0.5, "val": 0.5}
    shardio.pack(source, tmp_path / "out", shards=2, split=split, stratify=True)
    labels = [sample["label"] for sample in shardio.ShardDataset(tmp_path / "out/val")]
    assert sorted(labels) == [0] * 5 + [1] * 5


@pytest.mark.parametrize(
    ("features", "options", "reason"),
    [
        ({"x": [b"\xff\xfe"]}, {}, "its feature 'x' holds bytes that are not text; name its field"),
        ({"x": floats(math.inf)}, {}, "its feature 'x' has values that are not finite"),
        ({"image": [b"GIF89a.."]}, {}, "a GIF file, where a JPEG, PNG, WebP or BMP"),
        ({"x": [b"a", b"b"]}, {"features": ["txt=x"]}, "has 2 values, and the field txt holds one"),
        ({"x": ints(1, 2)}, {"features": ["cls=x"]}, "has 2 numbers of type int64, and the field"),
        ({"x": floats(1)}, {"features": ["cls=x"]}, "has 1 numbers of type float32"),
        ({"x": [b"cat"]}, {"features": ["cls=x"]}, "not a 64-bit decimal integer"),
        ({"x": [b"../../a"]}, {"features": ["__key__=x"]}, "'../../a' cannot be a key"),
        ({"x": [b""]}, {"features": ["__key__=x"]}, "pass over a member with the key ''"),
        ({"x": ints(1)}, {"features": ["__key__=x"]}, "its feature 'x' is not one text"),
        ({"jpg": [JPEG], "x": [JPEG]}, {"features": ["jpg=x"]}, "two of its features are the"),
        ({}, {}, "it has no features that could be fields"),
    ],
)  # fmt: skip
def test_records_that_are_no_samples_are_problems(
    tmp_path: Path, features: Mapping[str, Any], options: Any, reason: str
) -> None:
    good = {"image": [PNG], "x": [b"good"]}
    if "features" in options:
        good = {"image": [PNG]}
    source = write(tmp_path / "a.tfrecord", good, features, good)
    with pytest.raises(shardio.PackError) as caught:
        shardio.pack(source, tmp_path / "out", shards=1, **options)
    start = 12 + len(b"".join(map(bytes, frame_record(encode_example(good)))))
    assert str(caught.value).startswith(f"{source}, record 1 at byte {start}: ")
    assert reason in str(caught.value)
    summary = shardio.pack(source, tmp_path / "out", shards=1, on_error="skip", **options)
    assert (summary.samples, summary.skipped) == (2, 1)


def test_a_damaged_record_is_a_problem_and_a_damaged_length_an_error(tmp_path: Path) -> None:
    source = write(tmp_path / "a.tfrecord", *[{"image": [PNG]}] * 3)
    data = bytearray(source.read_bytes())
    size = len(data) // 3
    data[size + 40] ^= 1
    source.write_bytes(data)
    with pytest.raises(shardio.PackError, match=f"record 1 at byte {size + 12}: the checksum of"):
        shardio.pack(source, tmp_path / "out", shards=1)
    summary = shardio.pack(source, tmp_path / "out", shards=1, on_error="skip")
    assert (summary.samples, summary.skipped) == (2, 1)
    data[2 * size] ^= 1
    source.write_bytes(data)
    with pytest.raises(shardio.TFRecordError, match=f"a.tfrecord, byte {2 * size}: the checksum"):
        shardio.pack(source, tmp_path / "again", shards=1, on_error="skip")
    assert not (tmp_path / "again").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"features": ["jpg"]}, "'jpg' is not a pair of a field and a feature"),
        ({"features": ["a/b=x"]}, "'a/b=x' is not a pair"),
        ({"features": ["="]}, "'=' is not a pair"),
        ({"features": ["jpg="]}, "'jpg=' names no feature"),
        ({"features": ["jpg=x", "jpg=y"]}, "'jpg' comes twice"),
        ({"features": ["jpg=x", "png=x"]}, "'x' comes twice"),
        ({"features": "jpg=x"}, "it must be a list"),
        ({"fields": "jpg"}, "fields does not apply to TFRecord files; .* apply: .*features"),
    ],
)
def test_options_that_cannot_be_meant_are_refused(
    tmp_path: Path, options: Any, message: str
) -> None:
    source = write(tmp_path / "a.tfrecord", {"image": [PNG]})
    with pytest.raises(shardio.UsageError, match=message):
        shardio.pack(source, tmp_path / "out", shards=1, **options)


def test_features_of_what_is_no_tfrecord_file_are_refused(images: Path, tmp_path: Path) -> None:
    with pytest.raises(shardio.UsageError, match="features does not apply to a folder of files"):
        shardio.pack(images, tmp_path / "out", shards=1, features=["jpg=x"])
    with pytest.raises(shardio.UsageError, match="no file matches it"):
        shardio.pack(tmp_path / "*.tfrecord", tmp_path / "out", shards=1)


def test_files_of_one_name_in_several_folders_have_keys_of_their_own(tmp_path: Path) -> None:
    for folder in "ab":
        write(tmp_path / "in" / folder / "x.tfrecord", {"image": [PNG]})
    found = samples_of(f"{tmp_path}/in/*/x.tfrecord", tmp_path / "out")
    assert [*found] == ["a/x/00000000", "b/x/00000000"]


def test_empty_files_have_no_samples(tmp_path: Path) -> None:
    write(tmp_path / "in/a.tfrecord")
    with pytest.raises(shardio.PackError, match=f"{tmp_path}/in: nothing in it can be packed"):
        shardio.pack(tmp_path / "in", tmp_path / "out", shards=1)
    write(tmp_path / "in/b.tfrecord", {"image": [PNG]})
    assert len(samples_of(tmp_path / "in", tmp_path / "out")) == 1


def test_relative_paths_and_any_number_of_processes_give_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    examples = [{"image": [PNG], "label": ints(number)} for number in range(9)]
    source = write(tmp_path / "in/a.tfrecord", *examples)
    shardio.pack(source, tmp_path / "a", shards=3, jobs=1)
    monkeypatch.chdir(tmp_path)
    shardio.pack(os.path.join("in", "a.tfrecord"), "b", shards=3, jobs=2)  # noqa: PTH118
    for path in (tmp_path / "a").rglob("*.tar"):
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()
