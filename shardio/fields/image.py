"""Decode an image to RGB, gray or RGBA pixels, whole or only what a crop needs, and encode one.

Every image takes one path: probe the header, decode as stored, compare the shape with the header,
turn by the EXIF orientation. simplejpeg decodes JPEG and OpenCV the other formats. A PNG is checked
first and handed over without metadata and animation, so that OpenCV has nothing to print. WebP and
BMP have no checksums, so only the checksums of an index detect changed bits.

Alpha is dropped, not composited. Where four channels are asked for it is kept, and is 255 in a
picture without. 16 bits per channel keep their high byte. Gray becomes three equal channels.
Colours that are read as gray become the luma of BT.601, which a JPEG stores. Of an animation the
default image of a PNG or the first frame of a WebP is decoded.

The crop is known before decoding. If the checksum of a JPEG was verified, the rows below the crop
are not decoded, which changes no pixel. If the crop is several times larger than the slot, the JPEG
is decoded at 1/2, 1/4 or 1/8 of its size. That averages pixels where a plain bilinear resize would
skip them, so the result is closer to an antialiased resize. The edges of the crop are exact to a
fraction of a pixel. A crop that asks for antialiasing, cubic interpolation or nearest pixels has
them from all pixels.

OpenCV's own threads would multiply those of a loader, so they are switched off while shardio
decodes. This is done with the number 0. The number 1 would also end the threads, and a forked
child, which has OpenCV's records of the threads but not the threads, would wait for ever or crash.
"""

from __future__ import annotations

import os
import re
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import DTypeLike, NDArray

from shardio.errors import CodecError, UsageError
from shardio.fields.boundary import decoder
from shardio.fields.exif import UPRIGHT, apply_orientation, place_as_stored
from shardio.fields.formats import FORMATS, probe_image
from shardio.fields.geometry import PLAIN, axes, placed
from shardio.fields.jpeg import LEAST_SHRUNK, decode_jpeg_top
from shardio.fields.limits import MAX_PIXELS
from shardio.fields.png import index_png
from shardio.fields.probe import ImageInfo
from shardio.fields.resample import write_antialiased, write_nearest
from shardio.native.table import resize_linear
from shardio.processes import is_forked, new_lock

if TYPE_CHECKING:
    from collections.abc import Iterator

    from shardio.fields.geometry import Crop, Placed
    from shardio.fields.probe import Buffer

_NATIVE_RGB: int | None = getattr(cv2, "IMREAD_COLOR_RGB", None)  # OpenCV 4.11 and later
_FLAGS = cv2.IMREAD_IGNORE_ORIENTATION | (_NATIVE_RGB or cv2.IMREAD_COLOR)
_TITLES = {"jpeg": "JPEG", "webp": "WebP", "bmp": "BMP"}
_LOG_LEVEL = "OPENCV_LOG_LEVEL"


class _OpenCVThreads:
    """Keeps OpenCV from using threads of its own while threads of this process call it."""

    def __init__(self) -> None:
        self._lock = new_lock()
        self._users = 0
        self._before = 0

    @contextmanager
    def one(self) -> Iterator[None]:
        if is_forked():
            forbid_opencv_threads()
            yield
            return
        process = os.getpid()
        with self._lock:
            if not self._users:
                self._before = cv2.getNumThreads()
                forbid_opencv_threads()
            self._users += 1
        try:
            yield
        finally:
            if process == os.getpid():
                self._leave()

    def _leave(self) -> None:
        with self._lock:
            self._users -= 1
            if not self._users and self._before > 1:  # also 1 where it was 0
                cv2.setNumThreads(self._before)


one_opencv_thread = _OpenCVThreads().one
"""A context in which OpenCV works in the thread that calls it; its setting returns after it, but
not in a forked child."""


def forbid_opencv_threads() -> None:
    """Have OpenCV work in the thread that calls it, for the rest of this process."""
    cv2.setNumThreads(0)


