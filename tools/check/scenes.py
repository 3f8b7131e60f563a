"""Random pictures with masks, depth, boxes and points, and what others make of a crop of them.

Pillow says what nearest pixels are, torchvision what pictures look like, albumentations where boxes
and points go. NumPy says all but the first by itself, so that nothing goes unjudged where a peer is
not installed. Peers and NumPy share no code with shardio.
"""

from __future__ import annotations

import importlib.util
import io
import json
import struct
import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

import shardio

ADAM7 = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2),
         (1, 0, 2, 1)]  # fmt: skip
MOST = 160  # pixels of a side
POINTS, PAIRS = 5, ((0, 1), (3, 2))
INSTALLED = {
    name: importlib.util.find_spec(name) is not None for name in ("torchvision", "albumentations")
}
Values = NDArray[Any]


@dataclass(frozen=True)
class Part:
    """Part of a picture, resized, of which a window is in the slot, perhaps mirrored.

    Attributes:
        box: left, top, right and bottom of the part, in whole pixels.
        resized: height and width that it is resized to.
        window: first row and column of what is in the slot.
        size: height and width of the slot.
        flip: whether the slot is mirrored.
    """

    box: tuple[int, int, int, int]
    resized: tuple[int, int]
    window: tuple[int, int]
    size: tuple[int, int]
    flip: bool

    def cut(self, resized: Values) -> Values:
        """Take the window of a resized part [h, w, …], and mirror it."""
        top, left = self.window
        cut = resized[top : top + self.size[0], left : left + self.size[1]]
        return cut[:, ::-1] if self.flip else cut


@dataclass(frozen=True)
class Scene:
    """A sample and what its bytes mean.

    Attributes:
        fields: bytes by field.
        picture: uint8 [H, W, 3], as shown.
        values: class numbers and stored depth [H, W] by field, as shown.
        boxes: edges [n, 4].
        points: x and y [POINTS, 2].
    """

    fields: dict[str, bytes]
    picture: NDArray[np.uint8]
    values: dict[str, Values]
    boxes: NDArray[np.float64]
    points: NDArray[np.float64]


TYPES: dict[str, Any] = {
    "image": "png",
    "palette.mask": shardio.Mask("palette.mask.png"),
    "gray.mask": shardio.Mask("gray.mask.png"),
    "many.mask": shardio.Mask("many.mask.png", dtype="int32"),
    "npy.mask": shardio.Mask("mask.npy", dtype="int32"),
    "small.mask": shardio.Mask("small.mask.png"),
    "depth": shardio.Depth("depth.png", scale=1 / 256),
    "npy.depth": shardio.Depth("depth.npy"),
    "target": shardio.Boxes("json", format="xywh", also=["labels", "names"]),
    "points": shardio.Points("points.json", flip_pairs=PAIRS),
}


