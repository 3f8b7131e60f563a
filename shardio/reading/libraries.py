"""Transforms of torchvision and albumentations as functions on a sample.

A transform of torchvision.transforms.v2 or of albumentations gets all entries of a sample that lie
in its picture at once: pictures, masks, boxes and points, each as the library's own type, so that
one random crop or flip moves all of them. A transform of torchvision's first version, or one for
PIL images, gets the picture alone.

Their random numbers are seeded for each sample, with a key as that of `map(sample, rng)`.
albumentations takes generators, and each thread has a copy of the transform. torchvision draws from
generators that the threads of a process share: in a worker they are seeded, and in the loading
process they are seeded and put back. Beside threads that cannot be, and a Loader refuses it.
"""

from __future__ import annotations

import copy
import random
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from types import BuiltinFunctionType, FunctionType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import get_worker_info

from shardio.errors import TransformError, UsageError, quoted
from shardio.fields.annotations import Boxes, Points
from shardio.fields.base import FieldType
from shardio.fields.pictures import Depth, Mask, PixelMask
from shardio.fields.resample import in_planes
from shardio.planning.order import derive_key

Sample = dict[str, Any]
Key = tuple[int, ...]
"""Integers that the random numbers of a function for a sample depend on; see derive_key."""
Step = Callable[[Sample, Key], Any]
"""Function from a sample, and the key of its random numbers, to a sample."""

_TORCHVISION, _ALBUMENTATIONS = "torchvision.transforms", "albumentations"
_FOR_PIL = frozenset({"ToTensor", "PILToTensor"})
_WITHOUT_CHANCE = frozenset(
    {
        *("CenterCrop", "ClampBoundingBoxes", "ClampKeyPoints", "Compose", "ConvertImageDtype"),
        *("ConvertBoundingBoxFormat", "FiveCrop", "Grayscale", "Identity", "LinearTransformation"),
        *("Normalize", "PILToTensor", "Pad", "RGB", "Resize", "SanitizeBoundingBoxes"),
        *("SanitizeKeyPoints", "SetClampingMode", "TenCrop", "ToDtype", "ToImage", "ToPILImage"),
        *("ToPureTensor", "ToTensor", "JPEG", "UniformTemporalSubsample"),
    }
)
"""Transforms of torchvision that draw no random numbers."""


class FromPIL:
    """Function of PIL images as a function of tensors, for `transform=` or `map=`.

        ShardDataset("out", transform=shardio.FromPIL(preprocess), batch_size=64)
        ShardDataset("seg", map=shardio.FromPIL(augment, "image", "mask"), batch_size=16)

    torchvision's Compose with ToTensor, such as open_clip's preprocess, is known without it.

    Args:
        function: function from a PIL image to a tensor, an array or a PIL image. The image has
            the mode RGB; L where the entry has one channel, RGBA where it has four. Of several
            entries, `function(image, mask)` from one for each to a tuple of as many.
        entries: names of the entries, pictures or masks, that it gets together and returns; by
            default each picture of a sample alone.
    """

    def __init__(self, function: Callable[..., Any], *entries: str) -> None:
        if not callable(function):
            raise UsageError(f"FromPIL({quoted(function)}): it must be a function")
        self.function = function
        self.entries = entries

    def __call__(self, *pictures: torch.Tensor) -> Any:
        """Apply the function to pictures, uint8 [channels, H, W], or masks, [H, W].

        Returns:
            Result as a tensor, of several pictures a tuple of them; a PIL image as what it was
            made of: with the channels of the picture, or [H, W] for a mask.
        """
        found = self.function(*map(_to_pil, pictures))
        if len(pictures) == 1:
            return _from_pil(found, pictures[0])
        if not isinstance(found, list | tuple) or len(found) != len(pictures):
            raise TransformError(
                f"it returned {quoted(type(found).__name__)} for {len(pictures)} pictures",
                remedy=f"return a tuple of {len(pictures)}",
            )
        return tuple(map(_from_pil, found, pictures))


