"""A mixture has exact shares, and each source stays exact in epochs of its own."""

from __future__ import annotations

import io
import time
from collections import Counter
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

import shardio
from shardio.storage.local import LocalShard
from shardio.testing import make_shard


@pytest.fixture
def parts(packed: Path) -> tuple[shardio.ShardDataset, ...]:
    dataset = shardio.ShardDataset(
        packed, shuffle=True, batch_size=20, seed=1, transform=shardio.RandomResizedCrop(8)
    )
    return dataset.split(0.5, 0.3, 0.2)


def draws_of(mix: Any, epochs: int) -> list[tuple[int, str]]:
    """Source and key of each sample."""
    return [
        draw
        for _ in range(epochs)
        for batch in mix
        for draw in zip(batch["__source__"].tolist(), batch["__key__"], strict=True)
    ]


def test_each_source_is_exact_in_its_own_epochs(parts: tuple[shardio.ShardDataset, ...]) -> None:
    mix = shardio.Mix(parts, weights=[0.2, 0.3, 0.5])
    draws = draws_of(mix, 9)
    for source, part in enumerate(parts):
        own = [key for number, key in draws if number == source]
        part.set_epoch(0)
        wanted: list[str] = []
        while len(wanted) < len(own):
            for batch in part:
                pairs = zip(batch["__key__"], batch["valid"].tolist(), strict=True)
                wanted += [key for key, valid in pairs if valid]
        assert own == wanted[: len(own)]


def test_a_mixture_of_one_is_that_source(parts: tuple[shardio.ShardDataset, ...]) -> None:
    mix = shardio.Mix([parts[0]], weights=[1.0])
    assert len(mix) == len(parts[0]) == 15
    for _ in range(2):  # epochs have crops of their own
        for mixed, alone in zip(mix, parts[0], strict=True):
            assert mixed["__key__"] == alone["__key__"]
            assert torch.equal(mixed["image"], alone["image"])


def test_shares_stay_within_one_sample_in_every_thousand(
    parts: tuple[shardio.ShardDataset, ...],
) -> None:
    weights = [0.617, 0.2214, 0.1616]
    sources = [source for source, _ in draws_of(shardio.Mix(parts, weights=weights), 6)]
    assert len(sources) > 2000
    for start in range(len(sources) - 1000):
        counts = Counter(sources[start : start + 1000])
        assert all(abs(counts[s] - 1000 * weight) <= 1 for s, weight in enumerate(weights))


def test_an_epoch_lasts_until_the_first_or_all_sources_end(
    parts: tuple[shardio.ShardDataset, ...],
) -> None:
    weights = [0.25, 0.25, 0.5]  # they end after 1200, 720 and 240 samples
    first = shardio.Mix(parts, weights=weights, stop="first")
    everything = shardio.Mix(parts, weights=weights, stop="all")
    assert (len(first), len(everything)) == (12, 60)
    assert Counter(draws_of(first, 1)).most_common(1)[0][1] == 1
    keys = {key for _, key in draws_of(everything, 1)}
    assert len(keys) == 600


def test_batches_are_made_like_those_of_a_dataset(parts: tuple[shardio.ShardDataset, ...]) -> None:
    mix = shardio.Mix(parts, weights=[0.2, 0.3, 0.5])
    cases: tuple[dict[str, Any], ...] = (
        {},
        {"num_workers": 2, "multiprocessing_context": "fork"},
    )
    for options in cases:
        mix.set_epoch(3)
        batch = next(iter(DataLoader(mix, batch_size=None, **options)))
        assert batch["image"].shape == (20, 3, 8, 8)
        assert batch["image"].is_contiguous(memory_format=torch.channels_last)
        assert batch["label"].dtype == torch.int64
        assert batch["__source__"].dtype == torch.int64
        assert (batch["__epoch__"], batch["__step__"]) == (3, 0)
        for slot, key in enumerate(batch["__key__"]):
            assert parts[batch["__source__"][slot]].by_key(key)["label"] == batch["label"][slot]


