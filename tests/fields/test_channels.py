"""Images are read as gray, RGB or RGBA: alpha is never blended, and dropped only as is said."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import pytest
import simplejpeg
import torch
from PIL import Image as Pillow

import shardio
from shardio.fields.image import decode_image
from shardio.testing import make_shard

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    Pixels = NDArray[np.uint8]

HEIGHT, WIDTH = 21, 34


def noise(channels: int) -> Pixels:
    shape = (HEIGHT, WIDTH, channels)
    return np.random.default_rng(channels).integers(0, 256, shape, np.uint8)


def saved(picture: Pillow.Image, **options: Any) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, "PNG", **options)
    return stream.getvalue()


def palette(bits: int) -> Pillow.Image:
    picture = Pillow.fromarray(noise(1)[..., 0] % 2**bits, "P")
    picture.putpalette(noise(3).tobytes()[: 3 * 2**bits])
    return picture


def deep(channels: int) -> tuple[bytes, Pixels]:
    """A PNG of 16 bits per channel, and its high bytes in RGBA."""
    values = np.random.default_rng(0).integers(0, 65536, (HEIGHT, WIDTH, channels), np.uint16)
    shown = (values >> 8).astype(np.uint8)
    rgb = np.broadcast_to(shown[..., :3], (HEIGHT, WIDTH, 3))
    alpha = shown[..., 3:] if channels == 4 else np.full((HEIGHT, WIDTH, 1), 255, np.uint8)
    order = [2, 1, 0, 3][:channels] if channels > 1 else [0]
    return cv2.imencode(".png", values[..., order])[1].tobytes(), np.concatenate([rgb, alpha], 2)


GRAY, COLOURS = noise(1)[..., 0], noise(3)
PNGS = {
    "gray": saved(Pillow.fromarray(GRAY)),
    "one bit": saved(Pillow.fromarray(GRAY > 99)),
    "gray and alpha": saved(Pillow.fromarray(noise(2), "LA")),
    "gray, one transparent": saved(Pillow.fromarray(GRAY), transparency=int(GRAY[3, 4])),
    "one bit, white transparent": saved(Pillow.fromarray(GRAY > 99), transparency=1),
    "colours": saved(Pillow.fromarray(COLOURS)),
    "colours, one transparent": saved(
        Pillow.fromarray(COLOURS), transparency=tuple(map(int, COLOURS[3, 4]))
    ),
    "colours and alpha": saved(Pillow.fromarray(noise(4))),
    "palette": saved(palette(4)),
    "palette and alpha": saved(palette(4), transparency=bytes(range(0, 160, 16))),
    "palette of one bit and alpha": saved(palette(1), transparency=b"\x30"),
}


@pytest.mark.parametrize("kind", PNGS)
@pytest.mark.parametrize("verified", [False, True])
def test_rgba_of_a_png_is_that_of_pillow(kind: str, verified: bool) -> None:
    with Pillow.open(io.BytesIO(PNGS[kind])) as picture:
        expected = np.asarray(picture.convert("RGBA"))
    found = decode_image(PNGS[kind], channels=4, verified=verified)
    np.testing.assert_array_equal(found, expected)
    assert ("alpha" in kind or "transparent" in kind) == bool((expected[..., 3] < 255).any())


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_rgba_of_16_bits_keeps_the_high_bytes(channels: int) -> None:
    """vision#2218: gray of 16 bits became white."""
    data, expected = deep(channels)
    np.testing.assert_array_equal(decode_image(data, channels=4), expected)
    with pytest.raises(shardio.CodecError, match="16 bits per channel"):
        shardio.Image("png", channels=4).decode(data)
    found = shardio.Image("png", channels=4, bits=8).decode(data)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("kind", PNGS)
def test_gray_of_a_png_is_the_luma_of_its_colours(kind: str) -> None:
    found = decode_image(PNGS[kind], channels=1)[..., 0]
    luma = decode_image(PNGS[kind]) @ np.array([0.299, 0.587, 0.114])  # BT.601
    assert found.dtype == np.uint8
    assert np.abs(found - luma).max() <= 0.51
    if kind == "gray":
        np.testing.assert_array_equal(found, GRAY)