_MODES = {1: "L", 3: "RGB", 4: "RGBA"}


def _to_pil(picture: torch.Tensor) -> Any:
    shown = picture.permute(1, 2, 0) if picture.ndim == 3 else picture
    shown = shown[..., 0] if shown.ndim == 3 and shown.shape[2] == 1 else shown
    return import_module("PIL.Image").fromarray(shown.contiguous().numpy())


def _from_pil(found: Any, picture: torch.Tensor) -> torch.Tensor:
    """Return a result as a tensor; a PIL image as what it was made of, a picture or a mask."""
    if not hasattr(found, "getbands"):
        return torch.as_tensor(found)
    if picture.ndim == 2:
        return torch.from_numpy(np.array(found))
    return torch.as_tensor(_picture_of(np.array(found.convert(_MODES[len(picture)]))))


def is_known(function: object) -> bool:
    """Tell whether a function is a transform of a library, a sequence of those, or FromPIL."""
    if isinstance(function, torch.nn.Sequential):
        return all(map(is_known, function)) and len(function) > 0
    return isinstance(function, FromPIL) or _is_of(function, _TORCHVISION, _ALBUMENTATIONS)


def library_step(function: Any, types: Mapping[str, FieldType], *, seeded: bool) -> Step:
    """Make a function on a sample of a library's transform.

    Args:
        function: transform.
        types: type of each entry.
        seeded: whether its random numbers depend on the key alone.

    Raises:
        UsageError: the transform cannot take along an entry that lies in the picture.
    """
    for part in _parts(function):
        if type(part).__name__ in ("MixUp", "CutMix") and _is_of(part, _TORCHVISION):
            raise UsageError(
                f"{type(part).__name__} mixes the samples of a batch, and a map sees one",
                remedy="give the batches of the loop to shardio.MixUp or shardio.CutMix",
            )
    if _is_of(function, _ALBUMENTATIONS):
        return _Albumentations(function, _Entries(type(function).__name__, types), seeded=seeded)
    if isinstance(function, FromPIL) and function.entries:
        return _Several(function, types, seeded=seeded)
    parts = function if isinstance(function, torch.nn.Sequential) else [function]
    alone = not all(_is_of(part, f"{_TORCHVISION}.v2") for part in parts)
    entries = _Entries(type(function).__name__, types, alone=alone)
    return (_Alone if alone else _Torchvision)(function, entries, seeded=seeded)


def shares_generator(step: object) -> bool:
    """Tell whether a step draws from generators that the threads of a process share."""
    return isinstance(step, _Shared) and step.draws


def _is_of(function: object, *modules: str) -> bool:
    return any(kind.__module__.startswith(modules) for kind in type(function).__mro__)


class _Entries:
    """The entries of a sample that lie in its picture, by their part.

    Args:
        function: name of the transform.
        types: type of each entry.
        alone: whether the transform takes one picture and nothing else.

    Raises:
        UsageError: the transform cannot take an entry along.
    """

    def __init__(
        self, function: str, types: Mapping[str, FieldType], *, alone: bool = False
    ) -> None:
        self.pictures = [name for name, each in types.items() if each.geometry == "leads"]
        self.masks = [
            name for name, each in types.items() if isinstance(each, Mask | PixelMask | Depth)
        ]
        self.boxes = [name for name, each in types.items() if isinstance(each, Boxes)]
        self.points = {
            name: each.flip_pairs for name, each in types.items() if isinstance(each, Points)
        }
        taken = self.pictures[:1] if alone else [*self.pictures, *self.masks, *self.boxes]
        taken += [] if alone else self.points
        if not self.pictures:
            raise UsageError(
                f"{function} is for pictures, and samples have none",
                remedy="leave it out, or choose other fields",
            )
        _refuse_left(function, types, taken)

    def size(self, sample: Sample) -> tuple[int, int]:
        """Return height and width of the picture of a sample.

        Raises:
            TransformError: it has none.
        """
        for name in self.pictures:
            if isinstance(sample.get(name), torch.Tensor):
                height, width = sample[name].shape[-2:]
                return int(height), int(width)
        raise TransformError("the sample has no picture for it")