def test_samples_and_workers_give_the_same_mixture(packed: Path) -> None:
    parts = shardio.ShardDataset(packed, shuffle=True, decode=False).split(0.5)
    mix = shardio.Mix(parts, weights=[0.3, 0.7])
    alone = [(sample["__source__"], sample["__key__"]) for sample in mix]
    mix.set_epoch(0)
    loader = DataLoader(mix, batch_size=None, num_workers=3, multiprocessing_context="fork")
    assert [(sample["__source__"], sample["__key__"]) for sample in loader] == alone
    assert len(alone) == len(mix)


def test_a_mixture_resumes_after_any_batch(parts: tuple[shardio.ShardDataset, ...]) -> None:
    mix = shardio.Mix(parts, weights=[0.2, 0.3, 0.5])
    epochs = [draws_of(mix, 1), draws_of(mix, 1)]
    mix.set_epoch(1)
    loader = DataLoader(mix, batch_size=None, num_workers=2, multiprocessing_context="fork")
    *_, last = islice(loader, 5)
    again = shardio.Mix(parts, weights=[0.2, 0.3, 0.5])
    again.load_state_dict(mix.state_dict(last))
    assert draws_of(again, 1) == epochs[1][100:]
    with pytest.raises(shardio.UsageError, match=r"weights was '0\.2,0\.3,0\.5', is '0\.5,"):
        shardio.Mix(parts, weights=[0.5, 0.3, 0.2]).load_state_dict(mix.state_dict(last))
    others = [part.replace(window=2) for part in parts]
    for sources in (parts[::-1], others):
        with pytest.raises(shardio.UsageError, match="sources was"):
            shardio.Mix(sources, weights=[0.2, 0.3, 0.5]).load_state_dict(mix.state_dict(last))
    whole = shardio.Mix(parts, weights=[0.2, 0.3, 0.5], stop="all")
    with pytest.raises(shardio.UsageError, match="stop was 'first', is 'all'"):
        whole.load_state_dict(mix.state_dict(last))


def test_a_source_of_fewer_samples_than_workers_is_mixed_in(tmp_path: Path) -> None:
    """Megatron-Energon#145: a source that had no sample for some worker crashed."""
    for name, count in (("many", 20), ("one", 1)):
        samples = {f"{name}{n}": {"cls": b"1"} for n in range(count)}
        make_shard(tmp_path / f"{name}.tar", samples)
    keys = []
    for rank in range(4):
        share: dict[str, Any] = {"global_batch_size": 4, "rank": rank, "world_size": 4}
        many, one = (
            shardio.ShardDataset(tmp_path / f"{name}.tar", shuffle=True, **share)
            for name in ("many", "one")
        )
        mix = shardio.Mix([many, one], weights=[0.8, 0.2], stop="all")
        batches = [*DataLoader(mix, batch_size=None, num_workers=2 * (rank % 2))]
        assert len(batches) == len(mix) == 7
        keys += [key for batch in batches for key in batch["__key__"]]
    counts = Counter(keys)
    assert counts["one0"] == pytest.approx(28 / 5, abs=1)
    assert {key for key in counts if key != "one0"} == {f"many{n}" for n in range(20)}


