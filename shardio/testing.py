"""Helpers for tests, shardio's own and its users'."""

from __future__ import annotations

import hashlib
import io
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import cv2
import numpy as np

Damage = Literal["flip", "truncate", "swap", "double", "zero", "drop"]
_BLOCK = 512


def make_images(
    folder: Path, *, classes: int, per_class: int, size: int = 8, extension: str = "png"
) -> Path:
    """Write small images of random pixels, a subfolder a class.

    Args:
        folder: is made.
        classes: how many subfolders; 0 puts the images into the folder itself.
        per_class: images in each.
        size: height and width in pixels.
        extension: "png", "jpg", "webp" or "bmp".

    Returns:
        The folder.
    """
    numbers = np.random.default_rng(0)
    for label in range(max(classes, 1)):
        inside = folder / f"class{label:02d}" if classes else folder
        inside.mkdir(parents=True, exist_ok=True)
        for number in range(per_class):
            pixels = numbers.integers(0, 256, (size, size, 3), dtype=np.uint8)
            cv2.imwrite(str(inside / f"image{number:04d}.{extension}"), pixels)
    return folder


def make_shard(path: Path, samples: Mapping[str, Mapping[str, bytes]]) -> Path:
    """Write a shard with Python's tarfile, as others make them.

    Args:
        path: of the tar.
        samples: bytes by field, by key.

    Returns:
        The path.
    """
    with tarfile.open(path, "w") as archive:
        for key, sample in samples.items():
            for field, data in sample.items():
                info = tarfile.TarInfo(f"{key}.{field}")
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
    return path


def read_members(folder: Path) -> dict[str, bytes]:
    """The data of all members of the shards in a folder, by name, read with Python's tarfile."""
    found = {}
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as archive:
            for member in archive.getmembers():
                stream = archive.extractfile(member)
                found[member.name] = stream.read() if stream is not None else b""
    return found


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of all files below a folder, hexadecimal, by path relative to it."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def damaged(data: bytes, damage: Damage, numbers: np.random.Generator) -> bytes:
    """Damage the contents of a file at a random place.

    Args:
        data: the contents, at least 1,024 bytes where blocks are changed.
        damage: "flip" one bit; "truncate" at any byte; "swap" two blocks of 512 bytes, "double",
            "zero" or "drop" one.
        numbers: where.

    Returns:
        Other contents, but for blocks that are swapped with equal ones or zero already.
    """
    changed = bytearray(data)
    if damage == "flip":
        changed[numbers.integers(len(data))] ^= 1 << int(numbers.integers(8))
        return bytes(changed)
    if damage == "truncate":
        return data[: numbers.integers(len(data))]
    one, other = (int(at) * _BLOCK for at in numbers.integers(len(data) // _BLOCK, size=2))
    block = data[one : one + _BLOCK]
    if damage == "swap":
        changed[one : one + _BLOCK] = data[other : other + _BLOCK]
        changed[other : other + _BLOCK] = block
    else:
        changed[one : one + _BLOCK] = {"double": 2 * block, "zero": bytes(_BLOCK), "drop": b""}[
            damage
        ]
    return bytes(changed)