def decode_with_opencv(
    data: Buffer,
    info: ImageInfo,
    *,
    alpha: bool = False,
    transparent: tuple[int, ...] | None = None,
) -> NDArray[np.uint8]:
    """Decode an image that is not a JPEG to RGB, or to RGBA, without turning it.

    OpenCV copies the pixels once, from its own memory to NumPy's.

    Args:
        data: the whole file.
        info: header of the image.
        alpha: whether to decode to RGBA.
        transparent: with alpha, the one transparent colour of a file that has no alpha.

    Raises:
        CodecError: OpenCV refuses the image.
        MemoryError: the machine does not have the memory that an image of this size takes.
    """
    if alpha:
        return _to_rgba(_with_opencv(data, info, cv2.IMREAD_UNCHANGED), info, transparent)
    pixels: NDArray[np.uint8] = _with_opencv(data, info, _FLAGS)
    if _NATIVE_RGB is None:
        cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB, dst=pixels)
    return pixels


_TO_RGBA = {1: cv2.COLOR_GRAY2RGBA, 3: cv2.COLOR_BGR2RGBA, 4: cv2.COLOR_BGRA2RGBA}


def _to_rgba(
    pixels: Any, info: ImageInfo, transparent: tuple[int, ...] | None
) -> NDArray[np.uint8]:
    """Turn what OpenCV decodes, 8 or 16 bits of gray, BGR or BGRA, into RGBA of 8 bits."""
    channels = pixels.shape[2] if pixels.ndim == 3 else 1
    found: Any = cv2.cvtColor(pixels, _TO_RGBA[channels])
    if transparent is not None:
        spread = 255 // (2**info.bits - 1) if info.bits < 8 else 1  # as OpenCV enlarges gray
        hidden = (found[..., :3] == np.array(transparent) * spread).all(axis=2)
        found[..., 3] = np.where(hidden, 0, np.iinfo(found.dtype).max)
    eight: NDArray[np.uint8] = (found >> 8).astype(np.uint8) if found.itemsize > 1 else found
    return eight


def _with_channels(pixels: NDArray[np.uint8], channels: int) -> NDArray[np.uint8]:
    """Return pixels as they are, or RGB as gray or with an alpha of 255."""
    if pixels.shape[2] == channels:
        return pixels
    how = cv2.COLOR_RGB2GRAY if channels == 1 else cv2.COLOR_RGB2RGBA
    found: Any = cv2.cvtColor(pixels, how).reshape(*pixels.shape[:2], channels)
    return found  # type: ignore[no-any-return]


_OF_OPENCV = re.compile(r"^OpenCV\(.*error: \(-\d+:[^)]*\) (.*) in function '.*'$", re.DOTALL)
"""Text of an error of OpenCV, with the reason as its group."""


def _with_opencv(data: Buffer, info: ImageInfo, flags: int) -> NDArray[Any]:
    try:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error as error:
        _allocate_for_trial(info)
        # Not error.err, which is an attribute of the class: another thread may have set it.
        reason = _OF_OPENCV.sub(r"\1", str(error).strip())
        raise CodecError(f"OpenCV refuses the image: {reason}") from None
    if pixels is None:
        _allocate_for_trial(info)
        raise CodecError("OpenCV does not decode the image: its data are corrupt or of a rare kind")
    return pixels


def _allocate_for_trial(info: ImageInfo) -> None:
    """Raise MemoryError if that is why OpenCV gave nothing, which it does not tell."""
    np.empty((2, info.height, info.width, 3), np.uint8)


def _hush() -> None:
    """Leave errors to exceptions: OpenCV prints them too, unless the user set its level."""
    logging = cv2.utils.logging
    if _LOG_LEVEL not in os.environ and logging.getLogLevel() == logging.LOG_LEVEL_WARNING:
        logging.setLogLevel(logging.LOG_LEVEL_FATAL)


_hush()