def test_weights_of_any_sum_are_shares(parts: tuple[shardio.ShardDataset, ...]) -> None:
    mixed = [shardio.Mix(parts, weights=weights) for weights in ([0.2, 0.3, 0.5], [2, 3, 5])]
    assert mixed[0].state_dict() == mixed[1].state_dict()
    assert draws_of(mixed[0], 3) == draws_of(mixed[1], 3)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([0, 0], "each must be at least 1e-05 of their sum; leave out"),
        ([float("inf"), 1], "each must be at least 1e-05"),
        ([1.5, -0.5], "each must be at least 1e-05 of their sum; leave out"),
        ([1.0, 0.0], "leave out a source that is to give nothing"),
        ([1e6, 1], "each must be at least 1e-05 of their sum; leave out"),
        ([1 - 1e-6, 1e-6], "each must be at least 1e-05 of their sum; leave out"),
        ([float("nan"), 1], "each must be at least 1e-05"),
        (None, "weights=None: give a list, one for each source"),
        ([1.0], "1 weights for 2 sources"),
        (["a", "b"], "each must be a number"),
        ([0.2, 0.3, 0.5], "3 weights for 2 sources"),
    ],
)
def test_weights_that_are_no_shares_are_explained(
    parts: tuple[shardio.ShardDataset, ...], weights: Any, message: str
) -> None:
    with pytest.raises(shardio.UsageError, match=message):
        shardio.Mix(parts[:2], weights=weights)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 10}, "source 1 has other batch_size than source 0: 10 and 20"),
        ({"rank": 0, "world_size": 2}, "source 1 has other rank and world_size than source 0"),
        ({"fields": {"image": "png"}}, "source 1 has other entries than source 0"),
        ({"streams": 4}, "source 1 has streams=4"),
    ],
)
def test_sources_that_do_not_fit_together_are_refused(
    packed: Path, options: dict[str, Any], message: str
) -> None:
    sources = [
        shardio.ShardDataset(packed, batch_size=20),
        shardio.ShardDataset(packed, **{"batch_size": 20, **options}),
    ]
    with pytest.raises(shardio.UsageError, match=message):
        shardio.Mix(sources, weights=[0.5, 0.5])


def test_other_sources_that_cannot_be_mixed_are_refused(
    packed: Path, images: Path, tmp_path: Path, parts: tuple[shardio.ShardDataset, ...]
) -> None:
    with pytest.raises(shardio.UsageError, match="source 1 has no samples"):
        shardio.Mix([parts[0], parts[0].subset([])], weights=[0.5, 0.5])
    with pytest.raises(
        shardio.UsageError, match=r"Mix takes a list of datasets, not ShardDataset\("
    ):
        shardio.Mix(parts[0], weights=[1.0])  # type: ignore[arg-type]
    with pytest.raises(shardio.UsageError, match="source 0 is not a ShardDataset"):
        shardio.Mix([str(packed)], weights=[1.0])  # type: ignore[list-item]
    with pytest.raises(shardio.UsageError, match="stop='last': it must be 'first' or 'all'"):
        shardio.Mix(parts, weights=[0.2, 0.3, 0.5], stop="last")  # type: ignore[arg-type]
    (tmp_path / "images").mkdir()
    (tmp_path / "images/other").symlink_to(images / "class00")
    shardio.pack(tmp_path / "images", tmp_path / "out", shards=1)
    other = shardio.ShardDataset(tmp_path / "out", batch_size=20)
    with pytest.raises(
        shardio.UsageError, match="packed with different classes, so that equal labels mean"
    ):
        shardio.Mix([parts[0], other], weights=[0.5, 0.5])
    (tmp_path / "bare").mkdir()
    for shard in packed.glob("*.tar"):
        (tmp_path / "bare" / shard.name).symlink_to(shard)
    bare = shardio.ShardDataset(tmp_path / "bare", batch_size=20)
    with pytest.raises(shardio.UsageError, match="source 1 has no class names, which other"):
        shardio.Mix([parts[0], bare], weights=[0.5, 0.5])
    with pytest.raises(shardio.UsageError, match="less than one global batch of 700"):
        len(shardio.Mix([shardio.ShardDataset(packed, batch_size=700)], weights=[1.0]))


def test_images_of_two_sizes_are_refused_by_name(packed: Path) -> None:
    sources = [
        shardio.ShardDataset(packed, batch_size=20, transform=shardio.Resize((size, size)))
        for size in (4, 6)
    ]
    with pytest.raises(
        shardio.UsageError, match=r"'image' is 3×4×4 .* in source 0 and 3×6×6 .* source 1"
    ):
        next(iter(shardio.Mix(sources, weights=[0.5, 0.5])))


