"""Draw the pictures of the site, and measure how well orders mix.

Usage: python tools/make_pictures.py [--profile DATASET]

Pages include the drawings as text, so that their lines have the colour of the page's text, light or
dark. The table of docs/pages/explanation/shuffle.md is printed. With --profile, the report of a
profile is made again too, from a packed folder; it needs an idle machine.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from html import escape
from pathlib import Path
from random import Random

import numpy as np
import webdataset
from numpy.typing import NDArray

import shardio
from shardio.planning.epoch import EpochPlan, Shuffle
from shardio.planning.order import KeyedPermutation, Order, Runs, derive_key
from shardio.planning.samples import Samples

FOLDER = Path(__file__).parents[1] / "docs" / "pages" / "pictures"
PIPES = {
    "pack": ("images, tables, tars", "samples", "plan", "shards + indexes", "manifest"),
    "read": ("manifest", "plan of the epoch", "bytes", "slots of a batch", "batch", "device"),
}
SHARDS, EACH, WINDOW = 48, 20, 8
SIDE = 200
COUNT = SHARDS * EACH
COLOURS = (("currentColor",), ("var(--one, #1f6fb2)", "var(--two, #b4540a)"))
MANY, LARGE, CLASSES, BATCH = 128, 1000, 1000, 64  # of the mixing that is measured

Numbers = NDArray[np.int64]


def pictures() -> dict[str, str]:
    """Return the text of each picture, by the name of its file."""
    return {"pipe.svg": pipe(), "windows.svg": windows(), "streams.svg": streams()}


def sheet(path: Path) -> None:
    """Write the contact sheet of scikit-learn's digits."""
    with tempfile.TemporaryDirectory() as folder:
        images, packed_folder = Path(folder, "images"), Path(folder, "out")
        program = Path(__file__).with_name("make_digits.py")
        subprocess.run([sys.executable, str(program), str(images)], check=True)  # noqa: S603  ours
        shardio.pack(images, packed_folder, shards=8)
        shardio.info(packed_folder, preview=path, preview_count=24)


def svg(width: int, height: int, title: str, lines: list[str]) -> str:
    style = (
        f'viewBox="0 0 {width} {height}" role="img" style="max-width:{width}px;width:100%" '
        'font-family="sans-serif" font-size="12" fill="currentColor"'
    )
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {style}>'
    return "\n".join([head, f"<title>{title}</title>", *lines, "</svg>"]) + "\n"


def pipe() -> str:
    lines, wide = [], 126
    for row, (name, stages) in enumerate(PIPES.items()):
        middle = 32 + 62 * row
        lines.append(f'<text x="0" y="{middle + 4}" font-weight="bold">{name}</text>')
        for number, stage in enumerate(stages):
            left = 44 + number * (wide + 22)
            box = f'x="{left}" y="{middle - 18}" width="{wide}" height="36" rx="6"'
            lines.append(f'<rect {box} fill="none" stroke="currentColor" opacity=".5"/>')
            middle_of = f'x="{left + wide / 2:g}" y="{middle + 4}" text-anchor="middle"'
            lines.append(f"<text {middle_of}>{stage}</text>")
            if number:
                tip = f"M{left - 20} {middle}h16m-5 -4l5 4l-5 4"
                lines.append(f'<path d="{tip}" fill="none" stroke="currentColor"/>')
    return svg(44 + 6 * (wide + 22), 126, "Data flow one way, from files to the device", lines)


def windows() -> str:
    """Draw the orders of an epoch, and a buffer with as many samples as a window has."""
    orders = {
        f"buffer of {WINDOW * EACH}": buffered(WINDOW * EACH),
        "shuffle=True": packed(derive_key(0, 0), WINDOW),
        'shuffle="full"': packed(derive_key(0, 0), SHARDS),
    }
    panels = [panel(name, [np.column_stack((np.arange(COUNT), o))]) for name, o in orders.items()]
    title = f"Order of {SHARDS} shards of {EACH} samples, with windows of {WINDOW} shards"
    return beside(panels, title, "packed order")