def _refuse_left(function: str, types: Mapping[str, FieldType], taken: Sequence[str]) -> None:
    """Refuse a transform that leaves something that lies in the picture where it is."""
    left = [name for name, each in types.items() if each.geometry and name not in taken]
    if left:
        raise UsageError(
            f"{function} cannot take {quoted(left[0])} along with the picture",
            remedy=(
                "use a transform of torchvision.transforms.v2 or albumentations, which take "
                "masks, boxes and points along, or a function of your own as map="
            ),
        )


class _Shared:
    """A transform of torchvision, whose random numbers are those of the process.

    Attributes:
        draws: whether it draws any.
    """

    def __init__(self, function: Any, *, seeded: bool) -> None:
        parts = [*_parts(function)]
        self.draws = any(map(_draws, parts))
        self._seeded = seeded and self.draws
        self._for_pil = any(map(_is_for_pil, parts))
        self._function = function

    def _call(self, key: Key, *values: Any) -> Any:
        if not self._seeded:
            return self._function(*values)
        with _seeded(derive_key(*key)):
            return self._function(*values)


class _Alone(_Shared):
    """A transform that sees the picture alone, as tensor or PIL image."""

    def __init__(self, function: Any, entries: _Entries, *, seeded: bool) -> None:
        super().__init__(function, seeded=seeded)
        self._entries = entries
        if self._for_pil:
            self._function = FromPIL(function)

    def __call__(self, sample: Sample, key: Key) -> Sample:
        given = {name: sample[name] for name in self._entries.pictures if name in sample}
        if not isinstance(self._function, FromPIL):
            given = {name: _in_planes(picture) for name, picture in given.items()}
        found = {name: _plain(self._call(key, picture)) for name, picture in given.items()}
        return {**sample, **found}


class _Several(_Shared):
    """A function that gets pictures and masks together, as PIL images."""

    def __init__(self, function: FromPIL, types: Mapping[str, FieldType], *, seeded: bool) -> None:
        super().__init__(function, seeded=seeded)
        self._names = function.entries
        for name in self._names:
            if name not in types:
                raise UsageError(
                    f"FromPIL: there is no entry {quoted(name)}",
                    remedy=f"choose among {', '.join(map(quoted, types))}",
                )
        _refuse_left("FromPIL", types, self._names)

    def __call__(self, sample: Sample, key: Key) -> Sample:
        found = self._call(key, *(sample[name] for name in self._names))
        found = (found,) if len(self._names) == 1 else found
        return {**sample, **dict(zip(self._names, map(_plain, found), strict=True))}


