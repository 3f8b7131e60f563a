"""One sample, some samples, disjoint parts: each with the guarantees of the whole dataset."""

from __future__ import annotations

import math
import shutil
import subprocess
import sys
from collections.abc import Iterable
from itertools import chain, combinations, permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Subset, random_split

import shardio
from shardio.reading import shards
from shardio.testing import make_shard


def keys_of(batches: Iterable[dict[str, Any]]) -> list[str]:
    return [
        key
        for batch in batches
        for key, valid in zip(batch["__key__"], batch["valid"].tolist(), strict=True)
        if valid
    ]


@pytest.fixture
def dataset(packed: Path) -> shardio.ShardDataset:
    return shardio.ShardDataset(packed, batch_size=20)


@pytest.fixture
def keys(dataset: shardio.ShardDataset) -> list[str]:
    return keys_of(dataset)


def test_one_sample_is_read_by_its_index(dataset: shardio.ShardDataset, keys: list[str]) -> None:
    batch = next(iter(dataset))
    for index in (0, 7, 19):
        sample = dataset[index]
        assert sample["__key__"] == keys[index]
        assert torch.equal(sample["image"], batch["image"][index])
        assert sample["label"] == batch["label"][index]
        assert sample["valid"] is True
    assert [dataset[i]["__key__"] for i in (-1, -600, 599)] == [keys[-1], keys[0], keys[-1]]
    for outside in (600, -601):
        with pytest.raises(IndexError, match=f"index {outside} is outside its 600 samples"):
            dataset[outside]


def test_one_sample_is_read_by_its_key(dataset: shardio.ShardDataset, keys: list[str]) -> None:
    for key in (keys[0], keys[311], keys[-1]):
        assert dataset.by_key(key)["__key__"] == key
    for wrong in ("class00/image000", "", "lass00/image0001", keys[0] + keys[1], "\ud800"):
        with pytest.raises(KeyError, match="no sample has the key"):
            dataset.by_key(wrong)


def test_a_random_crop_of_one_sample_is_always_the_same(packed: Path) -> None:
    def crop(seed: int) -> torch.Tensor:
        transform = shardio.RandomResizedCrop(6)
        image: torch.Tensor = shardio.ShardDataset(packed, seed=seed, transform=transform)[5][
            "image"
        ]
        return image

    assert torch.equal(crop(1), crop(1))
    assert not torch.equal(crop(1), crop(2))


def test_random_access_works_in_a_map_of_workers(dataset: shardio.ShardDataset) -> None:
    first = dataset[0]["__key__"]

    class Some(torch.utils.data.Dataset[Any]):
        def __len__(self) -> int:
            return 40

        def __getitem__(self, index: int) -> Any:
            return dataset[index]["__key__"]

    loader = DataLoader(Some(), batch_size=None, num_workers=2, multiprocessing_context="fork")
    found = [*loader]
    assert found == keys_of(dataset)[:40]
    assert found[0] == first


def test_a_subset_by_indices_keeps_the_packed_order(
    dataset: shardio.ShardDataset, keys: list[str]
) -> None:
    subset = dataset.subset([599, 3, -2, 150])
    assert len(subset.samples) == 4
    assert keys_of(subset) == [keys[3], keys[150], keys[598], keys[599]]
    assert subset[1]["__key__"] == keys[150]
    assert subset.by_key(keys[150])["__key__"] == keys[150]
    with pytest.raises(KeyError):
        subset.by_key(keys[0])
    assert keys_of(subset.subset(np.array([0, 3]))) == [keys[3], keys[599]]
    assert keys_of(subset.subset(torch.tensor([2]))) == [keys[598]]
    assert keys_of(dataset) == keys


def test_a_subset_by_predicate_sees_key_and_index(
    dataset: shardio.ShardDataset, keys: list[str]
) -> None:
    seen = []

    def choose(key: str, index: int) -> bool:
        seen.append((index, key))
        return key.startswith("class03/") and index % 2 == 0

    subset = dataset.subset(choose)
    assert seen == [*enumerate(keys)]
    assert keys_of(subset) == [
        key for index, key in enumerate(keys) if key.startswith("class03/") and index % 2 == 0
    ]
    third = subset.subset(lambda _, index: index == 2)
    assert keys_of(third) == keys_of(subset)[2:3]


