"""How much work and memory the bytes of an image may ask for.

Four limits, which one argument raises, `max_pixels`:

- An image has at most `max_pixels` pixels.
- A file that is small for its pixels is refused, as solid colours that fill a gigabyte are: beyond
  16 megapixels each byte may stand for 1,024 pixels. That is what deflate makes of an empty mask,
  so that an 8-bit mask passes at any size, and below 16 megapixels any file does.
- The scans of a progressive JPEG are each a pass over all pixels, so an image of `max_pixels` may
  have 12; of a smaller one proportionally more. Encoders write about 10.
- The compressed pixels of a PNG are at most twice the pixels themselves, and 64 KiB.

Decoding other formats takes time in proportion to their bytes, which are read anyway. The last
three limits are for `max_pixels` as it is by default; a greater one raises them in proportion, a
smaller one leaves them. Each refusal says which `max_pixels` lets the image through. Within the
limits decoding takes up to 6 bytes a pixel, and as much again for small PNGs: OpenCV's binding
copies what it decoded, and a progressive JPEG keeps its coefficients.
"""

from __future__ import annotations

from shardio.errors import CodecError, argument

MAX_PIXELS = 178_956_970
"""Pillow's limit for its decompression bomb error: half a gigabyte of RGB."""

MAX_RESIZED_PIXELS = (1 << 30) - 1
"""Limit of pictures that are packed at another size, of which readers see few pixels; OpenCV's. As
nobody asked for it, it raises no other limit."""

NO_LIMIT = 1 << 62
"""Limit that no image reaches, for what looks at headers alone."""

_FREE_PIXELS = 1 << 24
_PIXELS_A_BYTE = 1024
_SCANS = 12
_EXPANSION = 2
FREE_BYTES = 1 << 16
"""Bytes that compressed pixels may have at any rate."""


def limit_pixels(height: int, width: int, *, size: int, max_pixels: int) -> None:
    """Raise CodecError for more pixels than are allowed, at all or in a file of so many bytes."""
    pixels = height * width
    if pixels <= min(max_pixels, _FREE_PIXELS):
        return
    needed = _needed(pixels, _FREE_PIXELS + _PIXELS_A_BYTE * size)
    if pixels > max_pixels:
        raise _refusal(
            f"the header announces {width} x {height} pixels, more than the limit of {max_pixels}",
            max(pixels, needed if needed > MAX_PIXELS else 0),
        )
    if needed > _raised(max_pixels):
        raise _refusal(f"only {size} bytes for {width} x {height} pixels", needed)


def limit_scans(scans: int, height: int, width: int, *, max_pixels: int) -> None:
    """Raise CodecError for more scans of a JPEG than are allowed for so many pixels."""
    needed = _needed(scans * max(height * width, _FREE_PIXELS), _SCANS * MAX_PIXELS)
    if needed > _raised(max_pixels):
        raise _refusal(
            f"a JPEG of {scans} scans of {width} x {height} pixels, where real ones have about 10",
            needed,
        )


def limit_packed(size: int, unpacked: int, *, max_pixels: int) -> None:
    """Raise CodecError for compressed pixels that are far larger than the pixels themselves."""
    needed = _needed(size, _EXPANSION * unpacked + FREE_BYTES)
    if needed > _raised(max_pixels):
        raise _refusal(f"{size} bytes of compressed pixels for {unpacked} bytes of pixels", needed)


def _raised(max_pixels: int) -> int:
    """Return the number of pixels by which the limits other than that on pixels are raised."""
    return MAX_PIXELS if max_pixels == MAX_RESIZED_PIXELS else max(max_pixels, MAX_PIXELS)


def _needed(work: int, allowed: int) -> int:
    """Return the max_pixels for which work is allowed, of which some is by default."""
    return -(-work * MAX_PIXELS // allowed)


def _refusal(what: str, needed: int) -> CodecError:
    given = argument("max_pixels", needed)
    return CodecError(what, remedy=f"if the file is trusted, {given} lets it through")