@pytest.mark.parametrize("sampling", ["444", "420", "Gray"])
def test_gray_of_a_jpeg_is_the_channel_that_it_stores(sampling: str) -> None:
    pixels, space = (noise(1), "GRAY") if sampling == "Gray" else (COLOURS, "RGB")
    data = simplejpeg.encode_jpeg(np.ascontiguousarray(pixels), 90, space, sampling)
    found = decode_image(data, channels=1)
    np.testing.assert_array_equal(found, simplejpeg.decode_jpeg(data, "GRAY"))
    rgba = decode_image(data, channels=4)
    np.testing.assert_array_equal(rgba[..., :3], decode_image(data))
    assert (rgba[..., 3] == 255).all()


def test_gray_of_a_cmyk_jpeg_is_that_of_its_colours() -> None:
    data = simplejpeg.encode_jpeg(noise(4), 90, "CMYK", "444")
    luma = decode_image(data) @ np.array([0.299, 0.587, 0.114])
    assert np.abs(decode_image(data, channels=1)[..., 0] - luma).max() <= 0.51


def test_webp_keeps_its_alpha_and_bmp_is_refused_where_alpha_is_wanted() -> None:
    stored = noise(4)
    stored[..., 3] |= 1  # where it is 0, encoders change colours
    lossless = [cv2.IMWRITE_WEBP_QUALITY, 101]
    data = cv2.imencode(".webp", stored[..., [2, 1, 0, 3]], lossless)[1].tobytes()
    np.testing.assert_array_equal(decode_image(data, channels=4), stored)
    bmp = cv2.imencode(".bmp", COLOURS)[1].tobytes()
    assert decode_image(bmp, channels=1).shape == (HEIGHT, WIDTH, 1)
    with pytest.raises(shardio.CodecError, match="the alpha of a BMP is not read; save it as a"):
        decode_image(bmp, channels=4)


@pytest.mark.parametrize("channels", [1, 4])
@pytest.mark.parametrize(
    "transform",
    [
        None,
        shardio.RandomResizedCrop(16),
        shardio.CenterCrop(16, resize=20),
        shardio.Resize((50, 8), interpolation="nearest"),
        shardio.Resize((9, 9), antialias=False, interpolation="bicubic"),
        shardio.Letterbox(20, fill=9),
        shardio.RandomCrop(32, padding=4, fill="reflect"),
    ],
    ids=repr,
)
def test_channels_are_resized_apart(tmp_path: Path, channels: int, transform: Any) -> None:
    """Each channel is what an image of three such channels becomes."""
    pixels = noise(channels)
    samples: dict[str, dict[str, bytes]] = {
        "0": {"png": shardio.Image("png", channels=channels).encode(pixels)}
    }
    for channel in range(channels):
        one = np.repeat(pixels[..., channel : channel + 1], 3, axis=2)
        samples["0"][f"c{channel}.png"] = shardio.Image("png").encode(one)
    names = [f"c{channel}" for channel in range(channels)]
    fields: dict[str, Any] = {"image": shardio.Image("png", channels=channels)}
    fields |= {name: shardio.Image(f"{name}.png") for name in names}
    shard = make_shard(tmp_path / "a.tar", samples)
    (batch,) = shardio.ShardDataset(shard, fields=fields, transform=transform, batch_size=1)
    image = batch["image"]
    size = (HEIGHT, WIDTH) if transform is None else transform.size
    assert image.shape == (1, channels, *size)
    assert image.is_contiguous(memory_format=torch.channels_last)
    for channel, name in enumerate(names):
        assert (image[:, channel].int() - batch[name][:, 0].int()).abs().max() <= 1
    normalize = shardio.Normalize([0.5] * channels, [0.25] * channels)
    assert normalize(image).shape == image.shape


@pytest.fixture
def images(tmp_path: Path) -> Path:
    (tmp_path / "in").mkdir()
    for number in range(4):
        Pillow.fromarray(noise(4)).save(tmp_path / "in" / f"{number}.png")
    return tmp_path / "in"


