"""Pack millions of files and print the peak memory.

Usage: python tools/check/millions.py [--files 2000000] [--per-folder 1000] [--folder DIR]

The files are links to one small image; the folder should be in memory (a tmpfs). The peak is that
of all processes of the pack together (Pss_Anon + Pss_Shmem, without the page cache).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from shardio.profiling.system import tree_memory
from shardio.testing import make_images

_SECONDS_BETWEEN_LOOKS = 0.2


def make_links(folder: Path, files: int, per_folder: int) -> Path:
    """Make a folder of subfolders with many names of one image."""
    image = next(make_images(folder / "one", classes=0, per_class=1, size=4).iterdir())
    source = folder / "in"
    for first in range(0, files, per_folder):
        inside = source / f"class{first // per_folder:06d}"
        inside.mkdir(parents=True)
        for number in range(first, min(first + per_folder, files)):
            os.link(image, inside / f"image-of-a-usual-length-{number:09d}.png")
    return source


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--files", type=int, default=2_000_000)
    parser.add_argument("--per-folder", type=int, default=1000)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--folder", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        source = make_links(Path(name), arguments.files, arguments.per_folder)
        command = [sys.executable, "-m", "shardio", "pack", str(source), f"{name}/out", "--json"]
        command += ["--samples-per-shard", "20000", "--jobs", str(arguments.jobs)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)  # noqa: S603
        peak = 0
        while process.poll() is None:
            peak = max(peak, tree_memory(process.pid) or 0)
            time.sleep(_SECONDS_BETWEEN_LOOKS)
        said = process.communicate()[0]
        assert process.returncode == 0, "the pack failed"
        summary = json.loads(said)
    print(
        f"{summary['samples']:,} samples in {summary['shards']:,} shards: "
        f"{summary['seconds']:.0f} s, at most {peak / 1e6:.0f} MB"
    )


if __name__ == "__main__":
    main()
