from __future__ import annotations

from typing import Any

import pytest
import torch

import shardio


def images() -> torch.Tensor:
    pixels = torch.arange(2 * 5 * 7 * 3, dtype=torch.uint8).reshape(2, 5, 7, 3)
    return pixels.permute(0, 3, 1, 2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_normalizing_is_subtracting_the_mean_and_dividing_by_the_deviation(
    dtype: torch.dtype,
) -> None:
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    expected = (images() / 255 - mean[:, None, None]) / std[:, None, None]
    found = shardio.Normalize(dtype=dtype)(images())
    assert found.dtype == dtype
    assert found.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(found, expected.to(dtype), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(shardio.Normalize(dtype=dtype)(images()[0]), found[0])


def test_own_means_count_channels() -> None:
    gray = shardio.Normalize(mean=[0.5], std=[0.25])
    assert gray(torch.full((1, 1, 1, 1), 255, dtype=torch.uint8)).item() == 2
    with pytest.raises(shardio.UsageError, match=r"shape \[B, 1, H, W\].*got \[2, 3, 5, 7\]"):
        gray(images())


def test_to_float_scales_to_one() -> None:
    found = shardio.to_float(images(), torch.float64)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, (images() / 255).double())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mean": (0.5,)}, "one number of each per channel"),
        ({"std": (1, 0, 1)}, "std above 0"),
        (
            {"mean": (123, 116, 103)},
            "must be between 0 and 1; divide a mean on the scale of 0 to 255",
        ),
        ({"dtype": torch.int32}, "must be floating point"),
    ],
)
def test_arguments_that_cannot_be_meant_are_refused(
    arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(shardio.UsageError, match=message):
        shardio.Normalize(**arguments)


def test_images_that_were_scaled_before_are_refused() -> None:
    for scale in (shardio.Normalize(), shardio.to_float):
        with pytest.raises(shardio.UsageError, match=r"must be uint8, not torch\.float32"):
            scale(images().float())
