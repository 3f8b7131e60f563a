"""A function on the whole sample: what it gets, and what becomes of its result, anywhere."""

from __future__ import annotations

import hashlib
import json
import random
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

import shardio
from shardio.testing import check_map, make_shard

CROP = shardio.RandomResizedCrop(12)
Sample = dict[str, Any]


def png(height: int, width: int, seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    return cv2.imencode(".png", pixels)[1].tobytes()


def npy(array: Any) -> bytes:
    return shardio.Array().encode(array)


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """47 samples in 4 shards, with an entry of every way of batching."""
    folder = tmp_path_factory.mktemp("mixed")
    number = iter(range(47))
    for shard, count in enumerate((12, 12, 12, 11)):
        samples = {}
        for at in [next(number) for _ in range(count)]:
            boxes = {"boxes": [[0, 0, 4 + at % 3, 5]] * (at % 3), "labels": [1] * (at % 3)}
            samples[f"k{at:02}"] = {
                "png": png(20 + at % 5, 24, at),
                "cls": str(at % 7).encode(),
                "txt": f"caption {at}".encode(),
                "json": json.dumps(boxes).encode(),
                "vec.npy": npy(np.arange(3, dtype=np.float32) + at),
                **({"extra.npy": npy(np.float64(at))} if at % 4 else {}),
            }
        make_shard(folder / f"s-{shard}.tar", samples)
    return folder


FIELDS = {
    "image": "png",
    "label": "cls",
    "caption": "txt",
    "meta": "json",
    "vec": "vec.npy",
    "extra": "extra.npy?",
}


def opened(folder: Path, **options: Any) -> shardio.ShardDataset:
    given = {"fields": FIELDS, "transform": CROP, "batch_size": 8, "shuffle": True, "window": 2}
    return shardio.ShardDataset(folder, **{**given, **options})


def described(value: Any) -> Any:
    """Everything that a batch's value is, as text."""
    if isinstance(value, torch.Tensor):
        layout = value.is_contiguous(memory_format=torch.channels_last) if value.ndim == 4 else None
        return str(value.dtype), [*value.shape], layout, value.tolist()
    if isinstance(value, dict):
        return {name: described(each) for name, each in value.items()}
    return [described(each) for each in value] if isinstance(value, list) else value


def digest(batches: Any) -> str:
    text = json.dumps([described(batch) for batch in batches], default=str, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def same(sample: Sample) -> Sample:
    return sample


def noisy(sample: Sample, rng: np.random.Generator) -> Sample:
    """Change a picture in place, replace the label, add entries, remove one."""
    if rng.random() < 0.5:
        sample["image"].copy_(sample["image"].flip(-1))
    sample["label"] = torch.from_numpy(rng.random(3, np.float32))
    sample["tokens"] = {"ids": torch.tensor([len(sample["caption"]), int(rng.integers(1000))])}
    sample["length"] = len(sample["caption"])
    del sample["meta"]
    return sample


def test_a_map_that_changes_nothing_changes_nothing(mixed: Path) -> None:
    assert digest(opened(mixed, map=same)) == digest(opened(mixed))
    assert digest(opened(mixed, map=[same, same])) == digest(opened(mixed))
    plain = {"batch_size": None, "transform": None}
    assert digest(opened(mixed, map=same, **plain)) == digest(opened(mixed, **plain))


def test_a_map_gets_what_a_dataset_of_samples_yields(mixed: Path) -> None:
    seen: list[Sample] = []

    def note(sample: Sample) -> Sample:
        seen.append({name: described(value) for name, value in sample.items()})
        return sample

    list(opened(mixed, map=note, shuffle=False, batch_size=4, tail="short"))
    samples = opened(mixed, batch_size=None, shuffle=False)
    wanted = [
        {
            name: described(value)
            for name, value in sample.items()
            if name not in ("valid", "has_extra") and (name != "extra" or sample["has_extra"])
        }
        for sample in samples
    ]
    assert seen == wanted


def test_batches_of_a_random_map_are_the_same_by_threads_workers_and_after_resuming(
    mixed: Path,
) -> None:
    make = partial(opened, mixed, map=noisy, seed=5)
    wanted = digest(make())
    assert wanted == digest(shardio.Loader(make(), threads=3))
    assert wanted == digest(DataLoader(make(), batch_size=None, num_workers=2))
    assert wanted != digest(make(seed=6))
    first, second = make(), make()
    before = [next(loop) for loop in [iter(first)] for _ in range(2)]
    second.load_state_dict(json.loads(json.dumps(first.state_dict(before[-1]))))
    assert digest([*before, *second]) == wanted


def test_random_numbers_of_a_sample_do_not_depend_on_the_ranks(mixed: Path) -> None:
    def drawn(_: Sample, rng: np.random.Generator) -> Sample:
        return {"number": rng.random()}

    def numbers(ranks: int) -> dict[str, float]:
        share = {"global_batch_size": 8, "batch_size": None, "world_size": ranks}
        batches = (
            batch for rank in range(ranks) for batch in opened(mixed, map=drawn, rank=rank, **share)
        )
        return {
            key: number
            for batch in batches
            for key, number, valid in zip(
                batch["__key__"], batch["number"].tolist(), batch["valid"], strict=True
            )
            if valid
        }

    assert numbers(1) == numbers(2) == numbers(4)
    assert len(set(numbers(1).values())) == 47


def test_each_function_of_a_chain_has_random_numbers_of_its_own(mixed: Path) -> None:
    def draw(name: str, count: int, sample: Sample, rng: np.random.Generator) -> Sample:
        return {**sample, name: rng.random(count).sum()}

    def column(*counts: int) -> list[float]:
        chain = [partial(draw, f"n{at}", count) for at, count in enumerate(counts)]
        return [v for batch in opened(mixed, map=chain) for v in batch["n1"].tolist()]

    assert column(1, 1) == column(5, 1)
    first = next(iter(opened(mixed, map=[partial(draw, "a", 1), partial(draw, "b", 1)])))
    assert (first["a"] != first["b"]).all()


def test_what_a_map_returns_is_joined_by_its_kind(mixed: Path) -> None:
    def kinds(sample: Sample) -> Sample:
        return {
            "image": sample["image"].float() / 255,
            "whole": 3,
            "real": 0.5,
            "yes": True,
            "array": np.ones((2, 3), np.int16),
            "text": "a",
            "list": [1, 2],
            "nested": {"x": torch.zeros(4), "y": "b"},
            "label": sample["label"],
        }

    batch = next(iter(opened(mixed, map=kinds)))
    assert batch["image"].dtype == torch.float32
    assert batch["image"].is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(batch["image"], next(iter(opened(mixed)))["image"].float() / 255)
    found = {name: batch[name].dtype for name in ("whole", "real", "yes", "array", "label")}
    assert [*found.values()] == [torch.int64, torch.float64, torch.bool, torch.int16, torch.int64]
    assert batch["array"].shape == (8, 2, 3)
    assert (batch["text"], batch["list"]) == (["a"] * 8, [[1, 2]] * 8)
    assert batch["nested"]["x"].shape == (8, 4)
    assert batch["nested"]["y"] == ["b"] * 8
    assert "caption" not in batch


class Cast:
    """A map that returns tensors of a dtype, alone, nested, listed and too large to be sent."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype

    def __call__(self, sample: Sample) -> Sample:
        image = (sample["image"].float() / 255).to(self.dtype)
        nested, large = {"x": image[0, 0, :4]}, image.repeat(1, 8, 8).transpose(1, 2)
        one, listed = image[0, 0, 0], [image[0, 0, :2]]
        return {"image": image, "nested": nested, "large": large, "one": one, "listed": listed}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float8_e5m2])
def test_tensors_of_dtypes_that_numpy_lacks_arrive_as_they_are(
    mixed: Path, dtype: torch.dtype
) -> None:
    cast = Cast(dtype)
    dataset = opened(mixed, map=cast, shuffle=False)
    wanted = [cast(sample) for sample in opened(mixed, batch_size=None, shuffle=False)][3]
    for loader in (
        dataset,
        shardio.Loader(dataset, threads=2),
        shardio.Loader(dataset, workers=1),
        DataLoader(dataset, batch_size=None, num_workers=2),
    ):
        dataset.set_epoch(0)
        batch = next(iter(loader))
        assert batch["image"].is_contiguous(memory_format=torch.channels_last)
        pairs = [(batch[name][3], wanted[name]) for name in ("image", "large", "one")]
        pairs.append((batch["nested"]["x"][3], wanted["nested"]["x"]))
        pairs.append((batch["listed"][3][0], wanted["listed"][0]))
        assert {found.dtype for found, _ in pairs} == {dtype}
        assert all(torch.equal(found.float(), exact.float()) for found, exact in pairs)


def test_captions_become_tensors_and_boxes_stay_lists(mixed: Path) -> None:
    fields: dict[str, Any] = {
        "image": "png",
        "caption": "txt",
        "boxes": shardio.Boxes("json", format="xyxy"),
    }

    def change(sample: Sample) -> Sample:
        boxes = sample["boxes"]
        ids = torch.tensor([len(sample["caption"])])
        return {**sample, "caption": ids, "boxes": {**boxes, "boxes": boxes["boxes"] + 1}}

    batch = next(iter(opened(mixed, fields=fields, map=change)))
    plain = next(iter(opened(mixed, fields=fields)))
    assert batch["caption"].shape == (8, 1)
    assert digest([batch["boxes"]]) != digest([plain["boxes"]])
    for moved, stayed in zip(batch["boxes"], plain["boxes"], strict=True):
        assert torch.equal(moved["boxes"], stayed["boxes"] + 1)


@pytest.mark.parametrize("swap", [False, True])
def test_an_entry_may_hold_the_picture_that_another_one_replaces(
    tmp_path: Path, swap: bool
) -> None:
    make_shard(tmp_path / "a.tar", {str(i): {"a.png": png(9, 9, i)} for i in range(4)})
    twice: dict[str, Any] = {"a": "a.png", "b": shardio.Image("a.png")}
    resize = shardio.Resize((9, 9))
    plain = next(iter(shardio.ShardDataset(tmp_path, fields=twice, transform=resize, batch_size=4)))

    def change(sample: Sample) -> Sample:
        if swap:
            return {"a": sample["b"].flip(-1), "b": sample["a"]}
        return {"a": 255 - sample["a"], "old": sample["a"], "held": {"a": sample["a"]}}

    dataset = shardio.ShardDataset(
        tmp_path, fields=twice, transform=resize, batch_size=4, map=change
    )
    batch = next(iter(dataset))
    if swap:
        assert torch.equal(batch["a"], plain["b"].flip(-1))
        assert torch.equal(batch["b"], plain["a"])
    else:
        assert torch.equal(batch["a"], 255 - plain["a"])
        assert torch.equal(batch["old"], plain["a"])
        assert torch.equal(batch["held"]["a"], plain["a"])


def changed_in_place(how: str) -> Callable[[Sample], Sample]:
    def change(sample: Sample) -> Sample:
        picture = sample["image"]
        if how == "transposed":
            picture.transpose_(1, 2)
        elif how == "one row":
            picture.resize_(3, 1, 12)
        else:
            picture.data = 255 - picture
        return sample

    return change


@pytest.mark.parametrize("how", ["transposed", "one row", "other memory"])
def test_a_picture_whose_shape_or_memory_is_set_is_what_it_was_set_to(
    mixed: Path, how: str
) -> None:
    plain, changed = ([*opened(mixed, map=m)] for m in (same, changed_in_place(how)))
    for one, other in zip(plain, changed, strict=True):
        wanted = {"transposed": one["image"].mT, "one row": one["image"].flatten(1)[:, :36]}
        flat = wanted.get(how, 255 - one["image"])
        if how != "one row":
            assert torch.equal(other["image"], flat)
        assert other["image"].shape == ((8, 3, 1, 12) if how == "one row" else (8, 3, 12, 12))


def test_views_of_a_picture_in_lists_and_dictionaries_outlive_its_replacement(mixed: Path) -> None:
    def change(sample: Sample) -> Sample:
        old = sample["image"]
        return {"image": 255 - old, "old": [old, {"row": (old[0],)}], "text": {"in": [old[:1]]}}

    loaders: list[Any] = [
        opened(mixed, map=change),
        DataLoader(opened(mixed, map=change), batch_size=None, num_workers=1),
    ]
    for loader in loaders:
        for batch, plain in zip(loader, opened(mixed), strict=True):
            for slot, picture in enumerate(plain["image"]):
                whole, parts = batch["old"][slot]
                assert torch.equal(whole, picture)
                assert torch.equal(parts["row"][0], picture[0])
                assert torch.equal(batch["text"]["in"][slot][0], picture[:1])


def test_arrays_of_another_byte_order_are_stacked(mixed: Path) -> None:
    def change(sample: Sample) -> Sample:
        return {"vec": sample["vec"].numpy().astype(">f4"), "one": np.array(7, ">i2")[()]}

    batch = next(iter(opened(mixed, map=change)))
    assert torch.equal(batch["vec"], next(iter(opened(mixed)))["vec"])
    assert batch["one"].tolist() == [7] * 8


def test_an_entry_that_a_sample_lacks_is_not_one_that_is_none(tmp_path: Path) -> None:
    samples = {str(i): {"png": png(9, 9, i), **({"cls": b"1"} if i % 2 else {})} for i in range(4)}
    make_shard(tmp_path / "a.tar", samples)

    def label_or(other: Any) -> Callable[[Sample], Sample]:
        return lambda sample: {**sample, "label": sample.get("label", other)}

    make = partial(
        shardio.ShardDataset, tmp_path, fields={"image": "png", "label": "cls?"}, batch_size=4
    )
    batch = next(iter(make(map=label_or(9))))
    assert (batch["label"].tolist(), batch["has_label"].all()) == ([9, 1, 9, 1], True)
    with pytest.raises(shardio.MisfitError, match="sample '1', field 'label': it is of"):
        next(iter(make(map=label_or(None))))


@pytest.mark.parametrize("reason", [3, None, shardio.Skip])
def test_a_reason_to_skip_may_be_anything(
    mixed: Path, reason: Any, caplog: pytest.LogCaptureFixture
) -> None:
    def skip(sample: Sample) -> Sample:
        if sample["__key__"] == "k00":
            raise shardio.Skip(reason)
        return sample

    assert not next(iter(opened(mixed, map=skip, shuffle=False)))["valid"][0]
    assert f"sample 'k00': {reason}; sample 'k01' takes its place" in caplog.text


def test_many_skipped_samples_are_counted_and_not_sought_by_verify(
    mixed: Path, caplog: pytest.LogCaptureFixture
) -> None:
    list(opened(mixed, map=skip_every_third))
    counted = caplog.records[-1].getMessage()
    assert counted.startswith("11 more samples could not be delivered either")
    assert "verify" not in counted


class Unpicklable:
    def __reduce__(self) -> Any:
        raise TypeError("not this one")


@pytest.mark.parametrize("argument", ["map", "collate"])
def test_what_cannot_leave_a_worker_is_an_error_and_no_endless_wait(
    mixed: Path, argument: str
) -> None:
    options: dict[str, Any] = {argument: lambda _: {"x": [Unpicklable()]}}
    assert next(iter(opened(mixed, **options)))["x"]
    wanted = "a Unpicklable of a batch cannot go .* process: TypeError: not this one; return other"
    for loader in (
        shardio.Loader(opened(mixed, **options), workers=1),
        DataLoader(opened(mixed, **options), batch_size=None, num_workers=1, timeout=60),
    ):
        with pytest.raises(shardio.UsageError, match=wanted):
            next(iter(loader))


def skip_every_third(sample: Sample) -> Sample:
    if int(sample["__key__"][1:]) % 3 == 0:
        raise shardio.Skip("a third of them")
    return sample


def test_a_skipped_sample_is_replaced_marked_and_counted(
    mixed: Path, caplog: pytest.LogCaptureFixture
) -> None:
    dataset = opened(mixed, map=skip_every_third, tail="short")
    keys = [
        key
        for batch in dataset
        for key, valid in zip(batch["__key__"], batch["valid"].tolist(), strict=True)
        if valid
    ]
    assert sorted(keys) == [f"k{at:02}" for at in range(47) if at % 3]
    assert dataset.num_bad_samples == 16
    assert "a third of them; sample 'k" in caplog.text
    make = partial(opened, mixed, map=skip_every_third)
    assert digest(make()) == digest(shardio.Loader(make(), threads=3))
    assert digest(make()) == digest(DataLoader(make(), batch_size=None, num_workers=2))


def test_a_sample_skipped_once_comes_in_another_epoch(mixed: Path) -> None:
    def half(sample: Sample, rng: np.random.Generator) -> Sample:
        if rng.random() < 0.5:
            raise shardio.Skip
        return sample

    dataset = opened(mixed, map=half)
    keys = {
        key
        for _ in range(12)
        for batch in dataset
        for key, valid in zip(batch["__key__"], batch["valid"].tolist(), strict=True)
        if valid
    }
    assert len(keys) == 47


def test_a_map_that_skips_all_samples_is_an_error(mixed: Path) -> None:
    def never(_: Sample) -> Sample:
        raise shardio.Skip("not today")

    with pytest.raises(shardio.SampleError, match="not today; none of the 47 samples in the data"):
        next(iter(opened(mixed, map=never)))


def test_a_bad_sample_is_not_hidden_where_another_one_was_skipped(tmp_path: Path) -> None:
    make_shard(
        tmp_path / "a.tar",
        {"a": {"png": png(9, 9, 1)}, "b": {"png": png(9, 9, 2)}, "c": {"png": b"\x89PNG no"}},
    )

    def only_a(sample: Sample) -> Sample:
        if sample["__key__"] != "a":
            raise shardio.Skip
        return sample

    options: dict[str, Any] = {"transform": CROP, "batch_size": 2, "tail": "drop", "map": only_a}
    with pytest.raises(shardio.SampleError, match="sample 'c', field 'png'"):
        next(iter(shardio.ShardDataset(tmp_path, **options)))
    batch = next(iter(shardio.ShardDataset(tmp_path, on_bad_sample="skip", **options)))
    assert (batch["__key__"], batch["valid"].tolist()) == (["a", "b"], [True, False])


def returns(value: Any) -> Callable[[Sample], Any]:
    def returning(_: Sample) -> Any:
        return value

    return returning


def fails(_: Sample) -> Sample:
    raise KeyError("no such word")


def lacks(sample: Sample) -> Sample:
    return {} if sample["__key__"] == "k03" else {"x": 1}


def ragged(sample: Sample) -> Sample:
    return {**sample, "ids": torch.zeros(int(sample["__key__"][1:]))}


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (returns(None), "sample 'k00': map returning returned None, not a sample; return"),
        (returns((1, 2)), "returning returned a tuple, not a sample"),
        (
            returns({"valid": 1}),
            "sample 'k00': map returned 'valid', which shardio adds to a batch",
        ),
        (returns({"__key__": "x"}), "map returned '__key__', which shardio adds to a batch"),
        (returns({1: 2}), "map returned an entry named 1, which is not text"),
        (returns({"has_extra": 1}), "map returned 'has_extra', which shardio adds to a batch"),
        (
            returns({"x": torch.zeros((1,) * 65)}),
            "'x' of map: no batch can hold a tensor of torch.float32: number of dimensions",
        ),
        (
            lambda sample: {"x": None if sample["__key__"] == "k01" else 1},
            "'x' of map: it is of the type NoneType, others of the batch are arrays of numbers",
        ),
        (
            lambda sample: {"x": 1.5 if sample["__key__"] == "k01" else 1},
            "'x' of map: it is one number float64, others of the batch are one number int64; ret",
        ),
        (
            fails,
            "s-0.tar: sample 'k00': map fails raised KeyError: 'no such word'; "
            r"raise shardio.Skip\(\"why\"\) in it to leave the sample out, which on_bad_sample",
        ),
        (lacks, "sample 'k03': map returned no 'x' for it, unlike for others of the batch"),
        (ragged, "'ids' of map: it is 1 float32, others of the batch are 0 float32; return values"),
    ],
)
def test_what_is_no_sample_is_an_error_that_names_sample_and_function(
    mixed: Path, function: Callable[[Sample], Any], message: str
) -> None:
    for skip in ("raise", "skip"):
        if "others of the batch are" in message and skip == "skip":
            continue  # one that does not fit is replaced
        with pytest.raises(shardio.ShardioError, match=message):
            next(iter(opened(mixed, map=function, shuffle=False, on_bad_sample=skip)))
    with pytest.raises(shardio.ShardioError, match=message):
        next(iter(shardio.Loader(opened(mixed, map=function, shuffle=False), threads=1)))


def leaves(_: Sample) -> Sample:
    sys.exit(3)


def circular(_: Sample) -> Sample:
    held: list[Any] = []
    held.append(held)
    return {"x": held}


def dated(_: Sample) -> Sample:
    return {"x": [np.datetime64("2020-01-01")]}


def sparse(_: Sample) -> Sample:
    return {"x": torch.ones(2).to_sparse()}


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (leaves, "sample 'k00': map leaves raised SystemExit: 3"),
        (circular, "'x' of map: it holds itself"),
        (dated, "'x' of map: torch has no dtype for datetime64"),
        (
            sparse,
            "no batch can hold a tensor of torch.float32: .*; return values of one shape and",
        ),
    ],
)
def test_what_no_batch_can_be_made_of_is_an_error_in_workers_too(
    mixed: Path, function: Callable[[Sample], Any], message: str
) -> None:
    dataset = opened(mixed, map=function, shuffle=False)
    for loader in (dataset, DataLoader(dataset, batch_size=None, num_workers=1)):
        with pytest.raises(shardio.ShardioError, match=message):
            next(iter(loader))


@pytest.mark.parametrize("argument", ["map", "collate"])
def test_arrays_in_lists_and_dictionaries_are_tensors_wherever_a_function_runs(
    mixed: Path, argument: str
) -> None:
    def arrays(_: Any) -> Sample:
        backwards = np.arange(3)[::-1]
        return {"x": [backwards, {"y": np.ones(2, ">f4")}, np.float32(2)], "z": {"w": [backwards]}}

    make = partial(opened, mixed, **{argument: arrays})
    wanted = [*DataLoader(make(), batch_size=None, num_workers=1)]
    assert digest(wanted) == digest(shardio.Loader(make(), threads=2)) == digest(make())
    assert isinstance(
        wanted[0]["x"][0] if argument == "collate" else wanted[0]["x"][0][0], torch.Tensor
    )


def test_the_end_of_a_collate_is_an_error(mixed: Path) -> None:
    with pytest.raises(shardio.TransformError, match="collate leaves raised SystemExit: 3"):
        next(iter(shardio.Loader(opened(mixed, collate=leaves), threads=1)))


@pytest.mark.parametrize("workers", [0, 2])
def test_what_does_not_stack_is_named_in_a_worker_too(mixed: Path, workers: int) -> None:
    """litData#472: "Trying to resize storage that is not resizable", and of which sample?"""
    loader = DataLoader(
        opened(mixed, map=ragged, shuffle=False), batch_size=None, num_workers=workers
    )
    with pytest.raises(
        shardio.MisfitError, match=r"s-0\.tar: sample 'k0[01]'.*'ids' of map: it is"
    ):
        next(iter(loader))


@pytest.mark.parametrize("function", [3, "flip", [same, None], shardio.Normalize])
def test_a_map_that_is_no_function_is_refused(mixed: Path, function: Any) -> None:
    with pytest.raises(shardio.UsageError, match=r"map=.*: it must be a function from a sample to"):
        opened(mixed, map=function)


def test_a_map_by_entry_is_told_to_be_a_function(mixed: Path) -> None:
    with pytest.raises(
        shardio.UsageError, match=r"sets sample\['image'\] = f\(sample\['image'\]\)"
    ):
        opened(mixed, map={"image": same})


def padded(samples: list[Sample]) -> Sample:
    lengths = [sample["image"].shape[-1] * sample["image"].shape[-2] for sample in samples]
    return {"pixels": torch.tensor(lengths), "captions": [s["caption"] for s in samples]}


def test_collate_joins_what_does_not_stack(mixed: Path) -> None:
    """webdataset#316: arrays of other lengths do not stack."""
    make = partial(opened, mixed, transform=None, collate=padded)
    batches = [*make()]
    plain = {
        s["__key__"]: s["image"][0].numel() for s in opened(mixed, batch_size=None, transform=None)
    }
    for batch in batches:
        assert batch["pixels"].tolist() == [plain[key] for key in batch["__key__"]]
        assert {*batch} == {"pixels", "captions", "valid", "__key__", "__epoch__", "__step__"}
    assert sum(int(batch["valid"].sum()) for batch in batches) == 47
    assert digest(batches) == digest(shardio.Loader(make(), threads=2))
    assert digest(batches) == digest(DataLoader(make(), batch_size=None, num_workers=2))


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (
            lambda samples: samples,
            "the batch from 'k00' to 'k07': collate <lambda> returned a list",
        ),
        (lambda _: {"valid": 1}, "collate <lambda> returned 'valid', which shardio adds"),
        (
            lambda samples: samples[99],
            "collate <lambda> raised IndexError: list index out of range",
        ),
    ],
)
def test_a_collate_that_makes_no_batch_is_an_error(
    mixed: Path, function: Any, message: str
) -> None:
    with pytest.raises(shardio.TransformError, match=message):
        next(iter(opened(mixed, collate=function, shuffle=False)))


