"""Decoding for a crop gives what decoding whole gives, or says how it differs."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import pytest
import simplejpeg
from hypothesis import assume, given
from hypothesis import strategies as st

from shardio.errors import CodecError
from shardio.fields.formats import probe_image
from shardio.fields.geometry import Crop, Resampling
from shardio.fields.image import Scratch, decode_image, decode_part, write_crop, write_part
from shardio.padded import Letterbox
from shardio.transforms import CenterCrop, RandomResizedCrop

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    Pixels = NDArray[np.uint8]

SAMPLINGS = ["444", "422", "420", "440", "411", "Gray"]


def picture(height: int, width: int, seed: int = 0) -> Pixels:
    """Blurred noise on a ramp: detail at several scales, as photos have."""
    rng = np.random.default_rng(seed)
    noise = rng.normal(0, 60, (height, width, 3)).astype(np.float32)
    rough = cv2.GaussianBlur(noise, (0, 0), 1.5) * 2 + cv2.GaussianBlur(noise, (0, 0), 8) * 8
    ramp = np.linspace(60, 190, width, dtype=np.float32)[None, :, None]
    pixels: Pixels = np.clip(rough + ramp, 0, 255).astype(np.uint8)
    return pixels


def encode(pixels: Pixels, sampling: str = "420", quality: int = 90) -> bytes:
    if sampling == "Gray":
        gray = np.ascontiguousarray(pixels[..., :1])
        return simplejpeg.encode_jpeg(gray, quality, "GRAY", "Gray")  # type: ignore[no-any-return]
    return simplejpeg.encode_jpeg(pixels, quality, "RGB", sampling)  # type: ignore[no-any-return]


def with_restarts(pixels: Pixels, interval: int, quality: int = 90) -> bytes:
    options = [cv2.IMWRITE_JPEG_QUALITY, quality, cv2.IMWRITE_JPEG_RST_INTERVAL, interval]
    return cv2.imencode(".jpg", pixels, options)[1].tobytes()


def turned(data: bytes, orientation: int) -> bytes:
    """The JPEG with an EXIF orientation."""
    tiff = b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0" + bytes([orientation]) + bytes(6)
    segment = b"Exif\0\0" + tiff
    return data[:2] + b"\xff\xe1" + (len(segment) + 2).to_bytes(2, "big") + segment + data[2:]


def fill(
    data: bytes,
    crop: Crop,
    size: tuple[int, int],
    *,
    reduced: bool,
    verified: bool = True,
    channels: int = 3,
) -> tuple[Pixels, int]:
    info = probe_image(data)
    out = np.zeros((*size, channels), np.uint8)
    part = decode_part(
        data,
        info,
        crop,
        size,
        scratch=Scratch(),
        reduced=reduced,
        verified=verified,
        channels=channels,
    )
    write_part(part, info, crop, out)
    return out, part.shrink


def from_whole(data: bytes, crop: Crop, size: tuple[int, int], channels: int = 3) -> Pixels:
    out = np.zeros((*size, channels), np.uint8)
    write_crop(decode_image(data, channels=channels), crop, out)
    return out


resamplings = st.builds(
    Resampling, st.sampled_from(["nearest", "bilinear", "bicubic"]), st.booleans()
)


@st.composite
def pictures_and_crops(draw: st.DrawFn) -> tuple[bytes, Crop]:
    height, width = draw(st.integers(1, 150)), draw(st.integers(1, 90))
    pixels = picture(height, width, draw(st.integers(0, 99)))
    kind = draw(st.sampled_from([*SAMPLINGS, "restarts", "progressive", "png"]))
    if kind == "restarts":
        data = with_restarts(pixels, draw(st.integers(1, 20)))
    elif kind == "progressive":
        data = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_PROGRESSIVE, 1])[1].tobytes()
    elif kind == "png":
        data = cv2.imencode(".png", pixels)[1].tobytes()
    else:
        data = encode(pixels, kind, draw(st.integers(20, 100)))
    orientation = draw(st.integers(1, 8)) if kind != "png" else 1
    if orientation > 1:
        data = turned(data, orientation)
    info = probe_image(data)
    top, left = draw(st.integers(0, info.height - 1)), draw(st.integers(0, info.width - 1))
    return data, Crop(
        top,
        left,
        draw(st.integers(1, info.height - top)),
        draw(st.integers(1, info.width - left)),
        draw(st.booleans()),
        resampling=draw(resamplings),
    )


@given(
    pictures_and_crops(),
    st.tuples(st.integers(1, 40), st.integers(1, 40)),
    st.none() | st.tuples(*[st.integers(-20, 30)] * 4),
    st.sampled_from([7, 0, "reflect"]),
    st.sampled_from([1, 3, 4]),
)
def test_without_reduced_decoding_a_crop_is_that_of_the_whole_picture_to_the_bit(
    case: tuple[bytes, Crop],
    size: tuple[int, int],
    around: tuple[int, int, int, int] | None,
    outside: Any,
    channels: int,
) -> None:
    data, crop = case
    if around is not None:
        above, before, below, behind = around
        resized = size[0] + above + below, size[1] + before + behind
        assume(min(resized) > 0)
        assume(min(size[0] + below, size[0] + above, size[1] + behind, size[1] + before) > 0)
        assume(outside != "reflect" or min(around) >= 0 or max(around) <= 0)
        crop = crop._replace(resized=resized, window=(above, before), fill=outside)
    np.testing.assert_array_equal(
        fill(data, crop, size, reduced=False, channels=channels)[0],
        from_whole(data, crop, size, channels),
    )


def test_rows_below_a_crop_are_not_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    heights: list[int] = []
    decode = simplejpeg.decode_jpeg

    def spy(data: bytes, *args: Any, **options: Any) -> Pixels:
        heights.append(probe_image(bytes(data)).stored_size[0])
        return decode(data, *args, **options)  # type: ignore[no-any-return]

    monkeypatch.setattr(simplejpeg, "decode_jpeg", spy)
    for data in (encode(picture(400, 300)), with_restarts(picture(400, 300), 7)):
        fill(data, Crop(10, 0, 90, 300), (64, 64), reduced=False)
        fill(turned(data, 3), Crop(310, 0, 90, 300), (64, 64), reduced=False)
        fill(turned(data, 6), Crop(0, 310, 300, 90), (64, 64), reduced=False)
    fill(encode(picture(400, 300)), Crop(10, 0, 90, 300), (64, 64), reduced=False, verified=False)
    assert heights.pop() == 400
    assert heights == [104, 94, 94, 112, 112, 112]  # whole restart intervals end at 112


def test_rows_below_the_window_of_a_resized_picture_are_not_decoded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    heights: list[int] = []
    decode = simplejpeg.decode_jpeg

    def spy(data: bytes, *args: Any, **options: Any) -> Pixels:
        heights.append(probe_image(bytes(data)).stored_size[0])
        return decode(data, *args, **options)  # type: ignore[no-any-return]

    monkeypatch.setattr(simplejpeg, "decode_jpeg", spy)
    crop = CenterCrop(20, resize=40).crop(400, 300)
    fill(encode(picture(400, 300)), crop, (20, 20), reduced=True)
    # 400 x 300 becomes 53 x 40; rows 16 to 35 are kept, which average up to row 275 of the source.
    assert heights == [275 + 4]


def flipped(data: bytes, rng: np.random.Generator) -> bytes:
    """The JPEG with one bit of its scan turned over."""
    damaged = bytearray(data)
    place = int(rng.integers(probe_image(data).scan, len(data) - 2))
    damaged[place] ^= 1 << int(rng.integers(8))
    return bytes(damaged)


@pytest.mark.parametrize("restarts", [0, 5])
def test_damage_is_noticed_as_in_the_whole_picture_unless_checksums_vouch_for_the_bytes(
    restarts: int,
) -> None:
    pixels = picture(320, 240)
    data = with_restarts(pixels, restarts) if restarts else encode(pixels)
    rng, crop, size, noticed = np.random.default_rng(0), Crop(0, 0, 160, 240), (64, 64), 0
    for _ in range(150):
        damaged = flipped(data, rng)
        try:
            expected = from_whole(damaged, crop, size)
        except CodecError:
            noticed += 1
            with pytest.raises(CodecError):
                fill(damaged, crop, size, reduced=False, verified=False)
        else:
            found, _ = fill(damaged, crop, size, reduced=False, verified=False)
            np.testing.assert_array_equal(found, expected)
    assert noticed > 20


def test_with_restart_markers_damage_in_the_rows_of_a_crop_is_noticed_in_any_case() -> None:
    data = with_restarts(picture(320, 240), 5)
    rng, crop, size = np.random.default_rng(0), Crop(0, 0, 160, 240), (64, 64)
    sound, outcomes = from_whole(data, crop, size), []
    for _ in range(150):
        damaged = flipped(data, rng)
        try:
            from_whole(damaged, crop, size)
        except CodecError:
            try:
                found, _ = fill(damaged, crop, size, reduced=False)
            except CodecError:
                outcomes.append("noticed")
            else:
                outcomes.append("below the crop")
                np.testing.assert_array_equal(found, sound)
    assert min(outcomes.count("noticed"), outcomes.count("below the crop")) > 5


def test_bytes_too_many_before_a_restart_marker_of_the_crop_are_noticed() -> None:
    data = with_restarts(picture(320, 240), 15)
    second = data.index(b"\xff\xd1", probe_image(data).scan)
    damaged = data[:second] + b"\x12\x34" + data[second:]
    crop = Crop(0, 0, 160, 240)
    with pytest.raises(CodecError, match=r"extraneous bytes before marker 0xd\d"):
        from_whole(damaged, crop, (64, 64))
    with pytest.raises(CodecError, match=r"extraneous bytes before marker 0xd\d"):
        fill(damaged, crop, (64, 64), reduced=False)


def psnr(a: Pixels, b: NDArray[Any]) -> float:
    return float(10 * np.log10(255**2 / np.mean((a.astype(float) - b) ** 2)))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("shrink", [2, 4, 8])
def test_reduced_decoding_is_nearer_to_an_antialiased_resize_than_linear(
    shrink: int, orientation: int
) -> None:
    data = turned(encode(picture(643, 811)), orientation)
    info = probe_image(data)
    size = (48, 40)
    ratio = {2: 3.9, 4: 4.5, 8: 8}[shrink]
    height, width = int(size[0] * ratio) + 1, int(size[1] * ratio) + 1
    for top, left, flip in ((0, 0, False), (37, 101, True), (info.height - height, 7, False)):
        crop = Crop(top, left, height, width, flip)
        found, shrunk = fill(data, crop, size, reduced=True)
        assert shrunk == shrink
        part = decode_image(data)[top : top + height, left : left + width]
        antialiased = cv2.resize(part, size[::-1], interpolation=cv2.INTER_AREA)
        if flip:
            antialiased = antialiased[:, ::-1]
        assert psnr(found, antialiased) > psnr(from_whole(data, crop, size), antialiased)
        assert psnr(found, antialiased) > 29


@pytest.mark.parametrize("orientation", [1, 3, 6])
@pytest.mark.parametrize("flip", [False, True])
def test_reduced_decoding_fills_the_part_of_a_slot_beside_a_margin(
    orientation: int, flip: bool
) -> None:
    data = turned(encode(picture(643, 811)), orientation)
    info = probe_image(data)
    crop = Letterbox((100, 100), antialias=False, fill=7).crop(info.height, info.width)
    crop = crop._replace(flip=flip)
    assert crop.resized is not None
    rows, columns = (
        slice(-first, one - first) for first, one in zip(crop.window, crop.resized, strict=True)
    )
    if flip:  # the margin too
        columns = slice(100 - columns.stop, 100 - columns.start)
    found, shrink = fill(data, crop, (100, 100), reduced=True)
    inner = crop._replace(resized=None, window=(0, 0))
    expected, _ = fill(data, inner, crop.resized, reduced=True)
    assert shrink == 8
    np.testing.assert_array_equal(found[rows, columns], expected)
    found[rows, columns] = 7
    assert (found == 7).all()


def test_reduced_decoding_of_real_photos_is_at_least_as_good_as_linear(shared_data: Path) -> None:
    rng = np.random.default_rng(0)
    transform = RandomResizedCrop(224, flip=0)
    ours, linear = [], []
    for path in sorted((shared_data / "large").glob("*.jpg")):
        data = path.read_bytes()
        info, whole = probe_image(data), decode_image(data)
        for _ in range(4):
            crop = transform.crop(info.height, info.width, rng.random(transform.draws).tolist())
            found, shrink = fill(data, crop, (224, 224), reduced=True)
            assert min(crop.height, crop.width) >= 224 * shrink
            part = whole[crop.top :, crop.left :][: crop.height, : crop.width]
            antialiased = cv2.resize(part, (224, 224), interpolation=cv2.INTER_AREA)
            ours.append(psnr(found, antialiased))
            plain = np.zeros((224, 224, 3), np.uint8)
            write_crop(whole, crop, plain)
            linear.append(psnr(plain, antialiased))
    assert all(a >= b - 0.1 for a, b in zip(ours, linear, strict=True))
    assert np.mean(ours) > np.mean(linear) + 6


def test_a_crop_that_is_not_several_times_its_slot_is_not_reduced() -> None:
    data = encode(picture(200, 200))
    for side, shrink in ((119, 1), (120, 2), (143, 2), (144, 4)):
        assert fill(data, Crop(0, 0, side, side + 1), (32, 32), reduced=True)[1] == shrink
    assert fill(data, Crop(0, 0, 144, 144), (32, 32), reduced=False)[1] == 1
    for resampling in (Resampling(antialias=True), Resampling("bicubic"), Resampling("nearest")):
        crop = Crop(0, 0, 144, 144, resampling=resampling)
        assert fill(data, crop, (32, 32), reduced=True)[1] == 1
    png = cv2.imencode(".png", picture(200, 200))[1].tobytes()
    assert fill(png, Crop(0, 0, 144, 144), (32, 32), reduced=True)[1] == 1


def test_the_expected_warning_is_the_one_that_turbojpeg_gives() -> None:
    data = bytearray(encode(picture(64, 64)))
    info = probe_image(bytes(data))
    data[info.frame + 3 : info.frame + 5] = (16).to_bytes(2, "big")
    with pytest.raises(ValueError, match=re.escape("extraneous bytes before marker 0xd9")):
        simplejpeg.decode_jpeg(bytes(data), "RGB", strict=True)
