from __future__ import annotations

import copy
import io
import json
import logging
import os
import pickle
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

import shardio
from shardio.fields.arrays import Label, decode_cls
from shardio.indexing.manifest import index_path
from shardio.testing import make_images, make_shard


def png(value: int, height: int = 4, width: int = 6) -> bytes:
    return cv2.imencode(".png", np.full((height, width, 3), value, np.uint8))[1].tobytes()


def npy(array: np.ndarray[Any, Any], **options: Any) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, **options)
    return stream.getvalue()


def test_a_batch_holds_images_labels_masks_and_keys(packed: Path, images: Path) -> None:
    dataset = shardio.ShardDataset(packed, batch_size=50)
    seen = 0
    for batch in dataset:
        assert batch["image"].shape == (50, 3, 8, 8)
        assert batch["image"].dtype == torch.uint8
        assert batch["image"].is_contiguous(memory_format=torch.channels_last)
        assert batch["label"].dtype == torch.int64
        assert batch["valid"].dtype == torch.bool
        for image, label, key in zip(batch["image"], batch["label"], batch["__key__"], strict=True):
            original = cv2.imread(str(images / f"{key}.png"), cv2.IMREAD_COLOR_RGB)
            assert original is not None
            assert np.array_equal(image.permute(1, 2, 0).numpy(), original)
            assert dataset.classes is not None
            assert dataset.classes[label] == key.partition("/")[0]
            seen += 1
    assert seen == 600


def test_a_sized_transform_fills_the_batch(packed: Path) -> None:
    batch = next(iter(shardio.ShardDataset(packed, batch_size=5, transform=shardio.Resize((3, 9)))))
    assert batch["image"].shape == (5, 3, 3, 9)
    assert batch["image"].is_contiguous(memory_format=torch.channels_last)


def test_random_crops_depend_on_seed_and_epoch_alone(packed: Path) -> None:
    def images(seed: int, epoch: int) -> torch.Tensor:
        crop = shardio.RandomResizedCrop(8)
        dataset = shardio.ShardDataset(packed, batch_size=9, seed=seed, transform=crop)
        dataset.set_epoch(epoch)
        found: torch.Tensor = next(iter(dataset))["image"]
        return found

    assert torch.equal(images(1, 0), images(1, 0))
    assert not torch.equal(images(1, 0), images(1, 1))
    assert not torch.equal(images(1, 0), images(2, 0))


def test_any_callable_transforms_images(packed: Path) -> None:
    def brighten(image: torch.Tensor) -> torch.Tensor:
        assert image.shape == (3, 8, 8)
        return image.float() / 255

    batch = next(iter(shardio.ShardDataset(packed, batch_size=5, transform=brighten)))
    assert batch["image"].shape == (5, 3, 8, 8)
    assert batch["image"].dtype == torch.float32


def test_a_transform_is_not_blamed_for_too_little_memory(packed: Path) -> None:
    class Large:
        def __len__(self) -> int:
            raise MemoryError

        def __getitem__(self, _: int) -> float:
            return 0.0

    dataset = shardio.ShardDataset(packed, batch_size=5, transform=lambda _: Large())
    with pytest.raises(shardio.ShardioError, match="there is no memory to decode it"):
        next(iter(dataset))