@pytest.mark.parametrize("channels", [1, 4])
@pytest.mark.parametrize("options", [{}, {"resize": 10}, {"store": "raw"}], ids=repr)
def test_a_packed_folder_says_how_many_channels_there_are(
    images: Path, tmp_path: Path, channels: int, options: dict[str, Any]
) -> None:
    type_ = shardio.Image(channels=channels)
    shardio.pack(images, tmp_path / "out", shards=1, types={"png": type_}, **options)
    expected = decode_image(PNGS["colours and alpha"], channels=channels)
    if "resize" in options:
        small = np.asarray(cv2.resize(expected, (16, 10), interpolation=cv2.INTER_AREA), np.uint8)
        expected = small.reshape(10, 16, channels)
    for copy in ("out", "again"):
        (batch,) = shardio.ShardDataset(tmp_path / copy, batch_size=4)
        assert batch["image"].shape == (4, channels, *expected.shape[:2])
        np.testing.assert_array_equal(batch["image"][2].permute(1, 2, 0), expected)
        assert not shardio.verify(tmp_path / copy, deep=True).findings
        if copy == "out":
            shardio.reshard(tmp_path / "out", tmp_path / "again", shards=2)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_pictures_of_all_modes_make_one_batch(tmp_path: Path, channels: int) -> None:
    """pybioclip#12: a PNG with alpha beside others had a channel too many."""
    make_shard(tmp_path / "a.tar", {str(n): {"png": data} for n, data in enumerate(PNGS.values())})
    fields = {"image": shardio.Image("png", channels=channels)}
    (batch,) = shardio.ShardDataset(tmp_path, fields=fields, batch_size=len(PNGS))
    assert batch["image"].shape == (len(PNGS), channels, HEIGHT, WIDTH)
    for picture, data in zip(batch["image"], PNGS.values(), strict=True):
        expected = decode_image(data, channels=channels)
        np.testing.assert_array_equal(picture.permute(1, 2, 0), expected)


def test_channels_that_do_not_fit_are_refused(images: Path, tmp_path: Path) -> None:
    with pytest.raises(shardio.UsageError, match=r"channels='2': it must be 1 \(gray\), 3 \(RGB\)"):
        shardio.Image("png", channels=2)
    with pytest.raises(shardio.UsageError, match=r"channels='1.0': it must be 1"):
        shardio.Image("png", channels=1.0)  # type: ignore[arg-type]
    cv2.imwrite(str(images / "9.jpg"), COLOURS)
    types = {"png": shardio.Image(channels=1)}
    with pytest.raises(
        shardio.PackError, match=r"9\.jpg.* 3 channels, and other images .* 1; give"
    ):
        shardio.pack(images, tmp_path / "raw", shards=1, types=types, store="raw", resize=8)
    shardio.pack(images, tmp_path / "out", shards=1, types=types)
    with pytest.raises(shardio.UsageError, match="fields of 'image' have 1 and 3 channels; give"):
        shardio.ShardDataset(tmp_path / "out")
    fields = {"image": shardio.Image("jpg;png", channels=1)}
    crop = shardio.Letterbox(8, fill=(1, 2, 3))
    with pytest.raises(shardio.UsageError, match=r"fill=\(1, 2, 3\): 'image' has 1 channel; give"):
        shardio.ShardDataset(tmp_path / "out", fields=fields, transform=crop)
    (batch,) = shardio.ShardDataset(
        tmp_path / "out", fields=fields, transform=shardio.Letterbox(8, fill=(1,)), batch_size=5
    )
    assert batch["image"].shape == (5, 1, 8, 8)
    with pytest.raises(TypeError, match=r"a picture is uint8 \[H, W, 1\] in gray, not uint8"):
        shardio.Image("png", channels=1).encode(COLOURS)


def test_a_gray_array_needs_no_dimension_of_channels(tmp_path: Path) -> None:
    gray = COLOURS[..., 0]
    types = {"png": shardio.Image(channels=1)}
    shardio.pack([{"png": gray}, {"png": gray[..., None]}], tmp_path, shards=1, types=types)
    for sample in shardio.ShardDataset(tmp_path):
        assert np.array_equal(sample["image"][0], gray)