@pytest.mark.parametrize("options", [{"window": 2}, {"streams": 6}, {"window": 1, "streams": 3}])
@pytest.mark.parametrize("ranks", [1, 3])
def test_a_subset_is_delivered_exactly_once_on_every_topology(
    packed: Path, options: dict[str, Any], ranks: int
) -> None:
    wanted = range(0, 600, 7)
    found = []
    for rank in range(ranks):
        dataset = shardio.ShardDataset(
            packed, shuffle=True, global_batch_size=6, rank=rank, world_size=ranks, **options
        )
        everything = [sample["__key__"] for sample in shardio.ShardDataset(packed, decode=False)]
        loader = DataLoader(
            dataset.subset(wanted), batch_size=None, num_workers=2, multiprocessing_context="fork"
        )
        found += keys_of(loader)
    assert sorted(found) == sorted(everything[index] for index in wanted)


def test_a_subset_counts_epochs_of_its_own_and_resumes(packed: Path) -> None:
    dataset = shardio.ShardDataset(packed, shuffle=True, decode=False, batch_size=10)
    part, _ = dataset.split(0.3, seed=1)
    epochs = [keys_of(part), keys_of(part)]
    assert epochs[0] != epochs[1]
    assert sorted(epochs[0]) == sorted(epochs[1])
    again = dataset.split(0.3, seed=1)[0]
    again.load_state_dict(part.state_dict() | {"epoch": 1, "step": 4})
    assert keys_of(again) == epochs[1][40:]
    assert dataset.state_dict()["epoch"] == 0


def test_a_part_of_a_dataset_in_the_middle_of_a_loop_begins_anew(packed: Path) -> None:
    dataset = shardio.ShardDataset(packed, shuffle=True, decode=False, batch_size=10)
    steps = iter(dataset)
    next(steps)
    part = dataset.subset(range(100))
    state = part.state_dict()
    assert (state["epoch"], state["step"]) == (0, 0)
    assert len(keys_of(part)) == 100
    next(steps)
    assert dataset.state_dict()["step"] == 2


def test_parts_of_a_split_are_disjoint_and_whole(
    dataset: shardio.ShardDataset, keys: list[str]
) -> None:
    train, held_out = dataset.split(0.9, seed=4)
    assert (len(train.samples), len(held_out.samples)) == (540, 60)
    assert sorted(keys_of(train) + keys_of(held_out)) == sorted(keys)
    assert keys_of(dataset.split(0.9, seed=4)[0]) == keys_of(train)
    assert keys_of(dataset.split(0.9, seed=5)[0]) != keys_of(train)
    parts = dataset.split(0.5, 0.25, 0.25)
    assert [len(part.samples) for part in parts] == [300, 150, 150]
    assert len({key[:7] for key in keys_of(parts[2])}) == 10


def test_parts_of_a_split_may_be_in_any_order(dataset: shardio.ShardDataset) -> None:
    """litData#186: of 0.1, 0.2 and 0.7 the last part failed."""
    for fractions in permutations((0.1, 0.2, 0.7)):
        parts = dataset.replace(decode=False).split(*fractions)
        assert [len(part.samples) for part in parts] == [round(600 * each) for each in fractions]
        assert len({*chain(*map(keys_of, parts))}) == 600


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ([600], "subset: index 600 is outside the 600 samples"),
        ([3, -597], "subset: index 3 comes twice"),
        ([1.5], "subset takes a list of whole numbers, or a predicate"),
        ([[1]], "subset takes a list of whole numbers, or a predicate"),
        ([True, False], "for a mask, pass its flatnonzero"),
        ([[1], [2, 3]], "subset takes a list of whole numbers, or a predicate"),
        (np.array([2**64 - 1], np.uint64), "index 18446744073709551615 is outside"),
    ],
)
def test_choices_that_cannot_be_meant_are_explained(
    dataset: shardio.ShardDataset, choice: Any, message: str
) -> None:
    with pytest.raises(shardio.UsageError, match=message):
        dataset.subset(choice)


@pytest.mark.parametrize(
    "fractions",
    [(), (1.5,), (-0.1,), (0.5, 0.4), (0.7, 0.7, -0.4), ([0.9, 0.1],), ("0.9",), (math.nan,)],
)
def test_fractions_that_cannot_be_meant_are_explained(
    dataset: shardio.ShardDataset, fractions: Any
) -> None:
    with pytest.raises(shardio.UsageError, match="add up to 1"):
        dataset.split(*fractions)


def test_an_empty_part_says_so_when_it_is_read(dataset: shardio.ShardDataset) -> None:
    with pytest.raises(shardio.UsageError, match="the dataset has no samples"):
        next(iter(dataset.subset([])))