def test_an_error_in_a_transform_names_shard_and_key(packed: Path) -> None:
    def broken(_: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("no luck")

    dataset = shardio.ShardDataset(packed, batch_size=5, transform=broken, on_bad_sample="skip")
    message = (
        r"shard-000000\.tar: sample 'class\d+/image\d+', field 'png' at offset \d+: "
        "the transform raised RuntimeError: no luck"
    )
    with pytest.raises(shardio.TransformError, match=message):
        next(iter(dataset))


def test_fields_decode_by_name_and_the_rest_stays_bytes(tmp_path: Path) -> None:
    sample = {
        "left.png": png(3),
        "cls": b"7",
        "txt": "grün".encode(),
        "json": b'{"a": [1]}',
        "npy": npy(np.arange(3, dtype=">f4")),
        "weird": b"\x00\x01",
    }
    path = make_shard(tmp_path / "a.tar", {"k": sample, "l": sample})
    found = next(iter(shardio.ShardDataset(path)))
    assert found["left.png"].shape == (3, 4, 6)
    assert (found["label"], found["txt"], found["json"]) == (7, "grün", {"a": [1]})
    assert torch.equal(found["npy"], torch.arange(3.0))
    assert (found["weird"], found["__key__"], found["valid"]) == (b"\x00\x01", "k", True)
    batch = next(iter(shardio.ShardDataset(path, batch_size=2)))
    assert batch["npy"].shape == (2, 3)
    assert batch["json"] == [{"a": [1]}] * 2
    raw = next(iter(shardio.ShardDataset(path, decode=False, batch_size=2)))
    assert raw["label"] == [b"7", b"7"]


def test_fields_may_have_alternatives(tmp_path: Path) -> None:
    path = make_shard(
        tmp_path / "a.tar", {"a": {"jpg": png(1)}, "b": {"png": png(2)}, "c": {"webp": png(3)}}
    )
    values = [int(sample["image"].max()) for sample in shardio.ShardDataset(path)]
    assert values == [1, 2, 3]
    batch = next(iter(shardio.ShardDataset(path, fields={"x": "jpg;PNG;webp"}, batch_size=3)))
    assert batch["x"].amax((1, 2, 3)).tolist() == [1, 2, 3]


def test_several_images_in_a_sample_keep_their_names(tmp_path: Path) -> None:
    path = make_shard(tmp_path / "a.tar", {"a": {"jpg": png(1), "png": png(2)}})
    assert {"jpg", "png"} < set(next(iter(shardio.ShardDataset(path))))


def test_samples_may_lack_fields_but_batches_and_chosen_fields_may_not(tmp_path: Path) -> None:
    path = make_shard(tmp_path / "a.tar", {"a": {"txt": b"1", "cls": b"1"}, "b": {"txt": b"2"}})
    assert ["label" in sample for sample in shardio.ShardDataset(path)] == [True, False]
    message = r"a\.tar: sample 'b', field 'cls': the sample has no such field, wanted for 'label'; "
    with pytest.raises(shardio.SampleError, match=message):
        list(shardio.ShardDataset(path, batch_size=2))
    with pytest.raises(shardio.SampleError, match=message + "it has txt; write 'cls;FIELD' in"):
        list(shardio.ShardDataset(path, fields={"label": "cls"}))


def test_images_of_several_sizes_in_a_batch_are_explained(tmp_path: Path) -> None:
    path = make_shard(tmp_path / "a.tar", {"a": {"png": png(1, 4, 6)}, "b": {"png": png(1, 5, 6)}})
    message = (
        r"sample 'b', field 'png' .* it is 3×5×6 .* others of the batch are 3×4×6 "
        r".*RandomResizedCrop\(4\) to train and shardio.Letterbox\(4\) .* batch_size=1 or collate="
    )
    with pytest.raises(shardio.UsageError, match=message):
        list(shardio.ShardDataset(path, batch_size=2))
    assert len([*shardio.ShardDataset(path)]) == 2
    assert len([*shardio.ShardDataset(path, batch_size=1)]) == 2


def odd_ones(kind: str) -> tuple[dict[str, bytes], dict[str, bytes], dict[str, Any]]:
    """A sample, one that does not fit into a batch with it, and arguments of the dataset."""
    if kind == "npy":
        return {"npy": npy(np.zeros(4))}, {"npy": npy(np.zeros(5))}, {}
    if kind == "dtype":
        return {"npy": npy(np.zeros(4))}, {"npy": npy(np.zeros(4, np.int16))}, {}
    return {"png": png(1, 4, 6)}, {"png": png(1, 5, 6)}, {"transform": TRANSFORMS[kind]}


TRANSFORMS: dict[str, Any] = {"image": None, "identity": lambda image: image}


@pytest.mark.parametrize("threads", [0, 3])
@pytest.mark.parametrize("odd", [{0}, {5}, {0, 1, 19, 39}])
@pytest.mark.parametrize("kind", ["npy", "dtype", "image", "identity"])
def test_no_sample_that_does_not_fit_ends_a_loop_that_skips(
    tmp_path: Path, kind: str, odd: set[int], threads: int
) -> None:
    good, bad, arguments = odd_ones(kind)
    numbers = range(40)  # more than a chunk
    samples = {f"{number:02}": bad if number in odd else good for number in numbers}
    shard = make_shard(tmp_path / "a.tar", {"~": good} | samples)
    dataset = shardio.ShardDataset(shard, batch_size=20, on_bad_sample="skip", **arguments)
    dataset = dataset.subset(range(1, 41))
    batches = [*(shardio.Loader(dataset, threads=threads) if threads else dataset)]
    valid = [valid for batch in batches for valid in batch["valid"].tolist()]
    assert valid == [number not in odd for number in numbers]
    assert dataset.num_bad_samples == len(odd)
    (name,) = dataset.fields
    assert len({(batch[name].shape[1:], batch[name].dtype) for batch in batches}) == 1


def test_a_sample_of_two_images_ends_no_loop_that_skips(tmp_path: Path) -> None:
    make_shard(tmp_path / "a.tar", {"a": {"png": png(1)}, "b": {"jpg": png(2)}})
    make_shard(tmp_path / "b.tar", {"c": {"png": png(3), "jpg": png(4)}, "d": {"png": png(5)}})
    dataset = shardio.ShardDataset(tmp_path, batch_size=4)
    with pytest.raises(shardio.UsageError, match="the sample has jpg and png for 'image'"):
        list(dataset)
    dataset = dataset.replace(on_bad_sample="skip")
    (batch,) = dataset
    assert batch["image"].amax((1, 2, 3)).tolist() == [1, 2, 5, 5]
    assert batch["valid"].tolist() == [True, True, False, True]


def test_of_two_kinds_the_first_is_that_of_the_batch(tmp_path: Path) -> None:
    arrays = [np.full(size, size) for size in (3, 4, 4, 3)]
    samples = {f"{number}": {"npy": npy(array)} for number, array in enumerate(arrays)}
    dataset = shardio.ShardDataset(
        make_shard(tmp_path / "a.tar", samples), batch_size=4, on_bad_sample="skip"
    )
    (batch,) = dataset
    assert batch["npy"].tolist() == [[3] * 3] * 4
    assert batch["valid"].tolist() == [True, False, False, True]
    assert batch["__key__"] == ["0", "1", "2", "3"]


def test_images_of_many_sizes_are_no_odd_ones_out(tmp_path: Path) -> None:
    samples = {f"{size}": {"png": png(1, size, 6)} for size in range(3, 9)}
    shard = make_shard(tmp_path / "a.tar", samples)
    dataset = shardio.ShardDataset(shard, batch_size=6, on_bad_sample="skip")
    with pytest.raises(shardio.UsageError, match="give a transform that makes them equal"):
        list(dataset)


def test_a_stand_in_of_another_kind_gives_way_to_a_sample_of_the_batch(tmp_path: Path) -> None:
    data = [npy(np.full(3, 1)), b"no array", npy(np.full(3, 2)), npy(np.full(4, 3))]
    samples = {f"{number}": {"npy": each} for number, each in enumerate(data)}
    whole = shardio.ShardDataset(
        make_shard(tmp_path / "a.tar", samples), batch_size=3, on_bad_sample="skip"
    )
    (batch,) = whole.subset([0, 1, 2])
    assert batch["npy"].tolist() == [[1] * 3, [2] * 3, [2] * 3]
    (batch,) = whole.replace(batch_size=2).subset([1, 3])
    assert batch["npy"].tolist() == [[3] * 4] * 2
    (batch,) = shardio.ShardDataset(
        make_shard(
            tmp_path / "b.tar", {"0": {"npy": data[0]}, "1": {"npy": b""}, "2": {"npy": data[3]}}
        ),
        batch_size=2,
        on_bad_sample="skip",
        tail="drop",
    )
    assert batch["npy"].tolist() == [[1] * 3] * 2
    assert batch["valid"].tolist() == [True, False]


@pytest.mark.parametrize("batch_size", [None, 1, 2, 3])
def test_a_shard_without_a_good_sample_is_replaced_by_others(
    tmp_path: Path, batch_size: int | None
) -> None:
    bad = {f"{number}": {"npy": b"no array"} for number in range(3)}
    make_shard(tmp_path / "a.tar", bad)
    make_shard(tmp_path / "b.tar", bad)
    make_shard(tmp_path / "c.tar", bad | {"3": {"npy": npy(np.array([7]))}})
    dataset = shardio.ShardDataset(tmp_path, batch_size=batch_size, on_bad_sample="skip")
    found = [*dataset]
    valid = np.concatenate([np.atleast_1d(each["valid"]) for each in found])
    assert np.flatnonzero(valid).tolist() == [9]
    assert {float(number) for each in found for number in each["npy"].reshape(-1)} == {7.0}
    assert dataset.num_bad_samples >= 9


def test_a_broken_image_names_shard_key_field_and_offset(tmp_path: Path) -> None:
    path = make_shard(tmp_path / "a.tar", {"x/good": {"png": png(1)}, "x/bad": {"png": b"no"}})
    message = r"a\.tar: sample 'x/bad', field 'png' at offset 1536: not a .* on_bad_sample="
    with pytest.raises(shardio.SampleError, match=message) as caught:
        list(shardio.ShardDataset(path))
    assert (caught.value.key, caught.value.field) == ("x/bad", "png")
    assert isinstance(caught.value.shard, str)


@pytest.mark.parametrize("workers", [0, 2])
def test_bad_samples_are_replaced_marked_and_counted(
    tmp_path: Path, workers: int, caplog: pytest.LogCaptureFixture
) -> None:
    samples = {
        f"{i:03d}": {"png": png(i) if i % 7 else b"broken", "cls": b"%d" % i} for i in range(50)
    }
    path = make_shard(tmp_path / "a.tar", samples)
    dataset = shardio.ShardDataset(path, batch_size=6, on_bad_sample="skip")
    loader = DataLoader(dataset, batch_size=None, num_workers=workers)
    with caplog.at_level(logging.ERROR, "shardio"):
        batches = [*loader]
    assert len(batches) == len(dataset) == 9
    good = [
        int(key)
        for batch in batches
        for key, valid in zip(batch["__key__"], batch["valid"], strict=True)
        if valid
    ]
    assert good == [i for i in range(50) if i % 7]
    assert batches[0]["__key__"] == [f"{i:03d}" for i in range(6)]
    assert batches[0]["valid"].tolist() == [False, True, True, True, True, True]
    assert batches[0]["image"][0].max() == 1  # the next good sample took the place
    padding = 9 * 6 - 50
    assert dataset.num_bad_samples == 8 + len([i for i in range(padding) if i % 7 == 0])


def test_a_replaced_sample_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = make_shard(tmp_path / "a.tar", {"a": {"png": b"no"}, "b": {"png": png(1)}})
    with caplog.at_level(logging.WARNING, "shardio"):
        list(shardio.ShardDataset(path, on_bad_sample="skip"))
    assert "sample 'a', field 'png'" in caplog.text
    assert "sample 'b' takes its place" in caplog.text


def test_a_bad_sample_that_lacks_a_field_is_replaced_too(tmp_path: Path) -> None:
    bad, good = {"png": b"no"}, {"png": png(1), "cls": b"3"}
    path = make_shard(tmp_path / "a.tar", {"a": bad, "b": good})
    first, second = shardio.ShardDataset(path, on_bad_sample="skip")
    assert (first["valid"], second["valid"], second["label"]) == (False, True, 3)


def npy_header(shape: str, order: str = "False") -> bytes:
    header = f"{{'descr': '|u1', 'fortran_order': {order}, 'shape': {shape}}}".encode()
    return b"\x93NUMPY\1\0" + len(header).to_bytes(2, "little") + header


@pytest.mark.parametrize(
    "data",
    [
        npy_header("(True,)") + b"1",
        npy_header("(0, 1152921504606846976)"),
        npy_header("(1,)", "2") + b"1",
        npy_header(f"({'1,' * 64})") + b"1",
    ],
)
def test_no_array_ends_a_loop_that_skips(tmp_path: Path, data: bytes) -> None:
    good = npy(np.array([3], np.uint8))
    samples = {"a": {"npy": data}, "b": {"npy": good}, "c": {"npy": good}}
    dataset = shardio.ShardDataset(
        make_shard(tmp_path / "a.tar", samples), batch_size=3, on_bad_sample="skip"
    )
    (batch,) = dataset
    assert batch["npy"].tolist() == [[3]] * 3
    assert batch["valid"].tolist() == [False, True, True]


def test_an_array_that_torch_has_no_dtype_for_ends_no_loop_that_skips(tmp_path: Path) -> None:
    arrays = [np.zeros(4, np.longdouble if number == 1 else np.float32) for number in range(4)]
    samples = {f"{number}": {"npy": npy(array)} for number, array in enumerate(arrays)}
    (batch,) = shardio.ShardDataset(
        make_shard(tmp_path / "a.tar", samples), batch_size=4, on_bad_sample="skip"
    )
    assert batch["valid"].tolist() == [True, False, True, True]


def test_no_jpeg_ends_a_loop_that_skips(tmp_path: Path) -> None:
    """A sampling factor of 0 in an indexed shard, of whose images the upper part is decoded."""
    good = cv2.imencode(
        ".jpg", np.zeros((64, 64, 3), np.uint8), [cv2.IMWRITE_JPEG_RST_INTERVAL, 1]
    )[1].tobytes()
    bad = bytearray(good)
    bad[bad.index(b"\xff\xc0") + 11] = 0
    make_shard(tmp_path / "a.tar", {"a": {"jpg": bytes(bad)}, "b": {"jpg": good}})
    shardio.index(str(tmp_path))
    dataset = shardio.ShardDataset(
        tmp_path, batch_size=2, on_bad_sample="skip", transform=shardio.CenterCrop(8, resize=9)
    )
    (batch,) = dataset
    assert batch["valid"].tolist() == [False, True]


def test_an_error_of_a_transform_is_no_bad_sample(tmp_path: Path) -> None:
    def transform(_: torch.Tensor) -> torch.Tensor:
        raise OverflowError("mine")

    shard = make_shard(tmp_path / "a.tar", {"a": {"png": png(1)}})
    with pytest.raises(shardio.TransformError, match="mine"):
        list(shardio.ShardDataset(shard, transform=transform, on_bad_sample="skip"))


@pytest.mark.parametrize("transform", [None, shardio.CenterCrop(2, resize=2), lambda image: image])
def test_max_pixels_refuses_larger_images(tmp_path: Path, transform: Any) -> None:
    shard = make_shard(tmp_path / "a.tar", {"a": {"png": png(1)}})
    dataset = shardio.ShardDataset(shard, transform=transform, max_pixels=24)
    assert len([*dataset]) == 1
    with pytest.raises(shardio.SampleError, match=r"6 x 4 pixels, .* max_pixels=24 lets it"):
        list(dataset.replace(max_pixels=23))


@pytest.mark.parametrize("batch_size", [None, 2])
def test_a_dataset_without_a_good_sample_is_an_error(
    tmp_path: Path, batch_size: int | None
) -> None:
    for name in ("a.tar", "b.tar"):
        make_shard(tmp_path / name, {"a": {"png": b"no"}, "b": {"png": b"no"}})
    message = r"a\.tar: sample 'a', .*; none of the 4 samples in the dataset can be delivered$"
    with pytest.raises(shardio.SampleError, match=message):
        list(shardio.ShardDataset(tmp_path, on_bad_sample="skip", batch_size=batch_size))


def test_a_flipped_bit_in_the_data_is_noticed(packed: Path, tmp_path: Path) -> None:
    copied = copy_folder(packed, tmp_path / "out")
    shard = copied / "shard-000004.tar"
    data = bytearray(shard.read_bytes())
    data[1536 + 100] ^= 4
    shard.write_bytes(data)
    with pytest.raises(
        shardio.SampleError, match=r"shard-000004\.tar: sample .* \(CRC-32 differs\)"
    ):
        list(shardio.ShardDataset(copied, decode=False))
    dataset = shardio.ShardDataset(copied, decode=False, on_bad_sample="skip", batch_size=60)
    assert sum(int(batch["valid"].sum()) for batch in dataset) == 599


def test_a_shard_that_shrank_is_noticed(packed: Path, tmp_path: Path) -> None:
    copied = copy_folder(packed, tmp_path / "out")
    shard = copied / "shard-000004.tar"
    dataset = shardio.ShardDataset(copied, decode=False)
    running = iter(dataset)
    next(running)
    shard.write_bytes(shard.read_bytes()[:9000])
    # Reading ahead may have opened it before, or not yet.
    noticed = r"shard-000004\.tar: the (file ends at byte 9\d+|shard has 9000 bytes)"
    with pytest.raises(shardio.TarError, match=noticed):
        list(running)
    with pytest.raises(shardio.TarError, match=r"shard-000004\.tar: the shard has 9000 bytes"):
        list(dataset)


def copy_folder(source: Path, target: Path) -> Path:
    for path in sorted(source.rglob("*")):
        if path.is_file():
            (target / path.relative_to(source)).parent.mkdir(parents=True, exist_ok=True)
            (target / path.relative_to(source)).write_bytes(path.read_bytes())
    return target


def test_pickles_and_object_arrays_are_never_loaded(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path(tmp_path / "boom").touch, ())

    objects = np.empty(1, dtype=object)
    objects[0] = Bomb()
    sample = {"pkl": pickle.dumps(Bomb()), "pth": pickle.dumps(Bomb()), "txt": b"a"}
    make_shard(tmp_path / "a.tar", {"a": sample})
    found = next(iter(shardio.ShardDataset(tmp_path / "a.tar")))
    assert isinstance(found["pkl"], bytes)
    assert isinstance(found["pth"], bytes)
    make_shard(tmp_path / "b.tar", {"a": {"npy": npy(objects, allow_pickle=True)}})
    with pytest.raises(shardio.SampleError, match="field 'npy'"):
        list(shardio.ShardDataset(tmp_path / "b.tar"))
    assert not (tmp_path / "boom").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 10**13}, r"batch_size=10000000000000: it must be at most 2\*\*31"),
        ({"global_batch_size": 10**30}, r"it must be at most 2\*\*31"),
        ({"batch_size": 0}, "batch_size=0: it must be a whole number, at least 1"),
        ({"batch_size": 2.0}, r"batch_size=2\.0: it must be a whole number"),
        ({"seed": None}, "seed=None: it must be a whole number"),
        ({"fields": ["png"]}, "fields=.* it must be a mapping such as"),
        ({"transform": 224}, "transform=224: it must be callable"),
        (
            {"transform": shardio.CenterCrop},
            r"it must be an instance, not the class; call it, as shardio.RandomResizedCrop\(224\)",
        ),
        ({"fields": {"image": shardio.Image}}, "it must be a mapping to instances, not to classes"),
        (
            {"transform": [shardio.Resize((4, 4))]},
            r"it must be one transform, .*RandomResizedCrop.*in map=.*v2\.Compose makes of several",
        ),
        (
            {"transform": shardio.Resize((4, 4)), "decode": False},
            "it must be left out with decode=False",
        ),
        ({"shuffle": "yes"}, "shuffle='yes': it must be True, False or 'full'"),
        ({"window": 0}, "window=0: it must be a whole number, at least 1"),
        ({"tail": "cut"}, "tail='cut': it must be 'pad', 'even', 'exact', 'drop' or 'short'"),
        ({"max_pixels": 0}, "max_pixels=0: it must be a whole number, at least 1"),
        ({"on_bad_sample": "no"}, "on_bad_sample='no': it must be 'raise' or 'skip'"),
        ({"rank": 2, "world_size": 2}, "rank 2 is outside 0 to 1"),
        ({"rank": 0}, "rank and world_size go together"),
        ({"fields": {"image": "tiff"}}, "no sample has 'tiff' .* has the fields cls, png"),
        ({"fields": {"valid": "png"}}, "'valid' is taken by shardio"),
    ],
)
def test_arguments_that_cannot_be_meant_are_explained(
    packed: Path, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(shardio.UsageError, match=message):
        shardio.ShardDataset(packed, **arguments)


def test_an_empty_dataset_is_an_error(tmp_path: Path) -> None:
    make_shard(tmp_path / "a.tar", {})
    with pytest.raises(
        shardio.UsageError, match=r"a\.tar': 0 samples in 1 shard\): the dataset has no samples"
    ):
        list(shardio.ShardDataset(tmp_path / "a.tar"))


def test_an_epoch_without_a_step_is_an_error(packed: Path) -> None:
    with pytest.raises(shardio.UsageError, match="600 samples do not fill one global batch"):
        shardio.ShardDataset(packed, batch_size=601, tail="drop")
    with pytest.raises(shardio.UsageError, match="streams=2: it must be 1 for a dataset of sampl"):
        shardio.ShardDataset(packed, streams=2)


def test_an_exact_tail_needs_a_sample_for_every_rank_in_every_step(packed: Path) -> None:
    def opened(**given: Any) -> shardio.ShardDataset:
        return shardio.ShardDataset(packed, tail="exact", rank=6, world_size=7, **given)

    steps = [*opened(batch_size=99)]  # 600 = 7 · 85 + 5
    assert [len(batch["valid"]) for batch in steps] == [86]
    with pytest.raises(shardio.UsageError, match="leaves 6 samples for the last step of 7 ranks"):
        opened()
    with pytest.raises(shardio.UsageError, match="excludes streams"):
        opened(batch_size=10, streams=7)
    with pytest.raises(shardio.UsageError, match="excludes buckets"):
        opened(batch_size=10, transform=shardio.Buckets(area=64**2, step=32))


@pytest.mark.parametrize("drop_last", [False, True])
def test_a_data_loader_of_samples_makes_the_same_batches_with_any_number_of_workers(
    packed: Path, drop_last: bool
) -> None:
    def read(workers: int, rank: int) -> list[list[str]]:
        dataset = shardio.ShardDataset(packed, shuffle=True, rank=rank, world_size=2)
        loader = DataLoader(dataset, batch_size=23, num_workers=workers, drop_last=drop_last)
        batches = [batch["__key__"] for batch in loader]
        assert len(batches) == len(loader)
        return batches

    alone = [read(0, rank) for rank in (0, 1)]
    assert [*map(len, alone[0])] == [23] * 13 + [1] * (not drop_last)
    for workers in (1, 3):
        assert [read(workers, rank) for rank in (0, 1)] == alone
    assert read(15, 1) == alone[1]  # more than there are batches


def test_batching_twice_is_refused(packed: Path) -> None:
    dataset = shardio.ShardDataset(packed, batch_size=20)
    with pytest.raises(shardio.UsageError, match="pass batch_size=None to the DataLoader"):
        next(iter(DataLoader(dataset)))
    assert len([*DataLoader(dataset, batch_size=None)]) == 30


def test_a_dataset_says_what_it_is(packed: Path) -> None:
    dataset = shardio.ShardDataset(packed, batch_size=20)
    assert repr(dataset) == f"ShardDataset('{packed}': 600 samples in 8 shards)"
    part = dataset.subset(range(7))
    assert repr(part) == f"ShardDataset('{packed}': 7 of 600 samples in 8 shards)"


@pytest.mark.parametrize("ranks", [(None, "2"), ("1", None), ("x", "2"), ("2", "2")])
def test_half_an_environment_of_torchrun_is_refused(
    packed: Path, monkeypatch: pytest.MonkeyPatch, ranks: tuple[str | None, str | None]
) -> None:
    """Two processes that both take themselves for rank 0 would never see half of the data."""
    for name, value in zip(("RANK", "WORLD_SIZE"), ranks, strict=True):
        if value is not None:
            monkeypatch.setenv(name, value)
    dataset = shardio.ShardDataset(packed)
    with pytest.raises(shardio.UsageError, match=r"RANK=|rank 2 is outside"):
        next(iter(dataset))


def test_a_missing_shard_is_named(packed: Path, tmp_path: Path) -> None:
    copied = copy_folder(packed, tmp_path / "out")
    dataset = shardio.ShardDataset(copied, decode=False)
    (copied / "shard-000003.tar").unlink()
    with pytest.raises(shardio.TarError, match=r"shard-000003\.tar: the shard is missing"):
        list(dataset)
    with pytest.raises(shardio.IndexFileError, match=r"the first is shard-000003\.tar"):
        shardio.ShardDataset(copied)


def test_ranks_are_found_in_the_environment_of_torchrun(
    packed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "3")
    dataset = shardio.ShardDataset(packed, decode=False)
    assert len(dataset) == 200
    assert [s["__key__"] for s in dataset] == [
        s["__key__"] for s in shardio.ShardDataset(packed, decode=False, rank=1, world_size=3)
    ]


def test_a_copy_of_a_dataset_counts_its_own_epochs(packed: Path) -> None:
    dataset = shardio.ShardDataset(packed, shuffle=True, decode=False, batch_size=300)
    next(iter(dataset))
    for clone in (copy.deepcopy(dataset), pickle.loads(pickle.dumps(dataset))):  # noqa: S301  our own
        assert next(iter(clone))["__key__"] == next(iter(copy.deepcopy(dataset)))["__key__"]
    before = next(iter(copy.deepcopy(dataset)))["__key__"]
    assert next(iter(dataset))["__key__"] == before


def test_shards_without_an_index_read_like_those_with_one(packed: Path, tmp_path: Path) -> None:
    for shard in packed.glob("*.tar"):
        (tmp_path / shard.name).write_bytes(shard.read_bytes())
    for one, other in zip(
        shardio.ShardDataset(packed, batch_size=60, shuffle=True),
        shardio.ShardDataset(tmp_path, batch_size=60, shuffle=True),
        strict=True,
    ):
        assert one["__key__"] == other["__key__"]
        assert torch.equal(one["image"], other["image"])


def test_gzip_shards_read_like_plain_ones(shared_data: Path) -> None:
    samples = [*shardio.ShardDataset(shared_data / "shards/webdataset/sample.tgz", decode=False)]
    assert len(samples) > 0


def test_the_manifest_is_an_index_that_wids_understands(packed: Path) -> None:
    document = json.loads((packed / "shardio.json").read_text())
    assert document["__kind__"] == "wids-shard-index-v1"
    assert document["wids_version"] == 1
    assert all({"url", "nsamples", "filesize"} <= set(shard) for shard in document["shardlist"])
    assert sum(shard["nsamples"] for shard in document["shardlist"]) == 600


def _replace_by_another(shard: Path, other: Path) -> None:
    for path in (shard, index_path(shard)):
        path.unlink()
        path.write_bytes((other / path.relative_to(shard.parent)).read_bytes())


def _overwrite(shard: Path, other: Path) -> None:
    shard.write_bytes((other / shard.name).read_bytes())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_replace_by_another, "the shard was changed after the dataset was opened; open it again"),
        (_overwrite, "the data is not what was packed"),
        (
            lambda shard, _: shard.unlink(),
            "the shard is missing; restore the shard, or pack the same samples into a new folder "
            "and copy the shard from there",
        ),
        (lambda shard, _: os.truncate(shard, 5000), "it was changed or truncated"),
    ],
)
def test_shards_that_change_under_a_running_epoch_are_an_error(
    tmp_path: Path, change: Callable[[Path, Path], None], message: str
) -> None:
    """The new shard has the same size and as many samples, so that only its contents tell."""
    images = make_images(tmp_path / "images", classes=1, per_class=60, extension="bmp")
    for name, seed in (("out", 0), ("other", 1)):
        shardio.pack(images, tmp_path / name, shards=6, seed=seed)
    dataset = shardio.ShardDataset(tmp_path / "out", shuffle=True, window=1, batch_size=10)
    last = dataset.catalog.shards[dataset.plan(0).orders[0].runs_of_window(5).shards[0]].name
    steps = iter(dataset)
    first = next(steps)
    change(Path(last), tmp_path / "other")
    with pytest.raises(shardio.ShardioError, match=message) as caught:
        list(steps)
    assert last in str(caught.value)
    assert len(set(first["__key__"])) == 10