def test_a_collate_without_batches_is_refused(mixed: Path) -> None:
    with pytest.raises(shardio.UsageError, match=r"collate.*must be left out without batch_size"):
        opened(mixed, collate=padded, batch_size=None)


def test_as_tuple_gives_what_other_datasets_yield(mixed: Path) -> None:
    make = partial(opened, mixed, as_tuple=("image", "label"))
    wanted = [(batch["image"], batch["label"]) for batch in opened(mixed)]
    loaders: list[Any] = [
        make(),
        shardio.Loader(make(), threads=2),
        DataLoader(make(), batch_size=None),
        DataLoader(make(), batch_size=None, num_workers=2),
        DataLoader(shardio.Loader(make(), threads=2), batch_size=None, num_workers=1),
    ]
    for loader in loaders:
        for (images, labels), (pictures, numbers) in zip(loader, wanted, strict=True):
            assert torch.equal(images, pictures)
            assert torch.equal(labels, numbers)
    for images, _ in DataLoader(make(batch_size=None), batch_size=8):
        assert images.shape[1:] == (3, 12, 12)
    pair: Any = make()[5]
    image, label = pair
    assert (image.shape, type(label)) == ((3, 12, 12), int)


@pytest.mark.parametrize(
    ("options", "warned"),
    [
        ({}, True),
        ({"tail": "even"}, False),
        ({"tail": "exact"}, False),
        ({"as_tuple": ("image", "valid")}, False),
        ({"as_tuple": None}, False),
        ({"batch_size": None}, False),
    ],
)
def test_repeats_that_tuples_hide_are_told_once(
    mixed: Path, options: dict[str, Any], warned: bool, caplog: pytest.LogCaptureFixture
) -> None:
    given = {"as_tuple": ("image", "label"), "batch_size": 16, "rank": 1, "world_size": 2}
    dataset = opened(mixed, **{**given, **options})
    for _ in range(2):
        list(dataset)
    told = 'step 1 of epoch 0 are repeats or stand-ins, which as_tuple without "valid"'
    assert caplog.text.count(f"16 of 16 samples in {told}") == warned
    assert caplog.text.count("repeats") == warned