def test_more_shards_than_may_be_open_are_read_in_any_order(
    packed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards, "_MOST_OPEN", 2)
    monkeypatch.setattr(shards, "_MOST_MAPPED", 3)
    dataset = shardio.ShardDataset(packed, shuffle="full", decode=False, batch_size=20)
    assert len(set(keys_of(dataset))) == 600


def test_a_part_is_opened_with_other_arguments(packed: Path) -> None:
    dataset = shardio.ShardDataset(
        packed, shuffle=True, batch_size=20, transform=shardio.RandomResizedCrop(4)
    )
    train, held_out = dataset.split(0.9)
    plain = held_out.replace(shuffle=False, transform=shardio.Resize((6, 6)), batch_size=30)
    batches = [*plain]
    assert [batch["image"].shape for batch in batches] == [(30, 3, 6, 6)] * 2
    assert keys_of(batches) == [held_out[i]["__key__"] for i in range(60)]
    assert not {*keys_of(batches)} & {*keys_of(train)}
    assert next(iter(held_out))["image"].shape == (20, 3, 4, 4)
    with pytest.raises(shardio.UsageError, match="ShardDataset has no argument crop"):
        held_out.replace(crop=3)
    with pytest.raises(shardio.UsageError, match="batch_size=0: it must be"):
        held_out.replace(batch_size=0)


@pytest.mark.parametrize("index", ["cat", slice(1, 3), 1.0, None])
def test_an_index_is_one_whole_number(dataset: shardio.ShardDataset, index: Any) -> None:
    with pytest.raises(shardio.UsageError, match="give one whole number; "):
        dataset[index]
    with pytest.raises(shardio.UsageError, match=r"by_key\(3\): a key is text"):
        dataset.by_key(3)  # type: ignore[arg-type]
    assert dataset[np.uint8(200)]["__key__"] == dataset[200]["__key__"]  # type: ignore[index]
    assert dataset[np.int64(3)]["__key__"] == dataset[3]["__key__"]  # type: ignore[index]


def test_seeds_and_epochs_may_be_any_whole_numbers_of_64_bits(packed: Path) -> None:
    seed: Any = np.int64(3)
    dataset = shardio.ShardDataset(packed, shuffle=True, seed=seed, batch_size=20)
    plain = shardio.ShardDataset(packed, shuffle=True, seed=3, batch_size=20)
    found = dataset.read_batch(epoch=np.int64(2), step=np.int8(1))  # type: ignore[arg-type]
    assert found["__key__"] == plain.read_batch(epoch=2, step=1)["__key__"]
    assert keys_of(dataset.split(0.1, seed=np.int32(4))[0]) == keys_of(plain.split(0.1, seed=4)[0])  # type: ignore[arg-type]
    for wrong in (-1, 2**64, 1.0, "1", True):
        with pytest.raises(shardio.UsageError, match="seed="):
            shardio.ShardDataset(packed, seed=wrong)  # type: ignore[arg-type]
        with pytest.raises(shardio.UsageError, match="seed="):
            plain.split(0.5, seed=wrong)  # type: ignore[arg-type]
    with pytest.raises(shardio.UsageError, match="epoch=-1: it must be a whole number, at least 0"):
        plain.read_batch(epoch=-1, step=0)


def test_a_stand_in_comes_from_the_same_part(tmp_path: Path) -> None:
    """So that nothing that is held out gets into training, valid or not."""
    samples = {f"{i:03}": {"cls": b"%d" % i if i % 3 else b"none"} for i in range(90)}
    shard = make_shard(tmp_path / "a.tar", samples)
    dataset = shardio.ShardDataset(shard, batch_size=9, on_bad_sample="skip")
    for part in dataset.split(0.5, seed=1):
        own = {int(key) for batch in part for key in batch["__key__"] if int(key) % 3}
        labels = {label for batch in part for label in batch["label"].tolist()}
        assert labels <= own


def test_a_split_of_a_split_is_told_from_others(dataset: shardio.ShardDataset) -> None:
    parts = dataset.split(0.5)
    some = [*parts, *parts[0].split(0.5), *parts[1].split(0.5), *dataset.split(0.5, seed=1)]
    assert len({part.contents for part in some}) == len(some)
    assert dataset.split(0.5)[0].contents == parts[0].contents
    assert dataset.split(0.9)[0].contents == dataset.split(0.9, 0.1)[0].contents


