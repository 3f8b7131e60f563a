from __future__ import annotations

import math
import pickle
from functools import partial
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardio.errors import UsageError
from shardio.fields.geometry import Crop, Resampling
from shardio.fields.image import write_crop
from shardio.padded import Letterbox, RandomCrop, ScaleJitter
from shardio.transforms import (
    BatchedTransform,
    CenterCrop,
    RandomResizedCrop,
    Resize,
    SizedTransform,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

sides = st.integers(1, 3000)
uniform = st.floats(0, 1, exclude_max=True)
sizes = st.tuples(st.integers(1, 300), st.integers(1, 300))


@st.composite
def random_resized_crops(draw: st.DrawFn) -> RandomResizedCrop:
    scale = sorted(draw(st.tuples(st.floats(0.001, 1), st.floats(0.001, 1))))
    ratio = sorted(draw(st.tuples(st.floats(0.05, 20), st.floats(0.05, 20))))
    return RandomResizedCrop(
        draw(sizes),
        scale=(scale[0], scale[1]),
        ratio=(ratio[0], ratio[1]),
        flip=draw(st.floats(0, 1)),
    )


@st.composite
def center_crops(draw: st.DrawFn) -> CenterCrop:
    size = draw(sizes)
    resize = draw(st.integers(max(size), 4 * max(size)))
    return CenterCrop(size, resize=resize, antialias=draw(st.booleans()))


@given(random_resized_crops() | center_crops() | st.builds(Resize, sizes), sides, sides, st.data())
def test_crops_lie_within_the_picture(
    transform: SizedTransform, height: int, width: int, draw: st.DataObject
) -> None:
    count = transform.draws
    uniforms = draw.draw(st.lists(uniform, min_size=count, max_size=count))
    crop = transform.crop(height, width, uniforms)
    assert crop.height >= 1
    assert crop.width >= 1
    assert 0 <= crop.top <= height - crop.height
    assert 0 <= crop.left <= width - crop.width
    if crop.resized is not None:
        for first, kept, resized in zip(crop.window, transform.size, crop.resized, strict=True):
            assert 0 <= first <= resized - kept
    assert transform.crop(height, width, uniforms) == crop


def read(transform: SizedTransform, pixels: NDArray[np.uint8], seed: int) -> NDArray[np.uint8]:
    uniforms = np.random.default_rng(seed).random(transform.draws).tolist()
    out = np.full((*transform.size, 3), 99, np.uint8)
    write_crop(pixels, transform.crop(pixels.shape[0], pixels.shape[1], uniforms), out)
    return out


@pytest.mark.parametrize("shape", [(32, 32), (20, 50), (7, 9), (31, 24)])
@pytest.mark.parametrize("fill", [0, (1, 200, 3), "reflect"])
def test_a_padded_crop_is_part_of_the_padded_picture(shape: tuple[int, int], fill: Any) -> None:
    """As of torchvision's RandomCrop(32, padding=4, pad_if_needed=True), anywhere in it."""
    pixels = noise(*shape)
    margins = [4 + max(32 - side - 8, 0) for side in shape]
    around = [(margin, margin) for margin in margins] + [(0, 0)]
    if fill == "reflect":
        whole = np.pad(pixels, around, mode="reflect")
    else:
        whole = np.stack(
            [
                np.full([s + 2 * m for s, m in zip(shape, margins, strict=True)], value, np.uint8)
                for value in np.broadcast_to(fill, 3)
            ],
            -1,
        )
        whole[margins[0] : margins[0] + shape[0], margins[1] : margins[1] + shape[1]] = pixels
    views = np.lib.stride_tricks.sliding_window_view(whole, (32, 32), (0, 1)).transpose(
        0, 1, 3, 4, 2
    )
    at: dict[bytes, list[tuple[int, int]]] = {}
    for place in np.ndindex(views.shape[:2]):  # mirrored, a part may recur
        at.setdefault(views[place].tobytes(), []).append(place)
    count, found = views.shape[0] * views.shape[1], set[tuple[int, int]]()
    for seed in range(8 * count):
        out = read(RandomCrop(32, padding=4, fill=fill, flip=seed % 2), pixels, seed)
        out = out[:, ::-1] if seed % 2 else out
        places = at.get(out.tobytes())
        assert places
        found.update(places)
    assert len(found) > 0.95 * count


@pytest.mark.parametrize("shape", [(300, 400), (640, 427), (50, 20), (9, 2000)])
@pytest.mark.parametrize("antialias", [False, True])
def test_a_letterbox_is_the_whole_picture_in_the_middle(
    shape: tuple[int, int], antialias: bool
) -> None:
    pixels = noise(*shape)
    factor = min(96 / shape[0], 128 / shape[1])
    height, width = (max(1, round(side * factor)) for side in shape)
    top, left = (96 - height) // 2, (128 - width) // 2
    expected = np.full((96, 128, 3), 114, np.uint8)
    inner = read(Resize((height, width), antialias=antialias), pixels, 0)
    expected[top : top + height, left : left + width] = inner
    transform = Letterbox((96, 128), antialias=antialias)
    np.testing.assert_array_equal(read(transform, pixels, 0), expected)


@pytest.mark.parametrize("shape", [(300, 400), (640, 427), (50, 20)])
def test_jittered_pictures_are_resized_then_cut_or_filled_up(shape: tuple[int, int]) -> None:
    """As torchvision's ScaleJitter and FixedSizeCrop do."""
    pixels, factors = noise(*shape), []
    for seed in range(60):
        transform = ScaleJitter((96, 128), scale=(0.5, 2), flip=0, fill=7)
        out = read(transform, pixels, seed)
        drawn = np.random.default_rng(seed).random(3)
        factor = (0.5 + 1.5 * drawn[0]) * min(96 / shape[0], 128 / shape[1])
        height, width = int(shape[0] * factor), int(shape[1] * factor)
        top, left = (
            int(u * (max(one - kept, 0) + 1))
            for u, one, kept in zip(drawn[1:], (height, width), (96, 128), strict=True)
        )
        expected = np.full((96, 128, 3), 7, np.uint8)
        part = read(Resize((height, width)), pixels, 0)[top : top + 96, left : left + 128]
        expected[: part.shape[0], : part.shape[1]] = part
        np.testing.assert_array_equal(out, expected)
        factors.append(factor)
    assert max(factors) > 2.5 * min(factors)


@pytest.mark.parametrize(
    "transform",
    [
        RandomResizedCrop(224, antialias=True),
        CenterCrop((96, 128), resize=150),
        Resize((32, 16), interpolation="bicubic"),
        RandomCrop(32, padding=4, fill="reflect"),
        Letterbox(64, fill=(1, 2, 3)),
        ScaleJitter((32, 16), scale=(0.5, 1.5)),
    ],
    ids=lambda transform: type(transform).__name__,
)
def test_transforms_are_values(transform: SizedTransform) -> None:
    assert isinstance(transform, SizedTransform)
    copy = pickle.loads(pickle.dumps(transform))  # noqa: S301  our own
    assert copy == transform
    assert hash(copy) == hash(transform)
    assert eval(repr(transform)) == transform  # noqa: S307  our own
    with pytest.raises(AttributeError):
        transform.size = (1, 1)  # type: ignore[misc]  # that it raises is what is tested


def test_one_number_is_both_height_and_width() -> None:
    assert RandomResizedCrop(224) == RandomResizedCrop((224, 224))
    assert CenterCrop(224, resize=256) == CenterCrop((224, 224), resize=256)
    with pytest.raises(UsageError, match=r"does not say .*; write CenterCrop\(224, resize=256\)"):
        CenterCrop(224)
    assert Resize((1, 2)) != Resize((2, 1))


def test_resize_refuses_one_number_as_torchvision_means_the_shorter_side_by_it() -> None:
    with pytest.raises(UsageError) as caught:
        Resize(224)  # type: ignore[arg-type]
    assert str(caught.value) == (
        "size=224: torchvision's Resize(224) gives images of several sizes, as 224 is the length "
        "of the shorter side, and the images of a batch have one; write Resize((224, 224)), which "
        "does not keep the aspect ratio, or CenterCrop(224, resize=224), which does"
    )


def test_a_central_crop_says_what_it_resizes_and_how() -> None:
    assert repr(CenterCrop(224, resize=256)) == (
        "CenterCrop(size=(224, 224), resize=256, flip=0.0, antialias=True, "
        "interpolation='bilinear')"
    )


@pytest.mark.parametrize("kind", [partial(CenterCrop, resize=12), RandomResizedCrop, Resize])
def test_crops_say_how_they_are_resampled(kind: Callable[..., Any]) -> None:
    uniforms = [0.5] * 23
    averages = kind is not RandomResizedCrop
    assert kind((8, 9)).crop(20, 30, uniforms).resampling == Resampling("bilinear", averages)
    crop = kind((8, 9), antialias=not averages, interpolation="bicubic").crop(20, 30, uniforms)
    assert crop.resampling == Resampling("bicubic", not averages)


CHOSEN: list[BatchedTransform] = [
    RandomResizedCrop(224),
    RandomResizedCrop(8, scale=(0.25, 0.25), ratio=(1.0, 1.0)),  # sides end in 1/2, positions tie
    RandomResizedCrop((30, 40), scale=(0.9, 1.0), ratio=(0.1, 9.0), flip=1.0, antialias=True),
    RandomResizedCrop(8, scale=(0.001, 0.002), ratio=(2.0, 2.0), interpolation="nearest"),
    CenterCrop(224, resize=256),
    CenterCrop((7, 30), resize=31, flip=0.5),
    CenterCrop(224, resize=256, antialias=False),
    CenterCrop((31, 8), resize=62, antialias=False, flip=0.5, interpolation="bicubic"),
    Resize((3, 5)),
    Resize((3, 5), flip=0.5, antialias=False),
    RandomCrop(32, padding=4),
    RandomCrop((40, 60), flip=0, fill=(1, 2, 3)),
    RandomCrop(9, padding=4, fill="reflect"),
    Letterbox(64),
    Letterbox((30, 50), flip=0.5, antialias=False),
    ScaleJitter(48),
    ScaleJitter((20, 60), scale=(0.5, 3), antialias=False, flip=0),
]


@pytest.mark.parametrize("transform", CHOSEN, ids=repr)
def test_crops_of_a_batch_are_those_of_its_images(transform: BatchedTransform) -> None:
    """17 transforms of 10,000 images each; sides of up to 70 pixels meet all ties."""
    assert isinstance(transform, BatchedTransform)
    rng = np.random.default_rng(0)
    heights, widths = rng.integers(1, 70, (2, 10_000))
    heights[::2], widths[::2] = np.exp(rng.uniform(0, 10, (2, 5_000))).astype(np.int64)
    uniforms = rng.random((10_000, transform.draws))
    uniforms[::7] = np.round(uniforms[::7] * 8) / 9
    crops = transform.crops(heights, widths, uniforms)
    assert len(crops) == 10_000
    images = zip(heights.tolist(), widths.tolist(), uniforms.tolist(), strict=True)
    assert [crops[i] for i in range(10_000)] == [transform.crop(*image) for image in images]
    assert len(transform.crops(heights[:0], widths[:0], uniforms[:0])) == 0


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: RandomResizedCrop(0), "size=0: it must be a whole number or a pair"),
        (
            lambda: RandomResizedCrop(10**9),
            r"size=1000000000: it must be at most 2\*\*30 - 1 pixels",
        ),
        (lambda: Resize((1, -1)), r"size=\(1, -1\): it must be a whole number or a pair"),
        (lambda: CenterCrop((1, 0), resize=1), r"size=\(1, 0\): it must be"),
        (lambda: Resize("64"), "size='64': it must be a whole number or a pair"),  # type: ignore[arg-type]
        (lambda: Resize(3.5), "size=3.5: it must be a whole number or a pair"),  # type: ignore[arg-type]
        (
            lambda: CenterCrop(8, resize=9, interpolation="lanczos"),  # type: ignore[arg-type]
            "interpolation='lanczos': it must be 'nearest', 'bilinear' or 'bicubic'",
        ),
        (lambda: CenterCrop(8, resize=9, antialias=1), "antialias=1: it must be True or False"),  # type: ignore[arg-type]
        (lambda: CenterCrop(224, resize=223), "resize=223: it must be .*, at least 224"),
        (lambda: RandomResizedCrop(8, scale=(0.5, 0.1)), "scale must be two numbers with 0 < min"),
        (lambda: RandomResizedCrop(8, scale=(0.0, 1.0)), "scale must be"),
        (lambda: RandomResizedCrop(8, scale=(0.5, 2.0)), "scale must be"),
        (lambda: RandomResizedCrop(8, ratio=(2.0, 1.0)), "ratio must be two numbers with 0 < min"),
        (lambda: RandomResizedCrop(8, ratio=(0.0, 1.0)), "ratio must be"),
        (lambda: RandomResizedCrop(8, flip=1.5), r"flip=.*: it must be a probability"),
        (lambda: RandomCrop(8, padding=8), "padding=8: it must be a whole number from 0 to 7"),
        (lambda: RandomCrop(8, padding=4, fill="reflect"), "padding=4: it must be .* 0 to 3"),
        (lambda: Letterbox(8, fill=256), "fill=256: it must be a number from 0 to 255, a tuple"),
        (lambda: ScaleJitter(8, fill="mirror"), "fill='mirror': it must be"),  # type: ignore[arg-type]
        (lambda: ScaleJitter(8, scale=(2.0, 1.0)), "scale must be two numbers with 0 < min"),
        (lambda: ScaleJitter(8, scale=(1.0, 1e300)), "scale must be .* max <= 1000, not"),
        (lambda: ScaleJitter(8, scale=2.0), "scale must be .*, not 2.0"),  # type: ignore[arg-type]
        (lambda: RandomResizedCrop(8, scale=(1.0,)), "scale must be"),  # type: ignore[arg-type]
        (lambda: RandomResizedCrop(8, ratio=("1", 1)), "ratio must be"),  # type: ignore[arg-type]
    ],
)
def test_arguments_that_cannot_be_meant_are_refused(build: Callable[[], Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        build()


def torchvision_crop(
    height: int, width: int, rng: np.random.Generator
) -> tuple[int, int, int, int]:
    """The algorithm of torchvision's RandomResizedCrop.get_params, as its documentation tells."""
    for _ in range(10):
        area = height * width * rng.uniform(0.08, 1.0)
        ratio = np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3)))
        w, h = round(np.sqrt(area * ratio)), round(np.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            return int(rng.integers(0, height - h + 1)), int(rng.integers(0, width - w + 1)), h, w
    w = round(height * 4 / 3) if width / height > 4 / 3 else width
    h = round(width * 4 / 3) if width / height < 3 / 4 else height
    return (height - h) // 2, (width - w) // 2, h, w


def figures(crops: NDArray[np.float64]) -> list[NDArray[np.float64]]:
    """Area, logarithm of the aspect ratio, top, left."""
    top, left, height, width = crops.T
    return [height * width, np.log(width / height), top, left]


@pytest.mark.parametrize("shape", [(300, 400), (500, 375), (200, 900), (40, 41), (1000, 100)])
def test_random_crops_are_distributed_as_torchvisions(shape: tuple[int, int]) -> None:
    height, width = shape
    count = 20_000
    transform = RandomResizedCrop(224)
    rng = np.random.default_rng(7)
    draws = rng.random((count, transform.draws)).tolist()
    crops = [transform.crop(height, width, uniforms) for uniforms in draws]
    ours = np.array([(c.top, c.left, c.height, c.width) for c in crops], float)
    theirs = np.array([torchvision_crop(height, width, rng) for _ in range(count)], float)
    assert np.mean([crop.flip for crop in crops]) == pytest.approx(0.5, abs=0.02)
    for a, b in zip(figures(ours), figures(theirs), strict=True):
        assert abs(a.mean() - b.mean()) < 5 * max(a.std(), b.std(), 1e-9) * math.sqrt(2 / count)
        values = np.union1d(a, b)
        below_a = np.searchsorted(np.sort(a), values, side="right") / count
        below_b = np.searchsorted(np.sort(b), values, side="right") / count
        assert np.abs(below_a - below_b).max() < 2 * math.sqrt(2 / count)  # Kolmogorov-Smirnov


def test_flips_happen_with_the_given_probability() -> None:
    uniforms = [0.3, *[0.5] * 22]
    assert not RandomResizedCrop(8, flip=0.0).crop(10, 10, [0.0, *uniforms[1:]]).flip
    assert not RandomResizedCrop(8, flip=0.3).crop(10, 10, uniforms).flip
    assert RandomResizedCrop(8, flip=0.31).crop(10, 10, uniforms).flip
    assert RandomResizedCrop(8, flip=1.0).crop(10, 10, [math.nextafter(1, 0), *uniforms[1:]]).flip


@pytest.mark.parametrize("kind", [partial(CenterCrop, resize=9), Resize])
def test_fixed_crops_are_mirrored_with_the_given_probability(
    kind: Callable[..., CenterCrop | Resize],
) -> None:
    plain, mirrored = kind((8, 8)), kind((8, 8), flip=0.3)
    assert (plain.draws, mirrored.draws) == (0, 1)
    assert not plain.crop(10, 12).flip
    assert mirrored.crop(10, 12, [0.29]) == plain.crop(10, 12)._replace(flip=True)
    assert mirrored.crop(10, 12, [0.3]) == plain.crop(10, 12)
    with pytest.raises(UsageError, match=r"flip=.*: it must be a probability"):
        kind((8, 8), flip=-0.1)


def test_the_central_crop_of_256_is_the_known_recipe() -> None:
    # 375 x 500 resizes to 256 x 341; the crop there is 224 x 224 at row 16, column 58.
    whole = Crop(0, 0, 375, 500, False, (256, 341), (16, 58), Resampling(antialias=True))
    assert CenterCrop(224, resize=256).crop(375, 500) == whole
    # 300 x 400 resizes to 224 x 298 (not 298.67): the crop starts at column 37.
    crop = CenterCrop(224, resize=224).crop(300, 400)
    assert (crop.resized, crop.window) == ((224, 298), (0, 37))
    # Halves round to the even number: 341 - 226 is 115, 343 - 226 is 117.
    assert CenterCrop(226, resize=256).crop(375, 500).window == (15, 58)
    assert CenterCrop(226, resize=256).crop(256, 343).window == (15, 58)


def test_without_averaging_its_edges_are_whole_pixels_of_the_source() -> None:
    scale = 375 / 256
    assert CenterCrop(224, resize=256, antialias=False).crop(375, 500) == Crop(
        round(16 * scale), round(58 * scale), round(224 * scale), round(224 * scale)
    )
    plain = CenterCrop(224, resize=224, antialias=False)
    assert plain.crop(300, 400) == Crop(0, 50, 300, 301)
    assert plain.crop(8, 8) == Crop(0, 0, 8, 8)


@pytest.mark.parametrize("shape", [(300, 400), (640, 427), (1000, 500)])
def test_a_central_crop_looks_like_resizing_then_cropping(shape: tuple[int, int]) -> None:
    height, width = shape
    rows, columns = np.mgrid[0:height, 0:width]
    ramps = [rows * 255 / height, columns * 255 / width, (rows + columns) * 255 / (height + width)]
    pixels = np.stack(ramps, axis=-1).astype(np.uint8)
    short = min(shape)
    resized_shape = 256 * width // short, 256 * height // short
    resized = cv2.resize(pixels, resized_shape, interpolation=cv2.INTER_LINEAR)
    top, left = (resized.shape[0] - 224) // 2, (resized.shape[1] - 224) // 2
    expected = resized[top : top + 224, left : left + 224]
    for antialias in (False, True):
        out = np.zeros((224, 224, 3), np.uint8)
        transform = CenterCrop(224, resize=256, antialias=antialias)
        write_crop(pixels, transform.crop(height, width), out)
        assert np.abs(out.astype(int) - expected).max() <= 3


def noise(height: int, width: int) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("crop", [Crop(3, 5, 20, 30), Crop(1, 2, 8, 16), Crop(0, 0, 1, 1)])
@pytest.mark.parametrize("flip", [False, True])
def test_a_crop_is_written_into_its_slot_and_nowhere_else(crop: Crop, flip: bool) -> None:
    pixels = noise(40, 50)
    batch = np.full((3, 8, 16, 3), 99, np.uint8)
    write_crop(pixels, Crop(crop.top, crop.left, crop.height, crop.width, flip), batch[1])
    part = pixels[crop.top : crop.top + crop.height, crop.left : crop.left + crop.width]
    expected = cv2.resize(part, (16, 8), interpolation=cv2.INTER_LINEAR)
    np.testing.assert_array_equal(batch[1], expected[:, ::-1] if flip else expected)
    assert (batch[[0, 2]] == 99).all()


def test_a_crop_of_the_slots_size_is_copied_exactly() -> None:
    pixels = noise(40, 50)
    out = np.zeros((8, 16, 3), np.uint8)
    write_crop(pixels, Crop(4, 6, 8, 16), out)
    np.testing.assert_array_equal(out, pixels[4:12, 6:22])


def test_turned_views_are_cropped_like_copies() -> None:
    pixels = noise(40, 50)
    for view in (pixels.transpose(1, 0, 2), pixels[::-1], pixels[:, ::-1], pixels[::-1, ::-1]):
        out, expected = np.zeros((2, 9, 7, 3), np.uint8)
        write_crop(view, Crop(2, 3, 30, 31), out)
        write_crop(np.ascontiguousarray(view), Crop(2, 3, 30, 31), expected)
        np.testing.assert_array_equal(out, expected)


def test_a_slot_of_another_type_is_refused() -> None:
    slot: Any = np.zeros((8, 8, 3), np.float32)
    with pytest.raises(UsageError, match=r"the slot must be uint8 \[h, w, 3\], not float32"):
        write_crop(noise(9, 9), Crop(0, 0, 9, 9), slot)
