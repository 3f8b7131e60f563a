"""Weighted draws and epochs of another size, as a training loop gets them."""

from __future__ import annotations

import json
import pickle
from collections import Counter
from collections.abc import Iterable
from itertools import chain
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch.utils.data import DataLoader

import shardio
from shardio.cli import commands


def pack(root: Path, counts: dict[str, int], shards: int) -> Path:
    """Pack small images; folders are their classes."""
    _, png = cv2.imencode(".png", np.zeros((4, 4, 3), np.uint8))
    for name, count in counts.items():
        (root / "images" / name).mkdir(parents=True)
        for number in range(count):
            (root / "images" / name / f"{number:03}.png").write_bytes(png.tobytes())
    shardio.pack(root / "images", root / "out", shards=shards)
    return root / "out"


@pytest.fixture(scope="module")
def uneven(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pack(tmp_path_factory.mktemp("uneven"), {"cat": 60, "dog": 20}, shards=5)


def test_an_error_of_the_index_is_not_blamed_on_the_function(
    uneven: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> Iterable[str]:
        yield "a"
        raise OSError("Input/output error")

    monkeypatch.setattr("shardio.reading.settings.list_keys", broken)
    with pytest.raises(OSError, match=r"^Input/output error"):
        list(open_dataset(uneven, weights=lambda _key, _label: 1.0))


def open_dataset(folder: Path, **options: Any) -> shardio.ShardDataset:
    some: dict[str, Any] = {"shuffle": True, "decode": False, "batch_size": 8, "tail": "short"}
    return shardio.ShardDataset(folder, **some | options)


def count_keys(batches: Iterable[dict[str, Any]]) -> Counter[str]:
    return Counter(key for batch in batches for key in batch["__key__"])


def count_classes(batches: Iterable[dict[str, Any]]) -> Counter[str]:
    return Counter(key.partition("/")[0] for batch in batches for key in batch["__key__"])


def test_classes_come_as_often_as_their_weights_say(uneven: Path) -> None:
    balanced = count_classes(open_dataset(uneven, weights="balanced", epoch_size=120))
    assert balanced == {"cat": 60, "dog": 60}
    by_name = count_classes(open_dataset(uneven, weights={"cat": 1, "dog": 9}))
    by_number = count_classes(open_dataset(uneven, weights={0: 1, 1: 9}))
    by_key = count_classes(
        open_dataset(uneven, weights=lambda key, _: 9 if key.startswith("dog/") else 1)
    )
    by_label = count_classes(open_dataset(uneven, weights=lambda _, label: 1 + 8 * label))
    assert by_name == by_number == by_key == by_label
    assert by_name["dog"] == pytest.approx(60, abs=3)
    assert count_classes(open_dataset(uneven, weights={"cat": 0, "dog": 1})) == {"dog": 80}


def test_a_part_keeps_the_weights_of_its_samples(uneven: Path) -> None:
    weights = np.zeros(80)
    whole = open_dataset(uneven, shuffle=False, weights=None)
    keys = [key for batch in whole for key in batch["__key__"]]
    weights[[3, 50, 51]] = 1, 1, 2
    dataset = open_dataset(uneven, weights=weights)
    assert count_keys(dataset) == {keys[3]: 20, keys[50]: 20, keys[51]: 40}
    part = dataset.subset(range(40, 80))
    assert count_keys(part) == pytest.approx({keys[50]: 40 / 3, keys[51]: 80 / 3}, abs=1)
    within = part.subset([11, 12])
    assert count_keys(within) == {keys[51]: 2}
    assert count_keys(within.replace(epoch_size=7)) == {keys[51]: 7}
    assert count_keys(within.replace(weights=[1, 1])) == {keys[51]: 1, keys[52]: 1}
    assert count_keys(within.replace(weights=None, epoch_size=None)) == {keys[51]: 1, keys[52]: 1}


@pytest.mark.parametrize("ranks", [2, 4])
def test_ranks_share_the_draws_of_one_rank(uneven: Path, ranks: int) -> None:
    """accelerate#2865: with WeightedRandomSampler each rank drew for itself."""
    options: dict[str, Any] = {"weights": "balanced", "epoch_size": 120, "global_batch_size": 8}
    alone = [b["__key__"] for b in open_dataset(uneven, batch_size=None, **options)]
    shares = [
        [
            batch["__key__"]
            for batch in open_dataset(
                uneven, **options | {"batch_size": None, "rank": n, "world_size": ranks}, tail="pad"
            )
        ]
        for n in range(ranks)
    ]
    assert [sorted(chain(*parts)) for parts in zip(*shares, strict=True)] == [
        sorted(step) for step in alone
    ]
    assert count_classes({"__key__": keys} for part in shares for keys in part) == {
        "cat": 60,
        "dog": 60,
    }


def test_losses_of_a_network_are_weights(uneven: Path) -> None:
    losses = [1.0 + at for at in range(80)]
    tensor = torch.tensor(losses, requires_grad=True)
    drawn = [open_dataset(uneven, weights=weights) for weights in (losses, tensor)]
    assert [batch["__key__"] for batch in drawn[0]] == [batch["__key__"] for batch in drawn[1]]


def test_weights_of_classes_in_place_of_samples_are_refused(uneven: Path) -> None:
    """soundbay#49: two weights of classes drew the first two samples for ever."""
    with pytest.raises(shardio.UsageError, match="weights has 2 numbers for 80 samples; give one"):
        open_dataset(uneven, weights=[1 / 60, 1 / 20])


def test_a_function_is_called_once_and_need_not_go_to_workers(uneven: Path) -> None:
    calls: list[str] = []

    def weigh(key: str, label: int | None) -> float:
        calls.append(key)
        return 1.0 if label else 2.0

    dataset = open_dataset(uneven, weights=weigh)
    alone = count_keys(dataset)
    assert len(calls) == 80
    dataset.set_epoch(0)
    loader = DataLoader(
        pickle.loads(pickle.dumps(dataset)),  # noqa: S301  our own
        batch_size=None,
        num_workers=2,
        multiprocessing_context="spawn",
    )
    assert count_keys(loader) == alone
    assert len(calls) == 80


def test_short_epochs_deliver_each_order_whole_before_the_next(uneven: Path) -> None:
    dataset = open_dataset(uneven, epoch_size=24)
    assert len(dataset) == 3
    keys = [key for _ in range(10) for batch in dataset for key in batch["__key__"]]
    assert len({*keys[:80]}) == len({*keys[80:160]}) == len({*keys[160:240]}) == 80
    whole = [key for batch in open_dataset(uneven) for key in batch["__key__"]]
    assert keys[:80] == whole


def test_a_state_is_refused_with_other_weights_and_old_states_are_taken(uneven: Path) -> None:
    dataset = open_dataset(uneven, weights="balanced", epoch_size=40)
    state = dataset.state_dict(next(iter(dataset)))
    assert len(json.dumps(state)) < 1000
    dataset.load_state_dict(state)
    assert len([*dataset]) == 4
    for options in ({"weights": {0: 1, 1: 2}, "epoch_size": 40}, {"weights": "balanced"}, {}):
        with pytest.raises(
            shardio.UsageError, match=r"the state belongs to other batches: .*weights"
        ):
            open_dataset(uneven, **options).load_state_dict(state)
    plain = open_dataset(uneven)
    for other in (
        dataset,
        open_dataset(uneven, epoch_size=40),
    ):  # names that `plain` has no use for
        with pytest.raises(
            shardio.UsageError, match=r"the state belongs.*(weights|epoch_size) was"
        ):
            plain.load_state_dict(other.state_dict())
    state = plain.state_dict(next(iter(plain)))
    assert state.keys() == {
        "version", "epoch", "step", "shards", "samples", "contents", "global_batch_size", "seed",
        "shuffle", "window", "streams", "tail",
    }  # fmt: skip
    with pytest.raises(shardio.UsageError, match="epoch_size was None, is 40"):
        open_dataset(uneven, epoch_size=40).load_state_dict(state)


def test_the_dataset_says_that_it_draws(uneven: Path) -> None:
    assert repr(open_dataset(uneven, weights="balanced")).endswith(
        "80 samples in 5 shards; 80 an epoch, weighted draws)"
    )
    assert repr(open_dataset(uneven, epoch_size=24)).endswith("in 5 shards; 24 an epoch)")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"weights": "equal"},
            "weights='equal': it must be 'balanced', a mapping of labels, a fun",
        ),
        ({"weights": {"cat": 1}}, r"weights has none for the label 1 \('dog'\)"),
        ({"weights": {0: 1, 1: 1, 77: 1}}, "weights has the label 77, which is no class of"),
        ({"weights": {"cat": 1, "dgo": 1}}, "weights has the label 'dgo', which is no class of"),
        ({"weights": {"cat": 1, "dog": -1}}, "weights gives sample .* the weight -1"),
        ({"weights": {"cat": 0, "dog": 0}}, "weights gives every sample the weight 0"),
        ({"weights": [1.0] * 79}, "weights has 79 numbers for 80 samples"),
        ({"weights": [float("nan")] * 80}, "weights gives sample 0 the weight nan"),
        ({"weights": [[1.0]] * 80}, "weights are not numbers"),
        ({"weights": lambda _key, _label: "much"}, "weights are not numbers"),
        ({"weights": lambda _key: 1.0}, "function given as weights raised TypeError: .*; it takes"),
        ({"weights": [10**400] * 80}, "weights are not numbers"),
        ({"weights": {0: 1, "cat": 2, "dog": 1}}, r"weights has two for the label 0 \('cat'\)"),
        ({"weights": {"1" * 5000: 1}}, "weights has the label '1+.*, which is no class"),
        ({"epoch_size": 10**30}, r"epoch_size=10+: it must be at most 2\*\*48"),
        ({"weights": "balanced", "streams": 4}, "weights with streams=4: each stream fills an eq"),
        ({"epoch_size": 0}, "epoch_size=0: it must be a whole number, at least 1"),
        ({"epoch_size": 2, "streams": 4}, "streams=4 are more than its 2 samples"),
    ],
)
def test_what_are_no_weights_is_refused(uneven: Path, options: Any, message: str) -> None:
    with pytest.raises(shardio.UsageError, match=message):
        open_dataset(uneven, **options)