def test_more_shards_than_files_may_be_open_are_read(images: Path, tmp_path: Path) -> None:
    """A process often has 1,024 descriptors, and an index that is mapped keeps one."""
    shardio.pack(images, tmp_path / "out", shards=400)
    code = (
        "import resource, sys, shardio; resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256));"
        "d = shardio.ShardDataset(sys.argv[1], shuffle='full', decode=False, batch_size=20);"
        "print(len({k for b in d for k in b['__key__']}))"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout == "600\n", done.stderr


@pytest.mark.parametrize("batch_size", [20, None])
def test_subsets_of_torch_are_right_or_refused(packed: Path, batch_size: int | None) -> None:
    """They number the samples by the length of the dataset, which counts what a loop yields.

    litData#145: a streaming dataset had no parts at all.
    """
    dataset = shardio.ShardDataset(packed, batch_size=batch_size)
    parts = random_split(dataset, [0.7, 0.3])
    if batch_size is None:
        found = [part[i]["__key__"] for part in parts for i in range(len(part))]
        assert sorted(found) == sorted(sample["__key__"] for sample in dataset)
        return
    sentence = r"number the 600 samples by len\(dataset\), which is 30.*use ds.split"
    for batched in (None, 4):
        with pytest.raises(shardio.UsageError, match=sentence):
            next(iter(DataLoader(parts[0], batch_size=batched, collate_fn=list)))


WORKERS = [{}, {"num_workers": 2}, {"num_workers": 2, "persistent_workers": True}]


def draw(sample: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
    return {"image": sample["image"], "drawn": rng.random()}


@pytest.mark.parametrize("options", WORKERS, ids=["alone", "workers", "persistent"])
def test_subsets_of_torch_have_new_crops_in_every_epoch(
    packed: Path, options: dict[str, Any]
) -> None:
    """AlbumentationsX#266, starVLA#470: a sample was augmented alike in every epoch."""
    dataset = shardio.ShardDataset(packed, transform=shardio.RandomResizedCrop(6), map=draw)
    part = Subset(dataset, range(12, 20))

    def epochs() -> list[tuple[torch.Tensor, list[float]]]:
        torch.manual_seed(3)
        loader = DataLoader(part, batch_size=2, **options)
        batches = [[*loader] for _ in range(3)]
        return [
            (
                torch.cat([b["image"] for b in epoch]),
                [n for b in epoch for n in b["drawn"].tolist()],
            )
            for epoch in batches
        ]

    found = epochs()
    assert len({number for _, drawn in found for number in drawn}) == 24
    for one, other in combinations((images for images, _ in found), 2):
        assert all((a != b).any() for a, b in zip(one, other, strict=True))
    assert [drawn for _, drawn in epochs()] == [drawn for _, drawn in found]
    assert torch.equal(dataset[12]["image"], dataset[12]["image"])


def test_targets_are_those_of_image_folder(images: Path, dataset: shardio.ShardDataset) -> None:
    folders = sorted(path.name for path in images.iterdir())
    assert dataset.class_to_idx == {name: number for number, name in enumerate(folders)}
    keys = [key for batch in dataset for key in batch["__key__"]]
    assert dataset.targets == [dataset.class_to_idx[Path(key).parent.name] for key in keys]
    shuffled = dataset.replace(shuffle="full", seed=3, batch_size=None, as_tuple=("image", "label"))
    part = shuffled.subset([599, 3, 70])
    assert part.targets == [dataset.targets[i] for i in (3, 70, 599)]
    assert part.targets == [part[i][1] for i in range(3)]
    assert dataset.subset([]).targets == []


def test_labels_of_validation_are_those_of_training_where_a_class_has_no_image(
    images: Path, dataset: shardio.ShardDataset, tmp_path: Path
) -> None:
    """ultralytics#13936: classes after the one without images had the labels of others."""
    shutil.copytree(images, tmp_path / "val")
    lacking, *_ = missing = [sorted(path.name for path in images.iterdir())[n] for n in (2, 6)]
    shutil.rmtree(tmp_path / "val" / lacking)
    for image in (tmp_path / "val" / missing[1]).iterdir():
        image.unlink()
    shardio.pack(tmp_path / "val", tmp_path / "out", shards=2, classes=dataset.classes)
    found = shardio.ShardDataset(tmp_path / "out", batch_size=20)
    assert found.class_to_idx == dataset.class_to_idx
    folders = [Path(key).parent.name for batch in found for key in batch["__key__"]]
    assert found.targets == [(dataset.class_to_idx or {})[folder] for folder in folders]
    assert {*folders} == {*(dataset.classes or ())} - {*missing}


def test_targets_that_are_not_there_are_refused(tmp_path: Path) -> None:
    samples = {
        f"{i}": {"txt": b"a", "json": b"[1]"} | ({"cls": b"1"} if i else {}) for i in range(3)
    }
    shard = make_shard(tmp_path / "a.tar", samples)
    assert shardio.ShardDataset(shard).class_to_idx is None
    with pytest.raises(shardio.UsageError, match="in the field of the entry 'label'; name it"):
        shardio.ShardDataset(shard, fields={"text": "txt"}).targets  # noqa: B018  it reads
    for label in ("json", "cls?"):
        with pytest.raises(shardio.UsageError, match="sample 0 has no class number in"):
            shardio.ShardDataset(shard, fields={"label": label}).targets  # noqa: B018


def test_a_transform_that_is_set_takes_effect_in_the_next_loop(packed: Path) -> None:
    """gromo#58: what was set for the part to validate was set for the other one, too."""
    dataset = shardio.ShardDataset(packed, batch_size=20)
    part, loop = dataset.subset(range(40)), iter(dataset)
    assert next(loop)["image"].shape[2:] == (8, 8)
    dataset.transform = shardio.Resize((4, 4))
    assert next(loop)["image"].shape[2:] == (8, 8)
    assert next(iter(dataset))["image"].shape[2:] == dataset[0]["image"].shape[1:] == (4, 4)
    assert next(iter(part))["image"].shape[2:] == (8, 8)
    with pytest.raises(shardio.UsageError, match="transform=3: it must be callable"):
        dataset.transform = 3  # type: ignore[assignment]
    assert isinstance(dataset.transform, shardio.Resize)


@pytest.mark.parametrize("kind", ["batches", "mixture", "loader", "subset"])
def test_workers_that_live_on_do_not_keep_a_transform_in_silence(packed: Path, kind: str) -> None:
    """pytorch#97326: what is set on a dataset does not reach its persistent workers."""
    dataset = shardio.ShardDataset(packed, batch_size=None if kind == "subset" else 20)
    wrap: dict[str, Any] = {
        "mixture": lambda: shardio.Mix([dataset], weights=[1]),
        "loader": lambda: shardio.Loader(dataset, threads=1),
        "subset": lambda: Subset(dataset, range(40)),
    }
    read = wrap.get(kind, lambda: dataset)()
    size = 20 if kind == "subset" else None

    def shapes(loader: Any) -> set[tuple[int, ...]]:
        return {tuple(batch["image"].shape[2:]) for batch in loader}

    loader = DataLoader(read, batch_size=size, num_workers=1, persistent_workers=True)
    assert shapes(loader) == shapes(loader) == {(8, 8)}
    dataset.transform = shardio.Resize((4, 4))
    with pytest.raises(
        shardio.UsageError, match=r"set after the workers .* keep the old one; make"
    ):
        shapes(loader)
    assert shapes(DataLoader(read, batch_size=size, num_workers=1)) == {(4, 4)}
    if kind == "batches":
        assert shapes(shardio.Loader(read, workers=1)) == {(4, 4)}


class Named(shardio.ShardDataset):
    """A dataset of a user's with an attribute of its own."""

    def __init__(self, folder: Path, name: str) -> None:
        super().__init__(folder, batch_size=20)
        self.name = name


def test_other_attributes_that_would_be_ignored_are_refused(packed: Path) -> None:
    dataset = shardio.ShardDataset(packed, batch_size=20)
    mix = shardio.Mix([dataset], weights=[1])
    for owner, name, way in (
        (dataset, "batch_size", r"ds.replace\(…\) opens the same samples"),
        (dataset, "shuffle", r"ds.replace\(…\) opens the same samples"),
        (dataset, "samples", r"ds.replace\(…\) opens the same samples with other arguments"),
        (dataset, "target_transform", r"ds.replace\(…\) opens the same samples"),
        (mix, "weights", "make another Mix"),
    ):
        with pytest.raises(shardio.UsageError, match=f"^{name} cannot be set.*{way}"):
            setattr(owner, name, None)
    named = Named(packed, "a")
    named.name = "b"
    with pytest.raises(shardio.UsageError, match="seed cannot be set, since a Named keeps"):
        named.seed = 3
