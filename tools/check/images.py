"""Are corrupt and unusual images decoded as by Pillow, or refused? Does nothing crash?

The images are those of ../shared/data/bad-images (from AFL, Pillow and libjpeg-turbo), if they are
available, and small ones made here in several kinds of the four formats (progressive, gray,
palette, alpha, 16 bits, lossless). They are used unchanged and mutated: bits are flipped, bytes are
set to extreme values, pieces are removed or doubled, files are truncated, and parts of two images
are joined. PNGs get valid checksums in half of the cases, so that the corruption reaches the
decoder.

Each is read from a shard by the dataset, in a child with a limited address space. Right: pixels
like Pillow's, or a SampleError. Wrong: a crash, a hang, another exception, output on standard
output or error, or pixels unlike Pillow's if the image is valid. There is no standard for images
that Pillow refuses, nor for the pixels of corrupt images; they count as right if the rest holds.
The mutations are those of AFL's havoc stage. Pillow is the oracle, since it shares no code with
OpenCV's readers except the libraries.
"""

from __future__ import annotations

import io
import os
import struct
import warnings
import zlib
from functools import partial
from pathlib import Path
from random import Random

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, ImageOps

import campaign
import children
import shardio
from shardio.testing import make_shard

SHARED = Path(__file__).parents[3] / "shared" / "data" / "bad-images"
MADE = 400
MUTANTS = 30  # of one picture in one case
LIMIT = 1024 * campaign.MIB
MOST_PIXELS = 1 << 24  # above, bombs.py looks
TOLERANCE = 3.0  # mean difference of values of 0 to 255; decoders of JPEG differ by 1
EDGES = (0, 1, 0x7F, 0x80, 0xFF)


def judge(trial: campaign.Trial, pictures: list[bytes], *, whole: bool) -> None:
    """Decode images in one child and compare each with Pillow."""
    samples = {f"{number:04d}": {"jpg": data} for number, data in enumerate(pictures)}
    shard = make_shard(trial.folder / "pictures.tar", samples)
    read = partial(read_all, shard, trial.folder / "reached")
    ended = children.in_child(read, memory=LIMIT)
    try:
        ended.check()
    except campaign.Wrong as wrong:
        reached = trial.folder / "reached"
        number = reached.read_text("ascii") if reached.exists() else "none"
        kept = campaign.keep(pictures[int(number)]) if number.isdigit() else "nowhere"
        trial.wrong(wrong.kind, f"picture {number}, kept at {kept}: {wrong.detail}")
        return
    if ended.error:
        trial.wrong(f"the shard is refused: {ended.error}", ended.message)
        return
    for data, (found, noisy) in zip(pictures, ended.value, strict=True):
        if noisy:
            trial.wrong(
                "messages on the terminal", f"kept at {campaign.keep(data)}: {ended.output[:300]}"
            )
        elif isinstance(found, str):
            (trial.refused if found == "SampleError" else trial.wrong)(found)
        else:
            compare(trial, data, found, whole=whole)


def read_all(shard: Path, reached: Path) -> list[tuple[NDArray[np.uint8] | str, bool]]:
    """Return the pixels [H, W, 3] or the error of each sample, and whether anything was printed."""
    dataset = shardio.ShardDataset(shard)
    results: list[tuple[NDArray[np.uint8] | str, bool]] = []
    for number in range(len(dataset)):
        reached.write_text(str(number), "ascii")
        found: NDArray[np.uint8] | str
        printed = os.fstat(2).st_size
        try:
            found = dataset[number]["image"].permute(1, 2, 0).numpy()
        except Exception as error:
            found = type(error).__name__
        results.append((found, os.fstat(2).st_size > printed))
    return results


def compare(trial: campaign.Trial, data: bytes, found: NDArray[np.uint8], *, whole: bool) -> None:
    expected = with_pillow(data)
    if expected is None:
        trial.right("Pillow refuses it, or has no RGB of it")
    elif not whole and expected.shape == found.shape:
        trial.right("damaged, decoded in the shape that Pillow gives it")
    elif not whole and found.shape == turned(expected.shape) == with_opencv(data):
        trial.right("damaged, turned as OpenCV and not Pillow reads its EXIF")
    elif expected.shape != found.shape:
        kept = campaign.keep(data)
        trial.wrong("a shape that no other reader gives", f"{found.shape}, kept at {kept}")
    else:
        difference = float(np.abs(expected.astype(np.int16) - found).mean())
        if difference > TOLERANCE:
            trial.wrong("pixels unlike Pillow's", f"they differ by {difference:.1f} on average")
        else:
            trial.right("pixels like Pillow's")


def with_pillow(data: bytes) -> NDArray[np.uint8] | None:
    """Return RGB as shown, without alpha; None if Pillow refuses or converts by other rules."""
    ImageFile.LOAD_TRUNCATED_IMAGES = False
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            picture = Image.open(io.BytesIO(data), formats=["JPEG", "PNG", "WEBP", "BMP"])
            if picture.width * picture.height > MOST_PIXELS or picture.mode[:2] in {
                "I",
                "I;",
                "F",
                "CM",
            }:
                return None
            picture.load()
            return np.asarray(ImageOps.exif_transpose(picture).convert("RGB"))
    except Exception:
        return None