def test_a_shard_of_others_that_is_replaced_under_a_running_epoch_is_an_error(
    tmp_path: Path,
) -> None:
    """It has the same size and keys; no checksum of its contents is known."""
    for shard in "abc":
        samples = {f"{shard}{i}": {"txt": b"%d" % i} for i in range(8)}
        make_shard(tmp_path / f"{shard}.tar", samples)
    dataset = shardio.ShardDataset(tmp_path, window=1, batch_size=8)
    state = dataset.state_dict()
    steps = iter(dataset)
    next(steps)
    other = {f"c{i}": {"txt": b"%d" % i} for i in reversed(range(8))}
    make_shard(tmp_path / "new", other).replace(tmp_path / "c.tar")
    message = r"c\.tar: the shard was changed after the dataset was opened; open it again"
    with pytest.raises(shardio.TarError, match=message):
        list(steps)
    again = shardio.ShardDataset(tmp_path, window=1, batch_size=8)
    with pytest.raises(shardio.UsageError, match="contents was"):
        again.load_state_dict(state)


def test_no_bad_sample_is_tried_again_as_a_substitute(tmp_path: Path) -> None:
    """Else the work is quadratic where most of a shard is bad."""
    tried = Counter[bytes]()

    class Counted(Label):
        def decode(self, data: Any) -> int:
            tried[bytes(data)] += 1
            return decode_cls(data)

    samples = {f"{number:03d}": {"cls": b"7" if number == 50 else b"x"} for number in range(100)}
    dataset = shardio.ShardDataset(
        make_shard(tmp_path / "a.tar", samples),
        fields={"label": Counted("cls")},
        batch_size=10,
        on_bad_sample="skip",
    )
    assert [label for batch in dataset for label in batch["label"].tolist()] == [7] * 100
    assert tried[b"x"] <= 2 * 99


