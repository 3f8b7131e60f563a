"""Pack images into tar shards, stream them into PyTorch, and see what limits the loader.

The public names live in the modules of `_HOMES` and are imported when first used, so that the
command line starts without torch and OpenCV.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from shardio import ops as ops
    from shardio import profiling as profiling
    from shardio import testing as testing
    from shardio.batchwise import CutMix as CutMix
    from shardio.batchwise import MixUp as MixUp
    from shardio.batchwise import Normalize as Normalize
    from shardio.batchwise import RandomChoice as RandomChoice
    from shardio.batchwise import to_float as to_float
    from shardio.buckets import Buckets as Buckets
    from shardio.conversion.tfrecord import convert as convert
    from shardio.errors import CodecError as CodecError
    from shardio.errors import IndexFileError as IndexFileError
    from shardio.errors import MisfitError as MisfitError
    from shardio.errors import OutputError as OutputError
    from shardio.errors import PackError as PackError
    from shardio.errors import RemoteChanged as RemoteChanged
    from shardio.errors import RemoteDenied as RemoteDenied
    from shardio.errors import RemoteError as RemoteError
    from shardio.errors import RemoteMissing as RemoteMissing
    from shardio.errors import RemoteUnreachable as RemoteUnreachable
    from shardio.errors import SampleError as SampleError
    from shardio.errors import ShardioError as ShardioError
    from shardio.errors import SituationError as SituationError
    from shardio.errors import Skip as Skip
    from shardio.errors import TarError as TarError
    from shardio.errors import TFRecordError as TFRecordError
    from shardio.errors import TransformError as TransformError
    from shardio.errors import UsageError as UsageError
    from shardio.fields.annotations import Boxes as Boxes
    from shardio.fields.annotations import MultiLabel as MultiLabel
    from shardio.fields.annotations import Points as Points
    from shardio.fields.arrays import Array as Array
    from shardio.fields.arrays import Label as Label
    from shardio.fields.audio import Audio as Audio
    from shardio.fields.base import Bytes as Bytes
    from shardio.fields.base import FieldType as FieldType
    from shardio.fields.pictures import Depth as Depth
    from shardio.fields.pictures import Image as Image
    from shardio.fields.pictures import Mask as Mask
    from shardio.fields.summary import FieldSummary as FieldSummary
    from shardio.fields.text import Json as Json
    from shardio.fields.text import Text as Text
    from shardio.indexing.publish import index as index
    from shardio.inspection.cache import clear_cache as clear_cache
    from shardio.inspection.cache import list_cache as list_cache
    from shardio.inspection.cache import prune_cache as prune_cache
    from shardio.inspection.coverage import PlanOptions as PlanOptions
    from shardio.inspection.coverage import plan as plan
    from shardio.inspection.info import info as info
    from shardio.inspection.repair import repair as repair
    from shardio.inspection.replay import ReplayOptions as ReplayOptions
    from shardio.inspection.replay import replay as replay
    from shardio.inspection.verify import verify as verify
    from shardio.packing.options import PackOptions as PackOptions
    from shardio.packing.options import ReshardOptions as ReshardOptions
    from shardio.packing.pack import pack as pack
    from shardio.packing.pack import reshard as reshard
    from shardio.packing.sources.base import Source as Source
    from shardio.padded import Letterbox as Letterbox
    from shardio.padded import RandomCrop as RandomCrop
    from shardio.padded import ScaleJitter as ScaleJitter
    from shardio.profiling.profile import profile as profile
    from shardio.profiling.settings import ProfileOptions as ProfileOptions
    from shardio.reading.dataset import ShardDataset as ShardDataset
    from shardio.reading.libraries import FromPIL as FromPIL
    from shardio.reading.loader import Loader as Loader
    from shardio.reading.metrics import MaskedMean as MaskedMean
    from shardio.reading.mix import Mix as Mix
    from shardio.storage.base import Storage as Storage
    from shardio.transforms import CenterCrop as CenterCrop
    from shardio.transforms import RandomResizedCrop as RandomResizedCrop
    from shardio.transforms import Resize as Resize

_HOMES = {
    "Array": "shardio.fields.arrays",
    "Audio": "shardio.fields.audio",
    "Boxes": "shardio.fields.annotations",
    "Buckets": "shardio.buckets",
    "Bytes": "shardio.fields.base",
    "CenterCrop": "shardio.transforms",
    "CodecError": "shardio.errors",
    "CutMix": "shardio.batchwise",
    "Depth": "shardio.fields.pictures",
    "FieldSummary": "shardio.fields.summary",
    "FieldType": "shardio.fields.base",
    "FromPIL": "shardio.reading.libraries",
    "Image": "shardio.fields.pictures",
    "IndexFileError": "shardio.errors",
    "Json": "shardio.fields.text",
    "Label": "shardio.fields.arrays",
    "Letterbox": "shardio.padded",
    "Loader": "shardio.reading.loader",
    "Mask": "shardio.fields.pictures",
    "MaskedMean": "shardio.reading.metrics",
    "MisfitError": "shardio.errors",
    "Mix": "shardio.reading.mix",
    "MixUp": "shardio.batchwise",
    "MultiLabel": "shardio.fields.annotations",
    "Normalize": "shardio.batchwise",
    "OutputError": "shardio.errors",
    "PackError": "shardio.errors",
    "PackOptions": "shardio.packing.options",
    "PlanOptions": "shardio.inspection.coverage",
    "Points": "shardio.fields.annotations",
    "ProfileOptions": "shardio.profiling.settings",
    "RandomChoice": "shardio.batchwise",
    "RandomCrop": "shardio.padded",
    "RandomResizedCrop": "shardio.transforms",
    "RemoteChanged": "shardio.errors",
    "RemoteDenied": "shardio.errors",
    "RemoteError": "shardio.errors",
    "RemoteMissing": "shardio.errors",
    "RemoteUnreachable": "shardio.errors",
    "ReplayOptions": "shardio.inspection.replay",
    "ReshardOptions": "shardio.packing.options",
    "Resize": "shardio.transforms",
    "SampleError": "shardio.errors",
    "ScaleJitter": "shardio.padded",
    "ShardDataset": "shardio.reading.dataset",
    "ShardioError": "shardio.errors",
    "SituationError": "shardio.errors",
    "Skip": "shardio.errors",
    "Source": "shardio.packing.sources.base",
    "Storage": "shardio.storage.base",
    "TFRecordError": "shardio.errors",
    "TarError": "shardio.errors",
    "Text": "shardio.fields.text",
    "TransformError": "shardio.errors",
    "UsageError": "shardio.errors",
    "clear_cache": "shardio.inspection.cache",
    "convert": "shardio.conversion.tfrecord",
    "index": "shardio.indexing.publish",
    "info": "shardio.inspection.info",
    "list_cache": "shardio.inspection.cache",
    "ops": "shardio",
    "pack": "shardio.packing.pack",
    "plan": "shardio.inspection.coverage",
    "profile": "shardio.profiling.profile",
    "profiling": "shardio",
    "prune_cache": "shardio.inspection.cache",
    "repair": "shardio.inspection.repair",
    "replay": "shardio.inspection.replay",
    "reshard": "shardio.packing.pack",
    "testing": "shardio",
    "to_float": "shardio.batchwise",
    "verify": "shardio.inspection.verify",
}

__all__ = [*_HOMES]  # noqa: PLE0604  every entry is a string


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return import_module("importlib.metadata").version("shardio")
    if name not in _HOMES:
        raise AttributeError(f"module 'shardio' has no attribute {name!r}")
    if _HOMES[name] == "shardio":
        return import_module(f"shardio.{name}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