def test_the_state_of_tuples_is_that_of_the_loader(mixed: Path) -> None:
    wanted = [batch["__key__"] for batch in opened(mixed)]
    loader = shardio.Loader(opened(mixed, as_tuple=("__key__",)), threads=2)
    loop: Any = iter(loader)
    before = [next(loop)[0] for _ in range(3)]
    other = shardio.Loader(opened(mixed, as_tuple=("__key__",)), threads=2)
    other.load_state_dict(loader.state_dict())
    assert [*before, *(keys for (keys,) in other)] == wanted


@pytest.mark.parametrize("names", ["image", (), ("image", 3), ("image", "image")])
def test_names_of_tuples_that_are_none_are_refused(mixed: Path, names: Any) -> None:
    with pytest.raises(shardio.UsageError, match="as_tuple"):
        opened(mixed, as_tuple=names)


def test_a_tuple_of_an_entry_that_is_not_there_is_refused(mixed: Path) -> None:
    with pytest.raises(
        shardio.UsageError,
        match=r"there is no entry 'target'; choose among 'image', .*, or make it in map=",
    ):
        next(iter(opened(mixed, as_tuple=("image", "target"))))


def test_a_transform_of_one_picture_is_refused_where_a_sample_has_two(tmp_path: Path) -> None:
    """DALI#4012: a random crop of its own for each of two pictures."""
    make_shard(tmp_path / "a.tar", {"a": {"l.png": png(9, 9, 1), "r.png": png(9, 9, 2)}})
    both = {"left": "l.png", "right": "r.png"}
    with pytest.raises(shardio.UsageError, match=r"'right' cannot follow it; .* as map="):
        shardio.ShardDataset(tmp_path, fields=both, transform=lambda picture: picture)