def test_bad_samples_are_named_once_and_many_are_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    samples = {f"{number:02}": {"png": b"no" if number % 2 else png(1)} for number in range(24)}
    path = make_shard(tmp_path / "a.tar", samples)
    for loop in (
        shardio.ShardDataset(path, on_bad_sample="skip", batch_size=4),
        shardio.Loader(shardio.ShardDataset(path, on_bad_sample="skip", batch_size=4), threads=2),
    ):
        caplog.clear()
        for _ in range(3):
            assert sum(len(batch["valid"]) for batch in loop) == 24
        assert loop.num_bad_samples == 36
        *named, counted = [record.getMessage() for record in caplog.records]
        assert [
            f"sample '{number:02}', field" in line
            for number, line in zip(range(1, 10, 2), named, strict=True)
        ] == [True] * 5
        assert counted.startswith("7 more samples could not be delivered either")
        assert "verify --deep" in counted


def only_even(sample: dict[str, Any]) -> dict[str, Any]:
    if sample["label"] % 2:
        raise shardio.Skip("it is odd")
    return sample


@pytest.mark.parametrize(
    ("fields", "arguments", "message"),
    [
        ({"json": b"{"}, {}, "sample '3', field 'json' at offset [0-9]+: not JSON: "),
        ({"json": b"{}"}, {"map": only_even}, "sample '3': it is odd$"),
        ({}, {"fields": {"json": "json"}}, "sample '3', field 'json': the sample has no such"),
    ],
)
def test_no_other_sample_stands_in_for_one_that_is_asked_for(
    tmp_path: Path, fields: dict[str, bytes], arguments: dict[str, Any], message: str
) -> None:
    samples = {f"{i}": {"cls": b"%d" % (2 * i), "json": b"{}"} for i in range(8)}
    samples["3"] = {"cls": b"3", **fields}
    dataset = shardio.ShardDataset(
        make_shard(tmp_path / "a.tar", samples), on_bad_sample="skip", **arguments
    )
    with pytest.raises(shardio.SampleError, match=message):
        dataset[3]
    with pytest.raises(shardio.SampleError, match=message):
        dataset.by_key("3")
    with pytest.raises(shardio.SampleError, match=message):
        dataset.subset(lambda _, number: dataset[number]["json"] is not None)
    assert dataset.num_bad_samples == 0
    assert [dataset[number]["__key__"] for number in (2, 4)] == ["2", "4"]
    assert [sample["valid"] for sample in dataset] == [number != 3 for number in range(8)]


