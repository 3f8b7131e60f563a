"""MixUp and CutMix give what their papers say, from labels that tell share and partner."""

from __future__ import annotations

import math
import pickle
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest
import torch

import shardio
from shardio.ops import softmax_cross_entropy

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

CLASSES = 12
BOTH = pytest.mark.parametrize("kind", [shardio.MixUp, shardio.CutMix])


def batch_of(count: int = 7, step: int = 0, dtype: torch.dtype = torch.uint8) -> dict[str, Any]:
    """A batch in which every sample has a class of its own, so that labels tell partners."""
    generator = torch.Generator().manual_seed(count)
    pixels = torch.randint(0, 256, (count, 20, 30, 3), generator=generator).to(dtype)
    return {
        "image": pixels.permute(0, 3, 1, 2),
        "label": torch.arange(count),
        "valid": torch.ones(count, dtype=torch.bool),
        "__key__": [*map(str, range(count))],
        "__epoch__": 3,
        "__step__": step,
    }


def partner_and_share(label: torch.Tensor, own: int) -> tuple[int, float]:
    """Who a sample was mixed with, and what it keeps; label i is that of sample i alone."""
    kept, others = float(label[own]), label.clone()
    others[own] = 0
    return (own, 1.0) if kept == 1 else (int(others.argmax()), kept)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float16, torch.float64])
@pytest.mark.parametrize("count", [2, 7, 8])
def test_mixup_blends_images_as_its_labels_say(dtype: torch.dtype, count: int) -> None:
    """The formula of Zhang and others (2018), as in torchvision's MixUp.

    kornia#4363: pictures of float16 became float32.
    """
    for step in range(5):
        batch = batch_of(count, step, dtype)
        mixed = shardio.MixUp(CLASSES, 0.8)(batch)
        assert mixed["label"].dtype == torch.float32
        torch.testing.assert_close(mixed["label"].sum(1), torch.ones(count))
        assert mixed["image"].dtype == dtype
        assert mixed["image"].is_contiguous(memory_format=torch.channels_last)
        for own in range(count):
            partner, kept = partner_and_share(mixed["label"][own], own)
            assert partner != own
            one, other = batch["image"][own].double(), batch["image"][partner].double()
            exact = kept * one + (1 - kept) * other
            away = (mixed["image"][own].double() - exact).abs().max()
            assert away <= {torch.uint8: 0.5001, torch.float16: 0.07}.get(dtype, 1e-4)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_cutmix_pastes_a_box_of_exactly_the_area_that_its_labels_say(dtype: torch.dtype) -> None:
    """The box of Yun and others (2019), as in torchvision's CutMix.

    CutMix-PyTorch#1: a box that the edges cut off was counted as the whole one.
    """
    clipped = 0
    for step in range(40):
        batch = batch_of(7, step, dtype)
        mixed = shardio.CutMix(CLASSES)(batch)
        assert mixed["image"].is_contiguous(memory_format=torch.channels_last)
        boxes = set()
        for own in range(7):
            partner, kept = partner_and_share(mixed["label"][own], own)
            pasted = (mixed["image"][own] != batch["image"][own]).any(0)
            if kept == 1:
                assert not pasted.any()
                continue
            rows, columns = pasted.any(1).nonzero(), pasted.any(0).nonzero()
            (top, bottom), (left, right) = (
                (int(each.min()), int(each.max()) + 1) for each in (rows, columns)
            )
            inside = (slice(None), slice(top, bottom), slice(left, right))
            assert torch.equal(mixed["image"][own][inside], batch["image"][partner][inside])
            assert kept == pytest.approx(1 - (bottom - top) * (right - left) / 600, abs=1e-6)
            boxes.add((top, bottom, left, right))
            clipped += top == 0 or left == 0
        assert len(boxes) <= 1  # one box for a batch
    assert clipped > 5


@BOTH
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_labels_are_exact_whatever_the_dtype_of_the_images(
    kind: Callable[..., Any], dtype: torch.dtype
) -> None:
    """kornia#4657: labels took the dtype of the images, and 999 became 1000 in bfloat16."""
    classes = [257, 999, 2049, 4097]
    batch = {**batch_of(4, dtype=dtype), "label": torch.tensor(classes)}
    for step in range(4):
        mixed = kind(5000)({**batch, "__step__": step})
        assert (mixed["image"].dtype, mixed["label"].dtype) == (dtype, torch.float32)
        torch.testing.assert_close(mixed["label"][:, classes].sum(1), torch.ones(4))
        own = mixed["label"][range(4), classes]
        assert (mixed["label"] > 0).sum(1).tolist() == [1 if each in (0, 1) else 2 for each in own]