def test_numpy_seeds_of_workers_do_not_make_epochs_or_workers_equal(mixed: Path) -> None:
    """CenterNet#233, AlbumentationsX#266: workers, and epochs, with equal augmentations."""

    def drawn(_: Sample, rng: np.random.Generator) -> Sample:
        return {"number": rng.random()}

    loader = DataLoader(opened(mixed, map=drawn), batch_size=None, num_workers=2)
    numbers = [n for _ in range(2) for batch in loader for n in batch["number"].tolist()]
    assert len(set(numbers)) == len(numbers) == 96


@pytest.mark.parametrize("workers", [0, 2])
def test_seeds_that_a_trainer_sets_before_every_epoch_do_not_repeat_augmentations(
    mixed: Path, workers: int
) -> None:
    """pytorch-lightning#20412: seed_everything(workers=True) gave every epoch the same ones."""

    def drawn(sample: Sample, rng: np.random.Generator) -> Sample:
        return {"number": rng.random(), "image": sample["image"]}

    def seed_all(_: int = 0) -> None:
        random.seed(1)
        np.random.seed(1)
        torch.manual_seed(1)

    dataset = opened(mixed, map=drawn, shuffle=False)
    loader: Any = dataset
    if workers:
        loader = DataLoader(dataset, batch_size=None, num_workers=workers, worker_init_fn=seed_all)
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        epochs = []
        for _ in range(2):
            seed_all()
            epochs.append([*loader])
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
    numbers = [n for epoch in epochs for batch in epoch for n in batch["number"].tolist()]
    assert len({*numbers}) == len(numbers) == 96
    for one, other in zip(*epochs, strict=True):
        assert one["__key__"] == other["__key__"]
        assert all((a != b).any() for a, b in zip(one["image"], other["image"], strict=True))


def drawing_from_numpy(sample: Sample) -> Sample:
    return {**sample, "vec": sample["vec"] + np.random.random()}


calls = iter(range(1_000_000))


def counting(sample: Sample) -> Sample:
    return {**sample, "tokens": {"at": torch.tensor([next(calls)])}}


def test_check_map_tells_whether_a_map_depends_on_sample_and_rng_alone(mixed: Path) -> None:
    check_map(opened(mixed, map=noisy))
    check_map(opened(mixed, map=same, as_tuple=("image", "label")), batches=99)
    with pytest.raises(AssertionError, match="in another order, 'vec' of sample 'k"):
        check_map(opened(mixed, map=drawing_from_numpy))
    with pytest.raises(AssertionError, match="in another order, 'tokens' of sample 'k"):
        check_map(opened(mixed, map=counting))
    with pytest.raises(shardio.UsageError, match="check_map compares batches; open the dataset"):
        check_map(opened(mixed, map=same, batch_size=None))