class _Torchvision(_Shared):
    """A transform of torchvision.transforms.v2."""

    def __init__(self, function: Any, entries: _Entries, *, seeded: bool) -> None:
        super().__init__(function, seeded=seeded)
        self._entries = entries

    def __call__(self, sample: Sample, key: Key) -> Any:
        entries = self._entries
        given = self._typed(sample)
        boxes = [name for name in entries.boxes if name in sample]
        # SanitizeBoundingBoxes looks for labels among the entries, not in the dictionary of one.
        spread = given.pop(boxes[0]) if len(boxes) == 1 else {}
        if given.keys() & spread.keys():
            given[boxes[0]], spread = spread, {}
        found = self._call(key, {**given, **spread})
        if not isinstance(found, dict):
            return found  # which is refused as any other function's
        if spread:
            found[boxes[0]] = {name: found[name] for name in spread}
        changed = {name: _plain(found[name]) for name in [*given, *boxes]}
        for name in boxes:
            _check_boxes(changed[name])
        for name, pairs in entries.points.items():
            if name in sample:
                changed[name] = _without_corners(changed[name], sample[name], pairs)
        return {**sample, **changed}

    def _typed(self, sample: Sample) -> Sample:
        """Return the entries that lie in the picture, each as torchvision's own type."""
        entries, kinds = self._entries, import_module("torchvision.tv_tensors")
        size = entries.size(sample)

        def picture(value: torch.Tensor) -> Any:
            return _to_pil(value) if self._for_pil else kinds.Image(_in_planes(value))

        def points(value: torch.Tensor) -> Any:
            return kinds.KeyPoints(_with_corners(value, size), canvas_size=size)

        def boxes(value: Sample) -> Sample:
            edges = kinds.BoundingBoxes(value["boxes"], format="XYXY", canvas_size=size)
            return {**value, "boxes": edges}

        types: dict[str, Callable[[Any], Any]] = dict.fromkeys(entries.pictures, picture)
        types |= dict.fromkeys(entries.masks, kinds.Mask) | dict.fromkeys(entries.points, points)
        types |= dict.fromkeys(entries.boxes, boxes)
        return {name: typed(sample[name]) for name, typed in types.items() if name in sample}


class _Albumentations:
    """A transform of albumentations; each thread has a copy, with generators of its own."""

    def __init__(self, function: Any, entries: _Entries, *, seeded: bool) -> None:
        self._function = function
        self._entries = entries
        self._seeded = seeded
        self._copies = threading.local()

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_copies": None}

    def __setstate__(self, attributes: dict[str, Any]) -> None:
        vars(self).update(attributes)
        self._copies = threading.local()

    def __call__(self, sample: Sample, key: Key) -> Sample:
        function, entries = self._copy(), self._entries
        if self._seeded:
            seed = derive_key(*key)
            drawn = np.random.Generator(np.random.Philox(key=seed))
            function.set_random_state(drawn, random.Random(seed))  # noqa: S311
        size = entries.size(sample)
        pictures = self._targets(function)
        if left := [n for n in entries.pictures if n in sample and n not in pictures.values()]:
            raise TransformError(
                f"it takes one picture, and {quoted(left[0])} is another one",
                remedy=f"give Compose additional_targets={{{left[0]!r}: 'image'}}",
            )
        masks = [name for name in entries.masks if name in sample]
        given: Sample = {
            target: np.ascontiguousarray(sample[name].permute(1, 2, 0).numpy())
            for target, name in pictures.items()
            if name in sample
        }
        if masks:
            given["masks"] = [np.ascontiguousarray(sample[name].numpy()) for name in masks]
        boxes, points = self._only(entries.boxes, sample), self._only(entries.points, sample)
        if boxes is not None:
            given |= _boxes_for(function, sample[boxes])
        if points is not None:
            given |= _points_for(function, _with_corners(sample[points], size).numpy())
        found = function(**given)
        changed = {
            name: _picture_of(found[target]) for target, name in pictures.items() if name in sample
        }
        if masks:
            values = (torch.as_tensor(_writable(each)) for each in found["masks"])
            changed |= dict(zip(masks, values, strict=True))
        if boxes is not None:
            changed[boxes] = _boxes_of(function, found["bboxes"], sample[boxes])
        if points is not None:
            moved = torch.from_numpy(_writable(found["keypoints"])).to(torch.float32)[..., :2]
            changed[points] = _without_corners(moved, sample[points], entries.points[points])
        return {**sample, **changed}

    def _copy(self) -> Any:
        function = getattr(self._copies, "function", None)
        if function is None:
            function = self._copies.function = copy.deepcopy(self._function)
        return function

    def _targets(self, function: Any) -> dict[str, str]:
        """Return the entries of pictures by the arguments that they are."""
        others = getattr(function, "additional_targets", None) or {}
        first, *rest = self._entries.pictures
        return {"image": first, **{name: name for name in rest if others.get(name) == "image"}}

    def _only(self, names: Iterable[str], sample: Sample) -> str | None:
        present = [name for name in names if name in sample]
        if len(present) > 1:
            raise TransformError(
                f"it takes boxes and points of one entry, not {quoted(present[0])} and "
                f"{quoted(present[1])}"
            )
        return present[0] if present else None