@BOTH
@pytest.mark.parametrize("valid", ["1010110", "0000001", "0000000", "1111110"])
@pytest.mark.parametrize("name", ["valid", "has_label"])
def test_samples_that_are_not_valid_stay_as_they_are_and_are_nobodys_partner(
    kind: Callable[..., Any], name: str, valid: str
) -> None:
    flags = torch.tensor([flag == "1" for flag in valid])
    alone = int(flags.sum()) == 1
    for step in range(10):
        batch = {**batch_of(7, step), name: flags}
        mixed = kind(CLASSES)(batch)
        assert torch.equal(mixed[name], flags)
        for own in range(7):
            partner, _ = partner_and_share(mixed["label"][own], own)
            if flags[own] and not alone:
                assert flags[partner]
            else:
                assert torch.equal(mixed["image"][own], batch["image"][own])
                assert mixed["label"][own, own] == 1


@BOTH
def test_odd_batches_and_batches_of_one_are_mixed(kind: Callable[..., Any]) -> None:
    """timm's Mixup refuses odd batches (pytorch-image-models#1304)."""
    partners = [
        partner_and_share(kind(CLASSES)(batch_of(5, step))["label"][own], own)[0]
        for step in range(30)
        for own in range(5)
    ]
    assert {*partners} == {*range(5)}
    alone = kind(CLASSES)(batch_of(1))
    assert torch.equal(alone["image"], batch_of(1)["image"])
    assert alone["label"].argmax(1).tolist() == [0]


@BOTH
def test_the_batch_that_is_given_stays_as_it_is(kind: Callable[..., Any]) -> None:
    batch, same = batch_of(), batch_of()
    mixed = kind(CLASSES)(batch)
    assert torch.equal(batch["image"], same["image"])
    assert torch.equal(batch["label"], same["label"])
    assert mixed["__key__"] == same["__key__"]


@BOTH
def test_random_numbers_follow_from_seed_epoch_step_and_samples(kind: Callable[..., Any]) -> None:
    def digest(mix: Any = None, **changes: Any) -> bytes:
        torch.rand(1)  # which are not torch's
        return bytes((mix or kind(CLASSES))({**batch_of(), **changes})["image"].numpy().tobytes())

    assert digest() == digest() == digest(pickle.loads(pickle.dumps(kind(CLASSES))))  # noqa: S301
    others = [digest(kind(CLASSES, seed=1)), digest(__key__=[*"gfedcba"])]
    others += [digest(__epoch__=4), digest(__step__=1), digest()]
    assert len({*others}) == 5


@pytest.mark.parametrize("alpha", [0.2, 1.0, 4.0])
def test_shares_have_the_beta_distribution(alpha: float) -> None:
    batch = {**batch_of(2), "image": torch.zeros(2, 1, 1, 1)}
    mix = shardio.MixUp(2, alpha)
    shares = torch.stack([mix({**batch, "__step__": n})["label"][0, 0] for n in range(4000)])
    assert float(shares.mean()) == pytest.approx(0.5, abs=0.03)
    assert float(shares.var()) == pytest.approx(0.25 / (2 * alpha + 1), rel=0.1)


def test_labels_may_be_distributions_and_are_smoothed() -> None:
    soft = torch.rand(7, CLASSES).softmax(1).half()
    mix = shardio.MixUp(CLASSES, label_smoothing=0.1)
    mixed = mix({**batch_of(), "label": soft})["label"]
    hard = mix(batch_of())["label"]
    plain = shardio.MixUp(CLASSES)(batch_of())["label"]
    torch.testing.assert_close(hard, plain * 0.9 + 0.1 / CLASSES)
    torch.testing.assert_close(mixed, (plain[:, :7] @ soft.float()) * 0.9 + 0.1 / CLASSES)


def test_the_loss_of_mixed_labels_is_the_mixture_of_the_losses_of_valid_samples() -> None:
    """As both papers put it: kept × loss(own) + (1 - kept) × loss(partner)."""
    logits = torch.randn(7, CLASSES, generator=torch.Generator().manual_seed(0))
    flags = torch.tensor([True, True, False, True, True, True, False])
    mixed = shardio.MixUp(CLASSES)({**batch_of(), "valid": flags})
    losses = []
    for own in (0, 1, 3, 4, 5):
        partner, kept = partner_and_share(mixed["label"][own], own)
        costs = -logits[own].log_softmax(0)
        losses.append(kept * costs[own] + (1 - kept) * costs[partner])
    found = softmax_cross_entropy(logits, mixed["label"], valid=flags)
    torch.testing.assert_close(found, torch.stack(losses).mean())


@BOTH
def test_no_value_of_a_device_is_waited_for(kind: Callable[..., Any]) -> None:
    """A meta tensor has no values, so that whatever would read one raises."""
    batch = {
        name: value.to("meta") if isinstance(value, torch.Tensor) else value
        for name, value in batch_of().items()
    }
    mixed = kind(CLASSES)(batch)
    assert mixed["image"].is_meta
    assert (mixed["image"].dtype, mixed["label"].shape) == (torch.uint8, (7, CLASSES))


