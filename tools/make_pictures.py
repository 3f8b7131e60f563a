"""Draw the pictures of the site: the pipe, and the order of an epoch under three shuffles.

Usage: python tools/make_pictures.py

Pages include them as text, so that their lines have the colour of the page's text, light or dark.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from shardio.planning.order import Order, Runs, derive_key

FOLDER = Path(__file__).parents[1] / "docs" / "pages" / "pictures"
PIPES = {
    "pack": ("images, tables, tars", "samples", "plan", "shards + indexes", "manifest"),
    "read": ("manifest", "plan of the epoch", "bytes", "slots of a batch", "batch", "device"),
}
SHARDS, EACH, WINDOW = 48, 20, 8
SIDE = 200
SHUFFLES = {
    "shuffle=False": (None, WINDOW),
    "shuffle=True": (derive_key(0, 0), WINDOW),
    'shuffle="full"': (derive_key(0, 0), SHARDS),
}


def pictures() -> dict[str, str]:
    """Return the text of each picture, by the name of its file."""
    return {"pipe.svg": pipe(), "windows.svg": windows()}


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
    lines = []
    count = np.full(SHARDS, EACH)
    runs = Runs(shards=np.arange(SHARDS), firsts=np.zeros(SHARDS, np.int64), lengths=count)
    for panel, (name, (key, window)) in enumerate(SHUFFLES.items()):
        shards, inside = Order(runs, key=key, window=window).locate(np.arange(SHARDS * EACH))
        x = np.arange(SHARDS * EACH) / (SHARDS * EACH) * SIDE
        y = SIDE - (shards * EACH + inside) / (SHARDS * EACH) * SIDE
        left = 24 + panel * (SIDE + 28)
        dots = "".join(f"M{a:.1f} {b:.1f}h0" for a, b in zip(x, y, strict=True))
        line = 'fill="none" stroke="currentColor"'
        lines.append(f'<g transform="translate({left} 24)">')
        lines.append(
            f'<text x="0" y="-8" font-weight="bold">{name.replace(chr(34), "&quot;")}</text>'
        )
        lines.append(f'<rect width="{SIDE}" height="{SIDE}" {line} opacity=".4"/>')
        lines.append(f'<path d="{dots}" {line} stroke-width="2.4" stroke-linecap="round"/>')
        lines.append(
            f'<text x="{SIDE / 2:g}" y="{SIDE + 16}" text-anchor="middle">position</text></g>'
        )
    middle = 24 + SIDE // 2
    turn = f'transform="rotate(-90 12 {middle})" text-anchor="middle"'
    lines.append(f'<text x="12" y="{middle}" {turn}>packed order</text>')
    title = f"Order of {SHARDS} shards of {EACH} samples, with windows of {WINDOW} shards"
    return svg(24 + 3 * (SIDE + 28), SIDE + 48, title, lines)


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for file, text in pictures().items():
        (FOLDER / file).write_text(text, "utf-8")
        print(f"wrote {FOLDER / file}")