def test_a_subset_of_torch_read_in_batches_has_marked_stand_ins(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    samples = {f"{number:02}": {"png": b"no" if number else png(1)} for number in range(8)}
    dataset = shardio.ShardDataset(make_shard(tmp_path / "a.tar", samples), on_bad_sample="skip")
    part = torch.utils.data.Subset(dataset, range(8))
    valid = torch.cat([batch["valid"] for batch in DataLoader(part, batch_size=3)])
    assert valid.tolist() == [True] + [False] * 7
    assert caplog.text.count("takes its place") == 7


def test_a_name_with_dots_is_no_field_that_samples_may_lack(tmp_path: Path) -> None:
    shard = make_shard(tmp_path / "a.tar", {"a": {"png": png(1)}, "img": {"v1.7.png": png(2)}})
    message = (
        r"sample 'img', field 'png': the sample has no such field, wanted for 'image', but "
        r"'v1\.7\.png', as a field begins at the first dot of a name; name it in fields= .* run "
        r"`shardio pack`, which puts underscores"
    )
    dataset = shardio.ShardDataset(shard, fields={"image": "jpg;png"}, on_bad_sample="skip")
    with pytest.raises(shardio.SampleError, match=message.replace("'png'", "'jpg;png'")) as caught:
        dataset[1]
    assert "?" not in str(caught.value)
    with pytest.raises(shardio.SampleError, match=message):
        [*shardio.ShardDataset(shard, fields={"image": "png"})]
