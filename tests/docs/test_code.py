"""All code of README and the pages runs, and prints what is shown.

A page is a script: its blocks run one after the other, in a folder with small data. A block of
`python` or `console` runs, unless a comment says why not:

    <!-- not run: needs a bucket -->

A comment that begins with `before` has code that runs without being shown. What a block of
`python` prints is in a block of `text` after it; what a command prints follows it. Sizes, times and
rates vary, and so does what `...` stands for.
"""

from __future__ import annotations

import io
import json
import os
import re
import shlex
import shutil
import sys
import wave
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

import shardio
from shardio.cli import main

ROOT = Path(__file__).parents[2]
SITE = ROOT / "docs" / "pages"
PAGES = {
    path.relative_to(ROOT).as_posix(): path for path in (ROOT / "README.md", *SITE.rglob("*.md"))
}
_FENCE = re.compile(r"( *)```(\w*)")
_WHY_NOT = re.compile(r"<!-- not run: (\S.*) -->")
_BEFORE = re.compile(r"<!-- before\n(.*?)\n-->", re.DOTALL)
_VARIES = re.compile(r"\d[\d,.]*(?= (?:s|samples/s|ms|µs|B|kB|MB|GB|MB/s)\b)")


@dataclass(frozen=True)
class Block:
    """Code, or the output that the block before it is to have."""

    language: str
    line: int
    text: str


def blocks(page: str) -> Iterator[Block]:
    """Find the blocks of a page that run, and what they print."""
    lines = page.splitlines()
    why_not = False
    number = 0
    while number < len(lines):
        line = lines[number]
        number += 1
        fence = _FENCE.fullmatch(line.split(" title=")[0])
        if line == "<!-- before":
            end = lines.index("-->", number)
            yield Block("before", number + 1, "\n".join(lines[number:end]))
            number = end + 1
        elif fence:
            end = lines.index(f"{fence[1]}```", number)
            if not why_not and not lines[number].startswith("--8<--"):
                text = "\n".join(each.removeprefix(fence[1]) for each in lines[number:end])
                yield Block(fence[2], number + 1, text)
            number, why_not = end + 1, False
        elif line.strip():
            why_not = bool(_WHY_NOT.fullmatch(line.strip()))


def matches(shown: str, printed: str) -> bool:
    """Compare what a page shows with what its code printed."""
    pattern = re.escape(_VARIES.sub("0", shown.strip()))
    pattern = re.sub(r"\\\.\\\.\\\.|…", "(?s:.*?)", pattern)
    plain = "\n".join(line.rstrip() for line in printed.strip().splitlines())
    return re.fullmatch(pattern, _VARIES.sub("0", plain)) is not None


def run_command(words: list[str]) -> str:
    """Run a command of shardio in this process, and return what it prints."""
    assert words[0] == "shardio", f"not a command of shardio: {words}"
    if words[1] in ("pack", "reshard", "convert", "replay"):  # each begins with no output there
        folders = [word for word in words[3:] if word.endswith("/")]
        for place in folders[-1:]:
            shutil.rmtree(place, ignore_errors=True)
    printed, said = io.StringIO(), io.StringIO()
    code: object = 0
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(printed), redirect_stderr(said):
        patch.setattr(sys, "argv", words)
        try:
            main()
        except SystemExit as end:
            code = end.code
    assert not code, f"{shlex.join(words)}: {said.getvalue()}"
    return printed.getvalue()


def run_console(text: str) -> None:
    """Run the commands of a block, each with what it is to print behind it."""
    for each in re.split(r"(?m)^\$ ", text)[1:]:
        command, _, shown = re.sub(r"\\\n\s*", "", each).partition("\n")
        printed = run_command(shlex.split(command, comments=True))
        assert not shown.strip() or matches(shown, printed), f"{command}\n{printed}"


def run_page(page: str, name: str) -> int:
    """Run the blocks of a page, and count them."""
    names = {"__name__": "page", "shardio": shardio, "torch": torch, "DataLoader": DataLoader}
    count, printed = 0, ""
    for block in blocks(page):
        if block.language in ("python", "before"):
            out = io.StringIO()
            code = compile("\n" * (block.line - 1) + block.text, name, "exec")
            with redirect_stdout(out):
                exec(code, names)  # noqa: S102  the page's own code
            printed = out.getvalue()
            count += 1
        elif block.language == "console":
            run_console(block.text)
            count += 1
        elif block.language == "text":
            assert matches(block.text, printed), (
                f"{name}:{block.line} shows\n{block.text}\n{printed}"
            )
    return count


def picture(rng: np.random.Generator, size: tuple[int, int] = (64, 48)) -> bytes:
    rough = rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return cv2.imencode(".jpg", cv2.resize(rough, size, interpolation=cv2.INTER_CUBIC))[1].tobytes()


def plane(rng: np.random.Generator, dtype: type) -> bytes:
    return cv2.imencode(".png", rng.integers(1, 200, (48, 64)).astype(dtype))[1].tobytes()