def test_samples_without_labels_are_weighed_by_key_alone(tmp_path: Path) -> None:
    out = pack(tmp_path, {".": 12}, shards=2)
    with pytest.raises(shardio.UsageError, match="sample 0 has no label in the field 'cls'"):
        open_dataset(out, weights="balanced")
    drawn = open_dataset(out, weights=lambda _, label: float(label is None))
    assert set(count_keys(drawn).values()) == {1}


def test_a_mixture_takes_sources_with_weights_and_epochs_of_their_own(uneven: Path) -> None:
    drawn = open_dataset(uneven, weights={"cat": 0, "dog": 1}, epoch_size=16)
    short = open_dataset(uneven, epoch_size=24)
    mix = shardio.Mix([drawn, short], weights=[0.5, 0.5], stop="all")
    assert len(mix) == 6  # until the epoch of 24 samples has ended
    batches = [*mix]
    of_drawn = [
        key
        for batch in batches
        for key, source in zip(batch["__key__"], batch["__source__"].tolist(), strict=True)
        if source == 0
    ]
    assert count_keys([{"__key__": of_drawn[:16]}]) == count_keys(drawn)
    other = shardio.Mix([short, drawn], weights=[0.5, 0.5], stop="all")
    with pytest.raises(shardio.UsageError, match="sources was"):
        other.load_state_dict(mix.state_dict(batches[0]))


def test_plan_says_how_often_each_class_comes(uneven: Path) -> None:
    found = shardio.plan(uneven, batch_size=8, weights="balanced", epoch_size=120, shuffle=True)
    assert found.exact
    assert found.drawn_classes is not None
    assert [(each.label, each.samples, each.draws) for each in found.drawn_classes] == [
        ("0 ('cat')", 60, 60),
        ("1 ('dog')", 20, 60),
    ]
    options = ["--batch-size", "8", "--shuffle", "true"]
    done = CliRunner().invoke(
        commands, ["plan", str(uneven), *options, "--weights", "cat=1,dog=3", "--epoch-size", "40"]
    )
    text = " ".join(done.output.split())
    assert "An epoch has 40 weighted draws. 5 steps of 8" in text
    assert "1 ('dog')" in text
    assert "weights=cat=1,dog=3" in text
    done = CliRunner().invoke(commands, ["plan", str(uneven), *options, "--weights", "cat"])
    assert done.exit_code == 2
    for epoch in range(3):
        some = shardio.plan(uneven, batch_size=8, epoch_size=50, epoch=epoch, shuffle=True)
        assert (some.exact, some.samples, some.epoch_samples) == (True, 80, 50)
        assert some.drawn_classes is None