def _parts(function: Any) -> Iterator[Any]:
    """List a transform, and those that it consists of."""
    yield function
    held: Any = getattr(function, "transforms", None)
    if isinstance(function, FromPIL):
        held = [function.function]
    elif isinstance(function, torch.nn.Sequential):
        held = function
    for part in held if isinstance(held, Iterable) else ():
        yield from _parts(part)


def _is_for_pil(part: object) -> bool:
    return any(
        kind.__name__ in _FOR_PIL and kind.__module__.startswith(_TORCHVISION)
        for kind in type(part).__mro__
    )


def _draws(part: object) -> bool:
    """Tell whether a part of a transform may draw random numbers; plain functions tell nothing."""
    if isinstance(part, FromPIL | FunctionType | BuiltinFunctionType | torch.nn.Sequential):
        return False
    return not (type(part).__name__ in _WITHOUT_CHANCE and _is_of(part, _TORCHVISION))


@contextmanager
def _seeded(key: int) -> Iterator[None]:
    """Seed the generators of this process; in the training process they are put back after it."""
    kept = None
    if get_worker_info() is None:
        kept = torch.get_rng_state(), random.getstate(), np.random.get_state()
    torch.default_generator.manual_seed(key)
    random.seed(key)
    np.random.seed(key & 0xFFFFFFFF)
    try:
        yield
    finally:
        if kept is not None:
            torch.set_rng_state(kept[0])
            random.setstate(kept[1])
            np.random.set_state(kept[2])


def _plain(value: Any) -> Any:
    """Return a value with plain tensors for those of torchvision, also inside a dictionary."""
    if isinstance(value, dict):
        return {name: _plain(each) for name, each in value.items()}
    return value.as_subclass(torch.Tensor) if isinstance(value, torch.Tensor) else value


def _in_planes(picture: torch.Tensor) -> torch.Tensor:
    """Return a picture as torchvision's own functions give it, one channel after the other.

    Its operations take up to ten times as long for channels-last memory. OpenCV makes the copy in
    a third of torch's time.
    """
    pixels = picture.permute(1, 2, 0)
    if picture.is_contiguous() or picture.dtype != torch.uint8 or not pixels.is_contiguous():
        return picture.contiguous()
    return torch.from_numpy(in_planes(pixels.numpy()))


def _check_boxes(value: Mapping[str, Any]) -> None:
    """Raise TransformError if there are not as many of other values as of boxes."""
    for name, values in value.items():
        if len(values) != len(value["boxes"]):
            raise TransformError(
                f"it left {len(value['boxes'])} boxes and {len(values)} values of {quoted(name)}",
                remedy="give SanitizeBoundingBoxes a labels_getter= for all that belongs to boxes",
            )


