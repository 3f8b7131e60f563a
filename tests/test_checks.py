"""Checks of arguments, through the public functions that take them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import shardio

WHOLE_NUMBERS: dict[str, Callable[[Path, Any], object]] = {
    "batch_size": lambda packed, n: shardio.ShardDataset(packed, batch_size=n),
    "window": lambda packed, n: shardio.ShardDataset(packed, window=n),
    "max_pixels": lambda packed, n: shardio.info(packed, max_pixels=n),
    "seed": lambda _, n: shardio.PackOptions(seed=n),
    "resize": lambda _, n: shardio.CenterCrop(1, resize=n),
    "threads": lambda packed, n: shardio.Loader(
        shardio.ShardDataset(packed, batch_size=1), threads=n
    ),
}


@pytest.mark.parametrize("name", WHOLE_NUMBERS)
@pytest.mark.parametrize("value", [1.5, "8", True, np.bool_(True), [1]])
def test_what_is_not_a_whole_number_is_refused_alike_everywhere(
    name: str, value: object, packed: Path
) -> None:
    with pytest.raises(shardio.UsageError) as caught:
        WHOLE_NUMBERS[name](packed, value)
    assert str(caught.value).startswith(f"{name}={value!r}: it must be a whole number")


@pytest.mark.parametrize("name", WHOLE_NUMBERS)
def test_whole_numbers_of_numpy_are_taken_everywhere(name: str, packed: Path) -> None:
    WHOLE_NUMBERS[name](packed, np.int64(2))


@pytest.mark.parametrize("flip", [-0.1, 1.1, float("nan"), "0.5", None])
def test_what_is_not_a_probability_is_refused(flip: Any) -> None:
    with pytest.raises(shardio.UsageError, match=r"flip=.*: it must be a probability between 0 an"):
        shardio.Resize((8, 8), flip=flip)


def test_a_choice_names_the_choices() -> None:
    for value in ("ignore", None, ["raise"]):
        with pytest.raises(shardio.UsageError, match=r"on_error=.*: it must be 'raise' or 'skip'"):
            shardio.PackOptions(on_error=value)  # type: ignore[arg-type]