@pytest.mark.parametrize(
    ("other", "decode", "what"),
    [("txt", True, "text"), ("bin", True, "bytes"), ("npy", False, "bytes")],
)
def test_sources_whose_entries_are_of_different_kinds_are_refused(
    tmp_path: Path, other: str, decode: bool, what: str
) -> None:
    array = io.BytesIO()
    np.save(array, np.zeros(3))
    fields = ["npy", other]
    sources = [
        shardio.ShardDataset(
            make_shard(tmp_path / f"{number}.tar", {"a": {field: array.getvalue()}}),
            fields={"x": field},
            batch_size=2,
            decode=decode or not number,
        )
        for number, field in enumerate(fields)
    ]
    message = rf"'x' is a tensor in source 0 and {what} in source 1; choose other fields"
    with pytest.raises(shardio.UsageError, match=message):
        shardio.Mix(sources, weights=[0.5, 0.5])


@pytest.mark.parametrize("stop", ["first", "all"])
def test_an_epoch_beyond_those_of_a_mixture_is_refused(packed: Path, stop: Any) -> None:
    parts = shardio.ShardDataset(packed, batch_size=20).split(0.5)
    mix = shardio.Mix(parts, weights=[0.3, 0.7], stop=stop)
    with pytest.raises(shardio.UsageError, match=r"epoch=\d+: it must be below \d+") as caught:
        mix.set_epoch(1 << 58)
    last = int(str(caught.value).split()[-1]) - 1
    mix.set_epoch(last)
    assert draws_of(mix, 1)
    with pytest.raises(shardio.UsageError, match="it must be below"):
        mix.load_state_dict(mix.state_dict() | {"epoch": last + 1})


def test_epochs_of_a_dataset_have_64_bits(packed: Path) -> None:
    dataset = shardio.ShardDataset(packed, batch_size=20, shuffle=True)
    dataset.set_epoch((1 << 64) - 1)
    next(iter(dataset))
    for take in (dataset.set_epoch, lambda epoch: dataset.read_batch(epoch=epoch, step=0)):
        with pytest.raises(shardio.UsageError, match="it must be below"):
            take(1 << 64)


def test_a_mixture_takes_its_rank_when_it_is_read(
    packed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = shardio.ShardDataset(packed, global_batch_size=20).split(0.5)
    mix = shardio.Mix(parts, weights=[0.5, 0.5])
    whole = draws_of(mix, 1)
    monkeypatch.setenv("WORLD_SIZE", "2")
    found = []
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        mix.set_epoch(0)
        assert mix.batch_size == 10
        found.append(draws_of(mix, 1))
    assert sorted(found[0] + found[1]) == sorted(whole)


def test_bad_samples_of_a_source_that_comes_twice_are_counted_once(tmp_path: Path) -> None:
    samples = {f"{i:03}": {"cls": b"%d" % i if i % 10 else b"none"} for i in range(100)}
    shard = make_shard(tmp_path / "a.tar", samples)
    dataset = shardio.ShardDataset(shard, batch_size=10, on_bad_sample="skip")
    mix = shardio.Mix([dataset, dataset], weights=[0.5, 0.5])
    invalid = sum(int((~batch["valid"]).sum()) for batch in mix)
    assert mix.num_bad_samples == invalid > 0


def test_shards_of_sources_are_read_ahead(packed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: set[tuple[int, str]] = set()  # each source opens shards of its own

    def read_ahead(shard: LocalShard, start: int, end: int) -> None:
        if end - start > 2000:  # more than a sample
            asked.add((id(shard), shard.name))

    monkeypatch.setattr(LocalShard, "read_ahead", read_ahead)
    parts = [
        shardio.ShardDataset(packed, shuffle=shuffle, window=2, decode=False, batch_size=20)
        for shuffle in (True, False)
    ]
    steps = iter(shardio.Mix(parts, weights=[0.5, 0.5]))
    next(steps)
    for _ in range(1000):
        if len(asked) == 8:  # two windows of each
            return
        time.sleep(0.01)
    pytest.fail(f"asked for {asked}")