def make_scene(random: np.random.Generator) -> Scene:
    """Draw a picture of a random size and orientation, and what belongs to it."""
    reduction = int(random.choice([1, 2, 4]))
    height, width = (reduction * int(side) for side in random.integers(1, MOST // reduction, 2))
    orientation = int(random.choice([1, 1, 3, 6, 8]))
    smooth = random.integers(0, 256, (2, 3, 3), np.uint8)
    shown = np.asarray(Image.fromarray(smooth).resize((width, height), Image.Resampling.BICUBIC))
    noise = random.integers(0, 256, shown.shape, np.uint8)
    shown = np.where(random.random((height, width, 1)) < 0.3, noise, shown)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(_stored(shown, orientation)).save(stream := io.BytesIO(), "PNG", exif=exif)
    fields = {"png": stream.getvalue()}
    values: dict[str, Values] = {}
    for name, depths, colour in (("palette", (1, 2, 4, 8), 3), ("gray", (1, 2, 4, 8), 0)):
        depth = int(random.choice(depths))
        values[f"{name}.mask"] = _blobs(random, height, width, 1 << depth).astype(np.uint8)
        stored = _stored(values[f"{name}.mask"], orientation)
        fields[f"{name}.mask.png"] = make_png(stored, depth, colour, random, exif.tobytes())
    values["many.mask"] = _blobs(random, height, width, 1 << 16).astype(np.int32)
    values["depth"] = random.integers(0, 1 << 16, (height, width))
    for name in ("many.mask", "depth"):
        stored = _stored(values[name], orientation)
        fields[f"{name}.png"] = make_png(stored, 16, 0, random, exif.tobytes())
    values["npy.mask"] = _blobs(random, height, width, 1 << 20).astype(np.int32) - 1
    values["npy.depth"] = random.normal(0, 100, (height, width)).astype(np.float32)
    fields["mask.npy"], fields["depth.npy"] = npy(values["npy.mask"]), npy(values["npy.depth"])
    small = _blobs(random, height // reduction, width // reduction, 256).astype(np.uint8)
    values["small.mask"] = small
    Image.fromarray(small, "L").save(stream := io.BytesIO(), "PNG")
    fields["small.mask.png"] = stream.getvalue()
    boxes = make_boxes(random, height, width)
    sizes = boxes[:, 2:] - boxes[:, :2]
    fields["json"] = json.dumps(
        {
            "boxes": np.concatenate([boxes[:, :2], sizes], axis=1).tolist(),
            "labels": [*range(len(boxes))],
            "names": [f"box {number}" for number in range(len(boxes))],
        }
    ).encode()
    points = random.random((POINTS, 2)) * [width, height]
    fields["points.json"] = json.dumps(points.tolist()).encode()
    return Scene(fields, shown, values, boxes, points)


def make_boxes(random: np.random.Generator, height: int, width: int) -> NDArray[np.float64]:
    """Choose up to eight boxes inside a picture, some of them tiny."""
    count = int(random.integers(0, 9))
    corners = random.random((count, 2, 2))
    tiny = random.random(count) < 0.3
    corners[tiny, 1] = np.minimum(corners[tiny, 0] + 0.02, 1)
    corners *= [width, height]
    return np.concatenate([corners.min(axis=1), corners.max(axis=1)], axis=1)


def _blobs(random: np.random.Generator, height: int, width: int, classes: int) -> Values:
    coarse = random.integers(0, classes, (height // 3 + 1, width // 3 + 1))
    return np.asarray(np.kron(coarse, np.ones((3, 3), np.int64))[:height, :width])


def _stored(shown: Values, orientation: int) -> Values:
    """Turn a picture so that its orientation turns it back."""
    return np.array(np.rot90(shown, {1: 0, 3: 2, 6: 1, 8: 3}[orientation]))


def npy(array: Values) -> bytes:
    np.save(stream := io.BytesIO(), array)
    return stream.getvalue()


def make_png(
    values: Values, depth: int, colour: int, random: np.random.Generator, exif: bytes
) -> bytes:
    """Make a PNG by the specification alone: gray or palette, perhaps interlaced, with extras."""
    interlace = bool(random.random() < 0.3)
    stream = b""
    for top, left, down, right in ADAM7 if interlace else [(0, 0, 1, 1)]:
        part = values[top::down, left::right]
        if part.size:
            bits = (part[..., None].astype(np.int64) >> np.arange(depth - 1, -1, -1)) & 1
            packed = np.packbits(bits.reshape(len(part), -1).astype(np.uint8), axis=1)
            stream += b"".join(b"\0" + row.tobytes() for row in packed)
    header = struct.pack(">IIBBBBB", *values.shape[::-1], depth, colour, 0, 0, interlace)
    chunks = [(b"IHDR", header), (b"eXIf", exif.removeprefix(b"Exif\0\0"))]
    if colour == 3:
        chunks.append((b"PLTE", random.integers(0, 256, 3 << depth, np.uint8).tobytes()))
        if random.random() < 0.5:
            chunks.append((b"tRNS", random.integers(0, 256, 1 << depth, np.uint8).tobytes()))
    elif random.random() < 0.3:
        chunks.append((b"tRNS", struct.pack(">H", int(random.integers(1 << depth)))))
    chunks += [(b"IDAT", zlib.compress(stream, 1)), (b"IEND", b"")]
    framed = [
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(framed)


def pillow_indices(data: bytes) -> Values:
    """Decode a PNG of one channel to its values, as Pillow does."""
    image = Image.open(io.BytesIO(data))
    orientation = image.getexif().get(0x0112, 1)
    depth = data[24]
    found = np.asarray(image).astype(np.int64)
    if image.mode == "L" and depth < 8:
        found //= 255 // ((1 << depth) - 1)
    return np.rot90(found, {1: 0, 3: 2, 6: 3, 8: 1}[orientation])


def pillow_nearest(values: Values, part: Part, picture: tuple[int, int]) -> Values:
    """Resize the part of a mask or of depth with Pillow's nearest.

    A pixel of a mask that is smaller than the picture is a square of the picture's pixels.
    """
    reduction = picture[0] // len(values)
    whole = values.repeat(reduction, axis=0).repeat(reduction, axis=1)
    image = Image.fromarray(whole.astype(np.float32 if values.dtype.kind == "f" else np.int32))
    resized = image.crop(part.box).resize(part.resized[::-1], Image.Resampling.NEAREST)
    return part.cut(np.asarray(resized))


def numpy_picture(picture: NDArray[np.uint8], part: Part, interpolation: str) -> Values:
    """Average the pixels under each pixel of the slot, in floats."""
    left, top, right, bottom = part.box
    source = picture[top:bottom, left:right].astype(np.float64)
    down, across = (
        _weights(length, resized, interpolation)
        for length, resized in zip(source.shape[:2], part.resized, strict=True)
    )
    columns = np.einsum("xw,hwc->hxc", across, source)
    found: Values = np.einsum("yh,hxc->yxc", down, columns.clip(0, 255)).clip(0, 255)
    return part.cut(found)


def _weights(length: int, resized: int, interpolation: str) -> Values:
    scale = length / resized
    if interpolation == "nearest":
        nearest = ((np.arange(resized) + 0.5) * scale).astype(int).clip(0, length - 1)
        return np.asarray(np.eye(length)[nearest])
    centres = (np.arange(resized)[:, None] + 0.5) * scale
    distances = np.abs(np.arange(length) + 0.5 - centres) / max(scale, 1)
    if interpolation == "bilinear":
        weights = (1 - distances).clip(0)
    else:
        inner = (1.5 * distances - 2.5) * distances**2 + 1
        outer = ((-0.5 * distances + 2.5) * distances - 4) * distances + 2
        weights = np.where(distances < 1, inner, np.where(distances < 2, outer, 0))
    return np.asarray(weights / weights.sum(axis=1, keepdims=True))


def torchvision_picture(picture: NDArray[np.uint8], part: Part, interpolation: str) -> Values:
    """Crop, resize and mirror a picture with torchvision's functions, version 2."""
    import torch  # noqa: PLC0415  peers load where they are asked
    from torchvision import tv_tensors  # noqa: PLC0415
    from torchvision.transforms.v2 import InterpolationMode, functional  # noqa: PLC0415

    left, top, right, bottom = part.box
    image = tv_tensors.Image(torch.from_numpy(picture.copy()).permute(2, 0, 1))
    mode = InterpolationMode(interpolation.replace("nearest", "nearest-exact"))
    place = (top, left, bottom - top, right - left)
    found = functional.resized_crop(image, *place, [*part.resized], mode, antialias=True)
    found = functional.crop(found, *part.window, *part.size)
    if part.flip:
        found = functional.horizontal_flip(found)
    return np.asarray(found.permute(1, 2, 0))


def numpy_places(places: NDArray[np.float64], part: Part) -> NDArray[np.float64]:
    """Move x and y, [..., 2], as edges of pixels move."""
    left, top, right, bottom = part.box
    rows, columns = part.resized
    scale = np.array([columns / (right - left), rows / (bottom - top)])
    moved: NDArray[np.float64] = (places - [left, top]) * scale - part.window[::-1]
    if part.flip:
        moved[..., 0] = part.size[1] - moved[..., 0]
    return moved


def numpy_boxes(boxes: NDArray[np.float64], part: Part) -> NDArray[np.float64]:
    """Move boxes and clip them; those of which nothing is left have no width or height."""
    moved = numpy_places(boxes.reshape(-1, 2, 2), part)
    sides = part.size[::-1]
    low, high = moved.min(axis=1).clip(0, sides), moved.max(axis=1).clip(0, sides)
    return np.concatenate([low, high], axis=1)


def albumentations_places(scene: Scene, part: Part) -> tuple[Values, Values, Values]:
    """Move boxes and points with albumentations.

    Returns:
        Boxes of at least a pixel, their numbers, and points. albumentations mirrors points as
        numbers of pixels, of which the first is 0 and the last one less than the width, and
        resizes them as edges; a pixel is added to what it mirrored, so that both are edges.
    """
    import albumentations  # noqa: PLC0415  as above

    top, left = part.window
    window = {"x_min": left, "y_min": top, "x_max": left + part.size[1]}
    steps = [
        albumentations.Crop(*part.box),
        albumentations.Resize(*part.resized),
        albumentations.Crop(**window, y_max=top + part.size[0]),
        albumentations.HorizontalFlip(p=float(part.flip)),
    ]
    compose = albumentations.Compose(
        steps,
        bbox_params=albumentations.BboxParams(
            format="pascal_voc",
            label_fields=["numbers"],
            min_width=1,  # pixels of the slot
            min_height=1,
            check_each_transform=False,
        ),
        keypoint_params=albumentations.KeypointParams(format="xy", remove_invisible=False),
    )
    numbers = np.arange(len(scene.boxes))
    found = compose(
        image=scene.picture, bboxes=scene.boxes, numbers=numbers, keypoints=scene.points
    )
    points = np.array(found["keypoints"], np.float64)
    if part.flip:
        points[:, 0] += 1
    return np.reshape(found["bboxes"], (-1, 4)), np.array(found["numbers"], int), points