def streams() -> str:
    """Draw which of two nodes reads which samples, in one epoch without streams and two with."""
    panels = []
    for name, number, epoch in (("streams=1", 1, 0), ("streams=8", 8, 0), ("the next epoch", 8, 1)):
        shuffle = Shuffle(window=WINDOW // number or 1, streams=number)
        plan = EpochPlan(Samples([EACH] * SHARDS), shuffle, global_batch_size=8, epoch=epoch)
        nodes = []
        for node in range(2):
            found = plan.references(plan.share(range(plan.num_steps), node, 2))
            nodes.append(np.column_stack((found.positions, found.shards * EACH + found.indices)))
        panels.append(panel(name, nodes))
    title = f"Samples that two nodes read, of {SHARDS} shards; each node has a colour"
    return beside(panels, title, "packed order")


def panel(name: str, groups: Sequence[NDArray[np.int64]]) -> list[str]:
    """Draw positions in the epoch, and in packed order, as dots; one colour a group."""
    line = 'fill="none" stroke="currentColor"'
    lines = [f'<text x="0" y="-8" font-weight="bold">{escape(name)}</text>']
    lines.append(f'<rect width="{SIDE}" height="{SIDE}" {line} opacity=".4"/>')
    for colour, places in zip(COLOURS[len(groups) - 1], groups, strict=True):
        across, up = (places * (SIDE / COUNT)).T
        dots = "".join(f"M{x:.1f} {SIDE - y:.1f}h0" for x, y in zip(across, up, strict=True))
        style = f'fill="none" stroke="{colour}" stroke-width="2.4" stroke-linecap="round"'
        lines.append(f'<path d="{dots}" {style}/>')
    below = f'x="{SIDE / 2:g}" y="{SIDE + 16}" text-anchor="middle"'
    return [*lines, f"<text {below}>position</text>"]


def beside(panels: Sequence[list[str]], title: str, left: str) -> str:
    lines = []
    for number, each in enumerate(panels):
        lines += [f'<g transform="translate({24 + number * (SIDE + 28)} 24)">', *each, "</g>"]
    middle = 24 + SIDE // 2
    turn = f'transform="rotate(-90 12 {middle})" text-anchor="middle"'
    lines.append(f'<text x="12" y="{middle}" {turn}>{left}</text>')
    return svg(24 + len(panels) * (SIDE + 28), SIDE + 48, title, lines)


def packed(key: int | None, window: int, *, shards: int = SHARDS, each: int = EACH) -> Numbers:
    """Return the numbers of the samples of an epoch, in shardio's order."""
    runs = Runs(
        shards=np.arange(shards),
        firsts=np.zeros(shards, np.int64),
        lengths=np.full(shards, each),
    )
    found, inside = Order(runs, key=key, window=window).locate(np.arange(shards * each))
    return found * each + inside


def buffered(size: int, *, shards: int = SHARDS, each: int = EACH) -> Numbers:
    """Return the same in the order of webdataset: shuffled shards, and a buffer of samples."""
    random = Random(0)  # noqa: S311  nothing is to be secret
    order = [*range(shards)]
    random.shuffle(order)
    read = (shard * each + inside for shard in order for inside in range(each))
    return np.fromiter(webdataset.filters.shuffle(size, rng=random)(read), np.int64)


def mixing() -> str:
    """Measure how well orders mix, as a table of Markdown."""
    key, size = derive_key(0, 0), {"shards": MANY, "each": LARGE}
    orders = {
        '`shuffle="full"`': (0, packed(key, MANY, **size)),
        **{
            f"`shuffle=True, window={window}`": (0, packed(key, window, **size))
            for window in (64, 16, 4)
        },
        **{f"buffer of {most:,}": (most, buffered(most, **size)) for most in (10_000, 1_000)},
        "`shuffle=False`": (0, packed(None, MANY, **size)),
    }
    lines = [
        "| order | classes in a batch | after `pack` | others of its shard | distance | held |",
        "|---|---|---|---|---|---|",
    ]
    shuffled = KeyedPermutation(MANY * LARGE, derive_key(1))
    for name, (held, order) in orders.items():
        batches = order.reshape(-1, BATCH)
        per_shard = [np.bincount(batch // LARGE) for batch in batches]
        cells = [
            f"{classes_in(batches):.1f}",
            f"{classes_in(shuffled(order).reshape(-1, BATCH)):.1f}",
            f"{np.mean([(counts**2).sum() / BATCH - 1 for counts in per_shard]):.1f}",
            f"{np.abs(np.diff(batches)).mean() / len(order):.2f}",
            f"{held:,}",
        ]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def classes_in(batches: Numbers) -> float:
    """Return how many classes a batch has on average, where each has as many samples."""
    classes = batches * CLASSES // batches.size
    return float(np.mean([len({*batch}) for batch in classes.tolist()]))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--profile", metavar="DATASET", help="packed folder to profile")
    dataset = parser.parse_args().profile
    FOLDER.mkdir(exist_ok=True)
    for name, text in pictures().items():
        (FOLDER / name).write_text(text, "utf-8")
    sheet(FOLDER / "sheet.png")
    print(mixing())
    if dataset:
        found = shardio.profile(dataset, html=str(FOLDER / "profile.html"))
        print(found.verdict.sentence)


if __name__ == "__main__":
    main()