def _with_corners(points: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Return points, [n, 2], and after them three corners of the picture."""
    height, width = size
    corners = torch.tensor([[0.0, 0.0], [width - 1, 0.0], [0.0, height - 1]])
    return torch.cat([points[..., :2].reshape(-1, 2), corners])


def _without_corners(
    moved: torch.Tensor, before: torch.Tensor, pairs: Sequence[tuple[int, int]] | None
) -> torch.Tensor:
    """Return the points of a sample after a transform.

    The corners tell whether the picture was mirrored; then pairs of points change places.

    Args:
        moved: points and corners, [n, 2].
        before: points of the sample, [..., n, 2 or 3].
        pairs: pairs of points that change places; None if that is not known.

    Raises:
        TransformError: points are lacking, or it is not known which ones change places.
    """
    count = before[..., 0].numel()
    if len(moved) != count + 3:
        raise TransformError(
            f"it returned {len(moved) - 3} of {count} points, and which ones is not known",
            remedy="keep those that are not visible: KeypointParams(remove_invisible=False)",
        )
    points = torch.cat([moved[:-3].reshape(before[..., :2].shape), before[..., 2:]], dim=-1)
    right, down = moved[-2] - moved[-3], moved[-1] - moved[-3]
    nothing_changes = pairs is not None and not pairs
    if nothing_changes or right[0] * down[1] > right[1] * down[0]:
        return points
    if pairs is None:
        raise TransformError(
            "it mirrored a picture with points",
            remedy="give Points flip_pairs=, the pairs of points that change places",
        )
    for one, other in pairs:
        points[..., [one, other], :] = points[..., [other, one], :]
    return points


def _parameters(function: Any, kind: str, parameters: str) -> Any:
    """Return how a Compose of albumentations takes boxes or points.

    Raises:
        TransformError: it does not say.
    """
    processor = getattr(function, "processors", {}).get(kind)
    if processor is None:
        raise TransformError(
            f"it does not say how it takes the {kind} of the sample",
            remedy=f"write albumentations.Compose([…], {parameters})",
        )
    return processor.params


def _boxes_for(function: Any, value: Mapping[str, Any]) -> Sample:
    """Return boxes as arguments of albumentations, each with its number behind its edges."""
    wanted = _parameters(function, "bboxes", "bbox_params=BboxParams('pascal_voc')")
    edges: NDArray[Any] = value["boxes"].numpy().astype(np.float64)
    given = np.column_stack([_in_format(edges, wanted.format), np.arange(len(edges))])
    labels = {name: [*value[name]] for name in wanted.label_fields or () if name in value}
    return {"bboxes": given.reshape(-1, 5), **labels}


def _in_format(edges: NDArray[Any], name: str) -> NDArray[Any]:
    if name == "pascal_voc":
        return edges
    if name == "coco":
        return np.concatenate([edges[:, :2], edges[:, 2:] - edges[:, :2]], axis=1)
    raise TransformError(
        f"boxes are in pixels, and BboxParams({name!r}) takes others",
        remedy="write BboxParams('pascal_voc')",
    )


def _boxes_of(function: Any, found: Any, before: Mapping[str, Any]) -> Sample:
    """Return the boxes that are left, and what belongs to each."""
    boxes = np.asarray(found, np.float64).reshape(-1, 5)
    edges = boxes[:, :4]
    if function.processors["bboxes"].params.format == "coco":
        edges = np.concatenate([edges[:, :2], edges[:, :2] + edges[:, 2:]], axis=1)
    numbers = np.rint(boxes[:, 4]).astype(np.int64)
    left: Sample = {"boxes": torch.from_numpy(edges.astype(np.float32))}
    for name, values in before.items():
        if isinstance(values, torch.Tensor) and name != "boxes":
            left[name] = values[torch.from_numpy(numbers)]
        elif name != "boxes":
            left[name] = [values[number] for number in numbers.tolist()]
    return left


def _points_for(function: Any, points: NDArray[Any]) -> Sample:
    """Return points as an argument of albumentations."""
    wanted = _parameters(function, "keypoints", "keypoint_params=KeypointParams('xy')")
    if wanted.format != "xy":
        raise TransformError(
            f"points have x and y, and KeypointParams({wanted.format!r}) takes more",
            remedy="write KeypointParams('xy', remove_invisible=False)",
        )
    return {"keypoints": points}


def _writable(value: Any) -> Any:
    """Return an array whose memory torch can take."""
    return np.ascontiguousarray(value) if isinstance(value, np.ndarray) else value


def _picture_of(found: Any) -> Any:
    """Return a picture as an entry has it, [C, H, W]."""
    if isinstance(found, np.ndarray) and found.ndim in (2, 3):
        pixels = torch.from_numpy(_writable(found))
        return pixels[None] if pixels.ndim == 2 else pixels.permute(2, 0, 1)
    return found
