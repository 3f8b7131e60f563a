"""What ShardDataset accepts; each refusal names the argument and what it must be."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, get_args

import numpy as np

from shardio.errors import UsageError
from shardio.fields.base import FieldType
from shardio.planning.epoch import Tail
from shardio.transforms import SizedTransform

OnBadSample = Literal["raise", "skip"]


def check_arguments(*, transform: object, decode: bool, **given: Any) -> dict[str, Any]:
    """Refuse arguments of ShardDataset that cannot be meant.

    Returns:
        All of them, whole numbers as int.

    Raises:
        UsageError: for the first of them.
    """
    for name in ("batch_size", "global_batch_size"):
        if given[name] is not None:
            given[name] = whole_number(name, given[name], least=1)
    for name in ("window", "streams", "max_pixels"):
        given[name] = whole_number(name, given[name], least=1)
    given["seed"] = check_seed(given["seed"])
    fields = given["fields"]
    mapped = fields is None or (
        isinstance(fields, Mapping)
        and all(isinstance(part, str | FieldType) for part in fields.values())
    )
    _check("fields", fields, mapped, "a mapping such as {'image': 'jpg;png'}")
    given["fields"] = None if fields is None else dict(fields)
    usable = callable(transform) or isinstance(transform, SizedTransform)
    usable = transform is None or (usable and not isinstance(transform, type))
    _check("transform", transform, usable, "callable, such as shardio.CenterCrop(224)")
    _check("transform", transform, decode or transform is None, "left out with decode=False")
    shuffle = given["shuffle"]
    _check("shuffle", shuffle, isinstance(shuffle, bool) or str(shuffle) == "full",
           "True, False or 'full'")  # fmt: skip
    _check("streams", given["streams"],
           given["streams"] == 1 or given["batch_size"] or given["global_batch_size"],
           "1 for a dataset of samples; give it batch_size or global_batch_size")  # fmt: skip
    _check("tail", given["tail"], given["tail"] in get_args(Tail), "'pad', 'drop' or 'short'")
    _check("on_bad_sample", given["on_bad_sample"],
           given["on_bad_sample"] in get_args(OnBadSample), "'raise' or 'skip'")  # fmt: skip
    for name in ("reduced_decoding", "allow_empty"):
        _check(name, given[name], isinstance(given[name], bool), "True or False")
    return {"transform": transform, "decode": decode, **given}


def whole_number(name: str, value: object, *, least: int) -> int:
    """An argument as int.

    Raises:
        UsageError: it is not a whole number, or less than the least.
    """
    whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
    if not whole or value < least:  # type: ignore[operator]
        raise UsageError(f"{name}={value!r}: it must be a whole number, at least {least}")
    return int(value)  # type: ignore[call-overload,no-any-return]


def check_seed(seed: object) -> int:
    """A seed as int.

    Raises:
        UsageError: it is not a whole number of 64 bits.
    """
    number = whole_number("seed", seed, least=0)
    _check("seed", number, number < 1 << 64, "below 2**64")
    return number


def _check(name: str, value: object, good: object, wanted: str) -> None:
    if not good:
        raise UsageError(f"{name}={value!r}: it must be {wanted}")