class Scratch(threading.local):
    """A growing uint8 buffer for each thread that uses it, kept for the next image.

    New memory costs a page fault for each of its pages: a quarter of the time that decoding a
    small photo takes.
    """

    KEEP = 1 << 26
    """Most bytes kept between uses, so that one huge image does not hold memory for ever."""

    def __init__(self) -> None:
        self._buffer = np.empty(0, np.uint8)

    def take(self, size: int) -> NDArray[np.uint8]:
        """Lend a buffer of at least size bytes, valid until the next call."""
        if size > self.KEEP:
            return np.empty(size, np.uint8)
        if size > self._buffer.size:
            self._buffer = np.empty(min(size + size // 2, self.KEEP), np.uint8)
        return self._buffer


@decoder
def decode_image(
    data: Buffer,
    info: ImageInfo | None = None,
    *,
    scratch: Scratch | None = None,
    max_pixels: int = MAX_PIXELS,
    verified: bool = False,
    channels: int = 3,
) -> NDArray[np.uint8]:
    """Decode a JPEG, PNG, WebP or BMP to RGB, turned by its EXIF orientation.

    Alpha is dropped, not composited; 16 bits per channel keep their high byte.

    Args:
        data: the whole file.
        info: result of probe_image; probed here when not given.
        scratch: buffer for the pixels. With it, the result is a view, perhaps not contiguous,
            and valid until the scratch's next use; without it, a contiguous array of its own.
        max_pixels: see probe_image; only where info is not given.
        verified: whether the data have the checksum that an index recorded. libpng then sees a tiny
            PNG as it is, and may print a line about it if it was corrupt before that. And a JPEG
            may have bytes too many behind its data, see shardio.fields.jpeg.
        channels: 1 for gray, 3 for RGB or 4 for RGBA.

    Returns:
        uint8 [H, W, channels].

    Raises:
        CodecError: the bytes are not an image of these formats, or truncated, or corrupt, or
            exceed a limit.
        MemoryError: the machine does not have the memory that the image takes.
    """
    view = memoryview(data).cast("B")
    if info is None:
        info = probe_image(view, max_pixels=max_pixels)
    pixels = _decode_stored(view, info, scratch, 1, verified, channels)
    if info.orientation != UPRIGHT:
        pixels = apply_orientation(pixels, info.orientation)
        if scratch is None:
            pixels = np.ascontiguousarray(pixels)
    return pixels


@decoder
def decode_stored(
    view: memoryview,
    info: ImageInfo,
    scratch: Scratch | None,
    *,
    shrink: int = 1,
    verified: bool = False,
) -> NDArray[np.uint8]:
    """Decode an image whole, without turning it.

    Args:
        view: the whole file.
        info: result of probe_image.
        scratch: see decode_image.
        shrink: see decode_jpeg; 1 for other formats.
        verified: see decode_image.

    Returns:
        uint8 [ceil(H / shrink), ceil(W / shrink), 3].

    Raises:
        CodecError: see decode_image.
    """
    return _decode_stored(view, info, scratch, shrink, verified, 3)


def _decode_stored(
    view: memoryview,
    info: ImageInfo,
    scratch: Scratch | None,
    shrink: int,
    verified: bool,
    channels: int,
) -> NDArray[np.uint8]:
    height, width = stored_height, stored_width = info.stored_size
    format_, buffer = FORMATS[info.format], None
    if format_.shrinks:
        height, width = -(-stored_height // shrink), -(-stored_width // shrink)
        buffer = None if scratch is None else scratch.take(height * width * 3)
    pixels = format_.decode(view, info, buffer, shrink, verified, channels)
    if pixels.shape[:2] != (height, width) or pixels.dtype != np.uint8:
        raise CodecError(
            f"the pixels decode to {pixels.shape}, but the header announces {info.stored_size}"
        )
    return _with_channels(pixels, channels)


@decoder
def decode_values(
    data: Buffer, info: ImageInfo | None = None, *, max_pixels: int = MAX_PIXELS
) -> NDArray[np.uint8 | np.uint16]:
    """Decode the values that a PNG of one channel stores, turned by its EXIF orientation.

    Of a PNG with a palette the values are indices into it, and may lie beyond its end.

    Args:
        data: the whole file.
        info: result of probe_image; probed here when not given.
        max_pixels: see probe_image; only where info is not given.

    Returns:
        [H, W], contiguous; uint16 for values of 16 bits, else uint8.

    Raises:
        CodecError: the bytes are not a PNG of one channel, or not sound, or exceed a limit.
        MemoryError: the machine does not have the memory that the image takes.
    """
    view = memoryview(data).cast("B")
    if info is None:
        info = probe_image(view, max_pixels=max_pixels)
    if not FORMATS[info.format].holds_values:
        raise CodecError(
            f"a {FORMATS[info.format].title} holds colours, and no values to read exactly",
            remedy="save it as a PNG with a palette or as gray",
        )
    values = _with_opencv(index_png(view, info.chunks), info, cv2.IMREAD_UNCHANGED)
    if values.shape != info.stored_size or values.dtype != (
        np.uint16 if info.bits > 8 else np.uint8
    ):
        raise CodecError(
            f"the values decode to {values.shape}, but the header announces {info.stored_size}"
        )
    if info.bits < 8:
        values //= np.uint8(255 // (2**info.bits - 1))
    if info.orientation != UPRIGHT:
        values = apply_orientation(values[..., None], info.orientation)[..., 0]
    return np.ascontiguousarray(values)


_LEAST_RATIOS = (3.75, 4.5, 8.0)
"""How many times larger than the slot a crop must be to be shrunk by 2, 4 and 8; below, a plain
linear resize of all pixels is nearer to an antialiased one, measured on blurred noise."""
_METHODS = {"bilinear": cv2.INTER_LINEAR, "bicubic": cv2.INTER_CUBIC}


class DecodedPart(NamedTuple):
    """What was decoded of a picture for a crop.

    Attributes:
        pixels: uint8 [h, w, channels] as stored, from the first row and column on.
        shrink: divisor of the sides.
    """

    pixels: NDArray[np.uint8]
    shrink: int


@decoder
def decode_part(
    data: Buffer,
    info: ImageInfo,
    crop: Crop,
    size: tuple[int, int],
    *,
    scratch: Scratch,
    reduced: bool,
    verified: bool,
    channels: int = 3,
) -> DecodedPart:
    """Decode what a crop of a JPEG, PNG, WebP or BMP needs.

    Args:
        data: the whole file.
        info: result of probe_image.
        crop: inside the picture as shown.
        size: height and width of the slot.
        scratch: buffer for the pixels, which are valid until its next use.
        reduced: let large JPEGs be decoded at a part of their size, if the crop is resampled
            plainly.
        verified: the data have the checksum that they should. Otherwise a JPEG is decoded to its
            end, where decoders notice most damage.
        channels: see decode_image.

    Raises:
        CodecError: see decode_image.
    """
    view = memoryview(data).cast("B")
    shrink = _shrink(info, crop, size) if reduced and FORMATS[info.format].shrinks else 1
    pixels = None
    if info.format == "jpeg" and verified:
        _, _, bottom, _ = _box_as_stored(info, crop, size)
        gray, take = channels == 1, scratch.take
        pixels = decode_jpeg_top(view, info, take, rows=bottom, shrink=shrink, gray=gray)
    if pixels is None:
        pixels = _decode_stored(view, info, scratch, shrink, verified, channels)
    return DecodedPart(_with_channels(pixels, channels), shrink)


@decoder
def write_part(
    part: DecodedPart,
    info: ImageInfo,
    crop: Crop,
    out: NDArray[np.uint8],
    *,
    with_core: bool = True,
) -> None:
    """Resize a crop into a slot, turned and mirrored as orientation and crop say.

    Args:
        part: decoded part of the picture; if it is shrunk and the crop is not resampled plainly,
            its sides are whole fractions of the picture's.
        info: header of the picture.
        crop: crop that the part was decoded for.
        out: uint8 [h, w, channels], contiguous, where the result goes.
        with_core: have the native core resize where it can, so that a picture has the same pixels
            whether the core or this function reads it; otherwise OpenCV does.
    """
    size = out.shape[0], out.shape[1]
    if (found := placed(crop, size)) is not None:
        write_part(part, info, found.crop, out[found.place], with_core=with_core)
        fill_margin(found, crop, out)
        return
    if part.shrink == 1:
        top, left, bottom, right = _box_as_stored(info, crop, size)
        shown = part.pixels[top:bottom, left:right]
        if info.orientation != UPRIGHT:
            shown = apply_orientation(shown, info.orientation)
        _fill(shown, crop, out, with_core=with_core)
    elif crop.resampling == PLAIN:
        _write_shrunk(part, info, crop, out, with_core=with_core)
    else:
        rows, columns = axes(crop, size, part.shrink)
        shown = apply_orientation(part.pixels, info.orientation)[rows.first :, columns.first :]
        _fill(shown, crop, out, shrink=part.shrink)


def _write_shrunk(
    part: DecodedPart, info: ImageInfo, crop: Crop, out: NDArray[np.uint8], *, with_core: bool
) -> None:
    """Resize a crop of a shrunk picture into a slot; see write_part."""
    shrink, stored = part.shrink, info.stored_size
    size = out.shape[0], out.shape[1]
    if with_core and (info.orientation == UPRIGHT or not any(side % shrink for side in stored)):
        whole = part.pixels
        height, width = (-(-side // shrink) for side in stored)
        if len(whole) != height:  # the rows below, which are not needed, may be missing
            whole = np.zeros((height, width, whole.shape[2]), np.uint8)
            whole[: len(part.pixels)] = part.pixels[:height]
        shown = np.ascontiguousarray(apply_orientation(whole, info.orientation))
        if resize_linear(shown, axes(crop, size, shrink), out, flip=crop.flip):
            return
    matrix = _sampling(info, crop, size, shrink)
    how = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    cv2.warpAffine(part.pixels, matrix, size[::-1], out, how, cv2.BORDER_REPLICATE)


@decoder
def write_crop(pixels: NDArray[np.uint8], crop: Crop, out: NDArray[np.uint8]) -> None:
    """Resize a crop of a decoded picture into a slot, mirrored if the crop says so.

    Args:
        pixels: uint8 [H, W, channels], any view.
        crop: a rectangle inside the picture.
        out: uint8 [h, w, channels], contiguous, where the result goes.
    """
    info = ImageInfo(format="", height=pixels.shape[0], width=pixels.shape[1])
    write_part(DecodedPart(pixels, 1), info, crop, out)


def fill_margin(part: Placed, crop: Crop, out: NDArray[np.uint8]) -> None:
    """Fill the margin of a slot whose part is filled.

    Args:
        part: part of the slot.
        crop: crop that fills the slot.
        out: uint8 [h, w, channels], the slot.
    """
    fill = np.array(0 if crop.fill == "reflect" else crop.fill, np.uint8).reshape(-1, 1, 1)
    part.fill_margin(np.moveaxis(out, -1, 0), fill)


def _fill(
    source: NDArray[np.uint8],
    crop: Crop,
    out: NDArray[np.uint8],
    *,
    shrink: int = 1,
    with_core: bool = False,
) -> None:
    """Resize what a crop needs of a picture into a slot, and mirror it if the crop says so.

    Args:
        source: uint8 [h, w, channels] as shown, any view: from the first row and column of the
            crop's rectangle on, at least as far as the slot needs.
        crop: rectangle of the picture.
        out: see write_part.
        shrink: divisor of the sides of the source.
        with_core: have the native core resize where it can.
    """
    if out.dtype != np.uint8 or out.shape[2:] != source.shape[2:]:
        raise UsageError(
            f"the slot must be uint8 [h, w, {source.shape[2]}], not {out.dtype} {list(out.shape)}"
        )
    size = out.shape[0], out.shape[1]
    interpolation, antialias = crop.resampling
    if interpolation == "nearest":
        write_nearest(source, *axes(crop, size, shrink), out)
    elif antialias:
        cubic = interpolation == "bicubic"
        write_antialiased(source, *axes(crop, size, shrink), out, cubic=cubic)
    elif (
        with_core
        and interpolation == "bilinear"
        and resize_linear(np.ascontiguousarray(source), axes(crop, size), out, flip=crop.flip)
    ):
        return
    elif crop.resized is not None:
        height, width = crop.resized
        whole = cv2.resize(source, (width, height), interpolation=_METHODS[interpolation])
        top, left = crop.window
        out[...] = whole[top : top + size[0], left : left + size[1]].reshape(out.shape)
    else:
        cv2.resize(source, size[::-1], dst=out, interpolation=_METHODS[interpolation])
    if crop.flip:
        cv2.flip(out, 1, dst=out)


def _shrink(info: ImageInfo, crop: Crop, size: tuple[int, int]) -> int:
    """Return the greatest of 1, 2, 4 and 8 that costs no likeness to an antialiased resize."""
    if crop.resampling != PLAIN:
        return 1
    height, width = crop.resized or size
    ratio = min(crop.height / height, crop.width / width)
    found: int = shrink_of(min(info.height, info.width), ratio)
    return found


def shrink_of(side: Any, ratio: Any) -> Any:
    """Return by what JPEGs are shrunk for plain resizing: 1, 2, 4 or 8.

    Args:
        side: shorter side of the picture, or those of several.
        ratio: size of a crop, or of several, divided by that of the slot.
    """
    steps = sum([(ratio >= least) * 1 for least in _LEAST_RATIOS])  # a generator takes longer
    return 1 << (side >= LEAST_SHRUNK) * steps


def _box_as_stored(info: ImageInfo, crop: Crop, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """Top, left, bottom and right of what a slot needs of a crop, in the picture as stored."""
    bottom, right = crop.top + crop.height, crop.left + crop.width
    interpolation, antialias = crop.resampling
    if antialias or interpolation == "nearest":
        down, across = axes(crop, size)
        support = 2 if interpolation == "bicubic" else 1
        bottom, right = crop.top + down.needed(support), crop.left + across.needed(support)
    if info.orientation == UPRIGHT:
        return crop.top, crop.left, bottom, right
    corners = [_as_stored(info, crop.top, crop.left), _as_stored(info, bottom, right)]
    rows, columns = (
        sorted(round(place) for place in places) for places in zip(*corners, strict=True)
    )
    return rows[0], columns[0], rows[1], columns[1]


def _as_stored(info: ImageInfo, row: float, column: float) -> tuple[float, float]:
    return place_as_stored(
        row, column, orientation=info.orientation, height=info.height, width=info.width
    )


def _sampling(
    info: ImageInfo, crop: Crop, size: tuple[int, int], shrink: int
) -> NDArray[np.float64]:
    """From pixels of the slot to places in the shrunk picture as stored, an affine [2, 3].

    Columns come first in it, and pixel i reaches from i - 1/2 to i + 1/2, both as in OpenCV.
    """
    rows, columns = axes(crop, size)
    step_down, step_right, start = rows.scale, columns.scale, columns.window
    if crop.flip:
        start, step_right = start + columns.kept, -step_right
    upper = crop.top + crop.height * rows.window / rows.resized
    first = crop.left + crop.width * start / columns.resized
    top, left = upper + step_down / 2, first + step_right / 2
    origin, right, down = (
        np.array(_as_stored(info, row, column))[::-1] / shrink - 0.5
        for row, column in ((top, left), (top, left + step_right), (top + step_down, left))
    )
    return np.stack([right - origin, down - origin, origin], axis=1)


def encode_image(pixels: NDArray[np.uint8], format_: str, quality: int) -> bytes:
    """Make an image file without metadata.

    Args:
        pixels: uint8 [H, W, 1, 3 or 4], gray, RGB or RGBA, in C order.
        format_: name of a format of shardio.fields.formats.
        quality: 1 to 100, of JPEG (baseline, 4:2:0) and WebP.

    Raises:
        CodecError: the format cannot hold such pixels, as WebP none with a side over 16,383.
    """
    try:
        return FORMATS[format_].encode(pixels, quality)
    except (cv2.error, ValueError) as error:
        raise CodecError(f"the pixels cannot be encoded as {format_}: {error}") from None


def encode_with_opencv(pixels: NDArray[np.uint8], extension: str, quality: int) -> bytes:
    """Encode gray, RGB or RGBA pixels with OpenCV.

    Args:
        pixels: uint8 [H, W, 1, 3 or 4].
        extension: end of a file name that names the format.
        quality: 1 to 100, of WebP.

    Raises:
        cv2.error: OpenCV refuses the pixels.
        ValueError: the encoder gives nothing.
    """
    options = [cv2.IMWRITE_WEBP_QUALITY, quality] if extension == ".webp" else []
    order = [2, 1, 0, 3][: pixels.shape[2]] if pixels.shape[2] > 1 else [0]
    done, encoded = cv2.imencode(extension, np.ascontiguousarray(pixels[..., order]), options)
    if not done:
        raise ValueError("the encoder gave nothing")
    return encoded.tobytes()


def encode_values(values: NDArray[np.generic], dtype: DTypeLike) -> bytes:
    """Encode values as a gray PNG: the inverse of decode_values.

    Args:
        values: whole numbers [H, W].
        dtype: uint8 or uint16, which must hold them.
    """
    _, encoded = cv2.imencode(".png", np.ascontiguousarray(values, dtype))
    return encoded.tobytes()