def test_a_choice_takes_each_operation_as_often_as_its_weight_says() -> None:
    operations = [shardio.MixUp(CLASSES), shardio.CutMix(CLASSES), shardio.MixUp(CLASSES, p=0)]
    choice = shardio.RandomChoice(operations, p=[1, 2, 1])
    counts: Counter[int] = Counter()
    for step in range(400):
        batch = batch_of(3, step)
        found = choice(batch)["image"]
        counts[
            next(n for n, one in enumerate(operations) if torch.equal(one(batch)["image"], found))
        ] += 1
    assert 70 < counts[0] < 130
    assert 170 < counts[1] < 240
    assert counts.total() == 400
    assert torch.equal(choice(batch_of())["image"], choice(batch_of())["image"])


def test_a_run_that_is_resumed_mixes_as_the_one_that_was_not(packed: Path) -> None:
    dataset = shardio.ShardDataset(
        packed, transform=shardio.RandomResizedCrop(16), shuffle=True, batch_size=9
    )
    mix = shardio.RandomChoice([shardio.MixUp(1000), shardio.CutMix(1000)])
    whole = [mix(batch) for batch in dataset]
    dataset.set_epoch(0)
    loop = iter(dataset)
    next(loop), next(loop)
    state = dataset.state_dict()
    again = dataset.replace()
    again.load_state_dict(state)
    rest = [mix(batch) for batch in again]
    assert len(rest) == len(whole) - 2
    for one, other in zip(whole[2:], rest, strict=True):
        assert torch.equal(one["image"], other["image"])
        assert torch.equal(one["label"], other["label"])


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (
            {"image": None},
            r"no tensor 'image' \('image', 'label', .*; name its entries with image=",
        ),
        (
            {"image": torch.zeros(7, 3, 4, 4, dtype=torch.int64)},
            "'image' must be uint8 or floating",
        ),
        ({"label": torch.zeros(7, 3)}, r"distributions \[7, 12\], not torch.float32 \[7, 3\]"),
        ({"label": torch.zeros(6, dtype=torch.int64)}, r"whole numbers \[7\] or distributions"),
        ({"label": torch.full((7,), 12)}, "class numbers from 12 to 12, and num_classes=12"),
        ({"label": torch.full((7,), -1)}, "class numbers from -1 to -1"),
        ({"label": torch.zeros(7, 12) * 1j}, r"distributions \[7, 12\], not torch.complex64"),
        ({"label": torch.full((7,), 12, dtype=torch.uint64)}, "class numbers from 12 to 12"),
        ({"valid": [True] * 7}, "no tensor 'valid'"),
        ({"valid": torch.ones(7)}, r"'valid' must be bool \[7\], not torch.float32 \[7\]"),
        ({"has_label": torch.ones(6, dtype=torch.bool)}, r"'has_label' must be bool \[7\]"),
        ({"__step__": None}, "no '__epoch__', '__step__' and '__key__'"),
        ({"__key__": None}, "no '__epoch__', '__step__' and '__key__'"),
    ],
)
def test_batches_that_cannot_be_mixed_are_refused(batch: dict[str, Any], message: str) -> None:
    with pytest.raises(shardio.UsageError, match=message):
        shardio.MixUp(CLASSES)({**batch_of(), **batch})


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: shardio.MixUp(0), "num_classes=0: it must be a whole number, at least 1"),
        (lambda: shardio.CutMix(2, 0), "alpha=0: it must be a number above 0"),
        (lambda: shardio.MixUp(2, p=2), "p=2: it must be a probability"),
        (lambda: shardio.MixUp(2, label_smoothing=-1), "label_smoothing=-1: it must be"),
        (lambda: shardio.RandomChoice([]), "MixUp and CutMix operations"),
        (lambda: shardio.RandomChoice(shardio.MixUp(2)), "a list of MixUp and CutMix"),  # type: ignore[arg-type]
        (lambda: shardio.RandomChoice([shardio.MixUp(2)], p=[1, 1]), "one weight for each"),
        (lambda: shardio.RandomChoice([shardio.MixUp(2)], p=[math.inf]), "one weight for each"),
        (lambda: shardio.RandomChoice([shardio.MixUp(2)] * 2, p=[1e308] * 2), "one weight for"),
        (lambda: shardio.RandomChoice([shardio.MixUp(2)], p=1), "one weight for"),  # type: ignore[arg-type]
        (lambda: shardio.RandomChoice([shardio.MixUp(2)] * 2, p=[3, -1]), "none below 0"),
    ],
)
def test_arguments_that_cannot_be_meant_are_refused(build: Callable[[], Any], message: str) -> None:
    with pytest.raises(shardio.UsageError, match=message):
        build()
