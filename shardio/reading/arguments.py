"""Arguments of ShardDataset: checked, and divided among what takes them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, Literal, get_args

from shardio.buckets import Buckets
from shardio.checks import (
    flag,
    one_of,
    positive,
    require,
    seed_of_order,
    whole_number,
)
from shardio.fields.base import FieldType
from shardio.planning.epoch import Tail
from shardio.reading.settings import ranks_of
from shardio.storage.base import size_in_bytes
from shardio.storage.location import Options, refuse_both
from shardio.storage.remote import RemoteStorage
from shardio.transforms import SizedTransform

OnBadSample = Literal["raise", "skip"]


_OF_STORE = {
    "cache_dir": "cache_dir",
    "cache_limit": "cache_limit",
    "retries": "download_retry",
    "timeout": "download_timeout",
}
"""Options of a store, and the arguments that give them."""


def store_options(given: Mapping[str, Any]) -> Options:
    """Return the options of a store that the arguments of a dataset are.

    Raises:
        UsageError: an option is given as an argument, too.
    """
    options, folder = given["storage_options"] or {}, given["cache_dir"]
    found = {option: given[name] for option, name in _OF_STORE.items()}
    found["cache_dir"] = None if folder is None else os.fspath(folder)
    changed = [name for name, value in found.items() if value != getattr(RemoteStorage, name)]
    refuse_both(options, {name: _OF_STORE[name] for name in changed})
    return {**found, **options}


def check_arguments(*, transform: object, decode: bool, **given: Any) -> dict[str, Any]:
    """Refuse arguments of ShardDataset that are not of their type, or exclude each other.

    Returns:
        All of them, whole numbers as int.

    Raises:
        UsageError: an argument is refused.
    """
    if given["group"] is not None:
        ranks = ranks_of(given["group"], given["rank"], given["world_size"])
        given |= {"rank": ranks[0], "world_size": ranks[1], "group": None}  # numbers pickle
    given |= _numbers(given)
    for name, bits in {"epoch_size": 48, "batch_size": 31, "global_batch_size": 31}.items():
        good = given[name] is None or given[name] <= 1 << bits
        require(good, name, given[name], f"at most 2**{bits}")
    options = given["storage_options"]
    require(
        options is None or isinstance(options, Mapping), "storage_options", options, "a mapping"
    )
    fields, shuffle, streams = given["fields"], given["shuffle"], given["streams"]
    parts = fields.values() if isinstance(fields, Mapping) else ()
    wanted = "a mapping to instances, not to classes; call them, as {'mask': shardio.Mask('png')}"
    require(not any(isinstance(part, type) for part in parts), "fields", fields, wanted)
    mapped = fields is None or (
        isinstance(fields, Mapping)
        and all(isinstance(part, str | FieldType) for part in fields.values())
    )
    given["fields"] = None if fields is None or not mapped else dict(fields)
    require(mapped, "fields", fields, "a mapping such as {'image': 'jpg;png'}")
    require(
        not isinstance(transform, list | tuple),
        "transform",
        transform,
        "one transform, such as shardio.RandomResizedCrop(224), with functions for after it in "
        "map=, or one function that torchvision.transforms.v2.Compose makes of several; "
        "shardio.Normalize takes batches",
    )
    wanted = "an instance, not the class; call it, as shardio.RandomResizedCrop(224)"
    require(not isinstance(transform, type), "transform", transform, wanted)
    usable = callable(transform) or isinstance(transform, SizedTransform | Buckets)
    usable = transform is None or usable
    require(usable, "transform", transform, "callable, such as shardio.CenterCrop(224, resize=256)")
    collate, batched = given["collate"], given["batch_size"] or given["global_batch_size"]
    require(collate is None or callable(collate), "collate", collate, "a function of samples")
    require(collate is None or batched, "collate", collate, "left out without batch_size")
    unused = decode or transform is None
    require(unused, "transform", transform, "left out with decode=False")
    known = isinstance(shuffle, bool) or str(shuffle) == "full"
    require(known, "shuffle", shuffle, "True, False or 'full'")
    wanted = "1 for a dataset of samples; give it batch_size or global_batch_size"
    require(streams == 1 or batched, "streams", streams, wanted)
    alone = batched or not isinstance(transform, Buckets)
    require(alone, "transform", transform, "given with batch_size or global_batch_size")
    one_of("tail", given["tail"], get_args(Tail))
    one_of("on_bad_sample", given["on_bad_sample"], get_args(OnBadSample))
    for name in ("reduced_decoding", "allow_empty", "crops", "nondeterministic"):
        flag(name, given[name])
    return {"transform": transform, "decode": decode, **given}


def _numbers(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments that are numbers, whole ones as int; refuse what is no such number."""
    least = {
        **dict.fromkeys(("batch_size", "global_batch_size", "epoch_size"), 1),
        **dict.fromkeys(("window", "streams", "max_pixels", "predownload"), 1),
        "download_retry": 0,
    }
    absent, limit = {"batch_size", "global_batch_size", "epoch_size"}, given["cache_limit"]
    return {
        **{
            name: whole_number(name, given[name], least=smallest)
            for name, smallest in least.items()
            if given[name] is not None or name not in absent
        },
        "cache_limit": None if limit is None else size_in_bytes("cache_limit", limit),
        "download_timeout": positive("download_timeout", given["download_timeout"]),
        "seed": seed_of_order(given["seed"]),
    }