def turned(shape: tuple[int, ...]) -> tuple[int, ...]:
    return shape[1], shape[0], *shape[2:]


def with_opencv(data: bytes) -> tuple[int, ...] | None:
    """Return the shape as shown by OpenCV, which has its own EXIF code; None if it refuses."""

    def shape() -> tuple[int, ...] | None:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
        return None if pixels is None else pixels.shape

    found: tuple[int, ...] | None = children.in_child(shape).value
    return found


def made_pictures() -> dict[str, bytes]:
    """Make small images of many kinds."""
    numbers = np.random.default_rng(0)
    small = Image.fromarray(numbers.integers(0, 256, (6, 5, 3), np.uint8))
    rgb = small.resize((37, 45), Image.Resampling.BICUBIC)
    deep = Image.fromarray(numbers.integers(0, 1 << 16, (20, 30), np.uint16))
    kinds = {
        "rgb": rgb,
        "gray": rgb.convert("L"),
        "bits": rgb.convert("1"),
        "alpha": rgb.convert("RGBA"),
    }
    kinds |= {"palette": rgb.convert("P"), "gray alpha": rgb.convert("LA"), "deep": deep}
    ways: dict[str, list[dict[str, object]]] = {
        "JPEG": [
            {},
            {"progressive": True},
            {"subsampling": 0, "quality": 95},
            {"restart_marker_blocks": 2},
        ],
        "PNG": [{}, {"compress_level": 0}],
        "WEBP": [{}, {"lossless": True}],
        "BMP": [{}],
    }
    exif = Image.Exif()
    exif[0x0112] = 6
    made = {}
    for form, options in ways.items():
        for number, option in enumerate(options):
            for kind, picture in kinds.items():
                stream = io.BytesIO()
                try:
                    picture.save(stream, form, **option)
                except OSError:
                    continue  # the format has no such kind
                made[f"{kind} {form} {number}"] = stream.getvalue()
    turned = io.BytesIO()
    rgb.save(turned, "JPEG", exif=exif)
    return {**made, "turned JPEG": turned.getvalue()}


def mutate(random: Random, data: bytes, other: bytes) -> bytes:
    changed = bytearray(data)
    for _ in range(random.choice([1, 1, 1, 2, 4])):
        at = random.randrange(len(changed) or 1)
        length = random.choice([1, 2, 4, 16, random.randint(1, 200)])
        match random.randrange(7):
            case 0 if changed:
                changed[at] ^= 1 << random.randrange(8)
            case 1 if changed:
                changed[at] = random.choice(EDGES)
            case 2:
                changed[at : at + 2] = struct.pack(
                    random.choice("<>") + "H", random.choice([0, 1, 0xFFFF, 0x7FFF])
                )
            case 3:
                del changed[at : at + length]
            case 4:
                changed[at:at] = changed[at : at + length]
            case 5 if random.random() < 0.2:
                del changed[at:]
            case 6:
                start = random.randrange(len(other))
                changed[at : at + length] = other[start : start + length]
    return with_png_checksums(bytes(changed)) if random.random() < 0.5 else bytes(changed)


def with_png_checksums(data: bytes) -> bytes:
    """Return a PNG with valid checksums in its chunks; anything else is returned unchanged."""
    fixed, at = bytearray(data), 8
    while data.startswith(b"\x89PNG") and at + 12 <= len(data):
        length = int.from_bytes(data[at : at + 4], "big")
        end = at + 8 + length
        if end + 4 > len(data):
            break
        fixed[end : end + 4] = zlib.crc32(data[at + 4 : end]).to_bytes(4, "big")
        at = end + 4
    return bytes(fixed)


def given(path: Path, trial: campaign.Trial) -> None:
    judge(trial, [path.read_bytes()], whole=False)


def sound(pictures: dict[str, bytes], trial: campaign.Trial) -> None:
    judge(trial, [*pictures.values()], whole=True)


def mutated(pictures: list[bytes], trial: campaign.Trial) -> None:
    data, other = (trial.random.choice(pictures) for _ in range(2))
    judge(trial, [mutate(trial.random, data, other) for _ in range(MUTANTS)], whole=False)


def cases(_: Path) -> list[campaign.Case]:
    paths = sorted(path for path in SHARED.rglob("*") if path.is_file() and path.suffix != ".md")
    made = made_pictures()
    pictures = [
        *made.values(),
        *(path.read_bytes() for path in paths if path.stat().st_size < 1 << 16),
    ]
    found = [campaign.Case("sound", partial(sound, made))]
    found += [campaign.Case(str(path.relative_to(SHARED)), partial(given, path)) for path in paths]
    found += [
        campaign.Case(f"mutated {number}", partial(mutated, pictures)) for number in range(MADE)
    ]
    return found if paths else [*found, campaign.skipped(f"{SHARED} is not there")]


if __name__ == "__main__":
    campaign.main(__doc__, cases)
