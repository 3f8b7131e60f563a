"""What ShardDataset accepts; each refusal names the argument and what it must be."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, get_args

import numpy as np

from shardio.errors import UsageError
from shardio.plan.tail import Tail
from shardio.transforms import SizedTransform

OnBadSample = Literal["raise", "skip"]


def check_arguments(*, transform: object, decode: bool, **given: Any) -> None:
    """Refuse arguments of ShardDataset that cannot be meant.

    Raises:
        UsageError: for the first of them.
    """
    for name in ("batch_size", "global_batch_size"):
        whole = given[name] is None or _is_whole(given[name])
        _check(name, given[name], whole, "a whole number, at least 1")
    _check("seed", given["seed"], isinstance(given["seed"], int | np.integer), "a whole number")
    fields = given["fields"]
    mapped = fields is None or (
        isinstance(fields, Mapping) and all(isinstance(part, str) for part in fields.values())
    )
    _check("fields", fields, mapped, "a mapping such as {'image': 'jpg;png'}")
    usable = callable(transform) or isinstance(transform, SizedTransform)
    usable = transform is None or (usable and not isinstance(transform, type))
    _check("transform", transform, usable, "callable, such as shardio.CenterCrop(224)")
    _check("transform", transform, decode or transform is None, "left out with decode=False")
    _check("shuffle", given["shuffle"], given["shuffle"] in (True, False, "full"),
           "True, False or 'full'")  # fmt: skip
    _check("window", given["window"], _is_whole(given["window"]), "at least 1 shard")
    _check("streams", given["streams"], _is_whole(given["streams"]), "at least 1")
    _check("tail", given["tail"], given["tail"] in get_args(Tail), "'pad', 'drop' or 'short'")
    _check("on_bad_sample", given["on_bad_sample"],
           given["on_bad_sample"] in get_args(OnBadSample), "'raise' or 'skip'")  # fmt: skip


def _is_whole(value: object) -> bool:
    return isinstance(value, int | np.integer) and bool(value >= 1)


def _check(name: str, value: object, good: bool, wanted: str) -> None:
    if not good:
        raise UsageError(f"{name}={value!r}: it must be {wanted}")
