"""Other loaders on the same shards, as fast as they go: what shardio is measured against.

Held equal: the shards, the crop's distribution and its decoder, the batch size, workers and
prefetch, and that bad pictures are skipped. The stages of other loaders are not known.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

import numpy as np
import torch

from shardio.codecs.crop import write_crop
from shardio.codecs.image import decode_image
from shardio.codecs.opencv import forbid_opencv_threads
from shardio.errors import CodecError
from shardio.index.catalog import open_catalog
from shardio.profiling.settings import IMAGES, Settings, Topology, check_baseline, load_callable
from shardio.transforms import RandomResizedCrop, SizedTransform

_BUFFER = 1000  # samples that webdataset shuffles


def open_baseline(name: str, settings: Settings, topology: Topology) -> Iterable[Any]:
    """Another loader over the same shards.

    Raises:
        UsageError: there is none of that name, or it has no such topology.
    """
    import webdataset  # noqa: PLC0415  only a baseline needs it

    catalog = open_catalog(settings.source, allow_empty=settings.allow_empty)
    check_baseline(name, catalog.fields)
    shards = [shard.path for shard in catalog.shards]
    dataset = (
        webdataset.WebDataset(
            shards, shardshuffle=len(shards), empty_check=False, nodesplitter=None
        )
        .repeat()
        .shuffle(_BUFFER)
        .map(partial(_sample, _transform(settings)), handler=_skip_bad)
        .batched(settings.batch_size)
    )
    workers = topology.producers if topology.kind == "processes" else 0
    ahead = topology.prefetch if workers else None
    return webdataset.WebLoader(  # type: ignore[no-any-return]
        dataset, batch_size=None, num_workers=workers, worker_init_fn=_begin, prefetch_factor=ahead
    )


def _skip_bad(error: Exception) -> bool:
    """Go on after a picture that does not decode, as the runs do."""
    if isinstance(error, CodecError):
        return True
    raise error


def _begin(_: int) -> None:
    forbid_opencv_threads()


def _transform(settings: Settings) -> Any:
    if settings.transform is not None:
        return load_callable(settings.transform)
    return RandomResizedCrop(settings.size) if settings.size else None


def _sample(transform: Any, sample: dict[str, Any]) -> tuple[torch.Tensor, int]:
    name = next(field for field in IMAGES if field in sample)
    return _image(transform, sample[name]), int(sample.get("cls", 0))


def _image(transform: Any, data: bytes) -> torch.Tensor:
    pixels = decode_image(data)
    if isinstance(transform, SizedTransform):
        uniforms = torch.rand(transform.draws).tolist()
        out = np.empty((*transform.size, 3), np.uint8)
        write_crop(pixels, transform.crop(pixels.shape[0], pixels.shape[1], uniforms), out)
        return torch.from_numpy(out)
    image = torch.from_numpy(pixels).permute(2, 0, 1)
    return torch.as_tensor(transform(image)) if transform is not None else image