def sound(rng: np.random.Generator, number: int) -> bytes:
    out = io.BytesIO()
    with wave.open(out, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16000)
        file.writeframes(rng.integers(-9999, 9999, 800 + number, dtype=np.int16).tobytes())
    return out.getvalue()


def write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


# Packed folders, and the fields of their samples.
SETS = {
    "seg": ("jpg", "mask.png"),
    "coco": ("jpg", "json"),
    "stereo": ("left.png", "right.png", "depth.png"),
    "speech": ("wav", "txt"),
    "laion": ("jpg", "txt"),
    "art": ("jpg",),
}


def samples(
    rng: np.random.Generator, fields: tuple[str, ...], prefix: str = ""
) -> Iterator[dict[str, Any]]:
    """Make 32 samples of some fields."""
    values = {"txt": "a photo of a cat", "json": {"boxes": [[4, 4, 16, 8]], "labels": [1]}}
    for number in range(32):
        wide = (64, 48) if number % 2 else (48, 64)
        pictures = {
            "jpg": picture(rng, wide if fields == ("jpg",) else (64, 48)),
            "wav": sound(rng, number),
            **{name: plane(rng, np.uint8) for name in ("mask.png", "left.png", "right.png")},
            "depth.png": plane(rng, np.uint16),
        }
        yield {"__key__": f"{prefix}{number}"} | {
            name: {**values, **pictures}[name] for name in fields
        }


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the data that the pages name."""
    place = tmp_path_factory.mktemp("prepared")
    rng = np.random.default_rng(0)
    rows = ["path,label,price,x,y,cat,dog,bird"]
    for label in range(10):
        (place / "images" / f"class{label}").mkdir(parents=True)
        for number in range(60):
            name = f"class{label}/{number:03d}.jpg"
            (place / "images" / name).write_bytes(picture(rng))
            if number < 4:
                rows.append(f"images/{name},class{label},{number}.5,{label},{number},1,0,1")
    (place / "train.csv").write_text("\n".join(rows) + "\n", "utf-8")
    (place / "names.csv").write_text(
        "path,label\n" + "".join(f"{number}.jpg,cat\n" for number in range(8)), "utf-8"
    )
    for number in range(8):
        write(place / "photos" / f"{number}.jpg", picture(rng))
    for number in range(8):
        write(place / "audio" / f"clip{number}.wav", sound(rng, number))
        write(place / "kitti" / f"{number}.jpg", picture(rng))
        write(place / "kitti" / f"{number}.depth.png", plane(rng, np.uint16))
        write(place / "yolo" / "images" / "train" / f"{number}.jpg", picture(rng))
        write(place / "yolo" / "labels" / "train" / f"{number}.txt", b"1 0.5 0.5 0.25 0.25\n")
        write(place / "train2017" / f"{number}.jpg", picture(rng))
        write(place / "VOC2012" / "JPEGImages" / f"{number}.jpg", picture(rng))
        write(place / "VOC2012" / "SegmentationClass" / f"{number}.png", plane(rng, np.uint8))
    write(place / "yolo" / "classes.txt", b"cat\ndog\n")
    names = "\n".join(map(str, range(8)))
    write(place / "VOC2012" / "ImageSets" / "Segmentation" / "train.txt", names.encode())
    boxes = {
        "image_id": 3,
        "category_id": 1,
        "bbox": [4, 4, 16, 8],
        "iscrowd": 0,
        "area": 128,
        "id": 1,
    }
    images = [
        {"id": number, "file_name": f"{number}.jpg", "height": 48, "width": 64}
        for number in range(8)
    ]
    coco = {"images": images, "annotations": [boxes], "categories": [{"id": 1, "name": "cat"}]}
    write(place / "annotations" / "instances_train2017.json", json.dumps(coco).encode())
    for name, fields in SETS.items():
        shardio.pack(samples(rng, fields), place / name, shards=2)
    shardio.pack(place / "images", place / "out", shards=8)
    for name in ("old", "more"):
        shardio.pack(samples(rng, ("jpg", "txt"), name), place / name, shards=2)
    for name in ("tars", "shards"):
        (place / name).mkdir()
        for tar in (place / "out").glob("*00[0-3].tar"):
            shutil.copy(tar, place / name)
    return place


@pytest.fixture
def world(prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the folder, in which a page may make and remove files."""
    place = tmp_path / "world"
    shutil.copytree(prepared, place, copy_function=os.link)
    monkeypatch.chdir(place)
    monkeypatch.setenv("SHARDIO_CACHE", str(tmp_path / "cache"))
    return place


WITH_CODE = [name for name, path in PAGES.items() if any(blocks(path.read_text("utf-8")))]


@pytest.mark.parametrize("name", WITH_CODE)
@pytest.mark.usefixtures("world", "measured_here")
def test_the_code_of_a_page_runs(name: str) -> None:
    run_page(PAGES[name].read_text("utf-8"), name)
