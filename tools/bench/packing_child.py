"""Pack a share of the shards in this process, and print the seconds without its start.

Arguments: way of packing, folder of the images, output folder, and a JSON file with the shards,
each with its name and its files with their class numbers. Imports are few, to keep the start short.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

Files = list[tuple[str, int]]
Pack = Callable[[str, Files], None]


def main() -> None:
    way, images, out, share = sys.argv[1:]
    shards = json.loads(Path(share).read_text("utf-8"))
    pack = WAYS[way]()
    os.chdir(images)
    start = time.perf_counter()
    for name, files in shards:
        pack(os.path.join(out, name), files)  # noqa: PTH118  the path as a string
    print(time.perf_counter() - start, flush=True)


def copy_bytes() -> Pack:
    """Read each file whole and append it to another, with five system calls: the lower bound."""

    def pack(path: str, files: Files) -> None:
        out = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        for name, _ in files:
            file = os.open(name, os.O_RDONLY)
            os.write(out, os.read(file, os.fstat(file).st_size))
            os.close(file)
        os.close(out)

    return pack


def write_with_webdataset() -> Pack:
    """Write as in webdataset's documentation: the bytes of the image, and the class number."""
    import webdataset  # noqa: PLC0415  takes seconds, and the floor needs none

    def pack(path: str, files: Files) -> None:
        with webdataset.TarWriter(path) as writer:
            for name, label in files:
                key, extension = os.path.splitext(name)  # noqa: PTH122
                data = Path(name).read_bytes()
                writer.write({"__key__": key, extension[1:].lower(): data, "cls": label})

    return pack


def write_with_webdataset_and_sync() -> Pack:
    """Write as write_with_webdataset does, and sync each shard to disk before the next one."""
    write = write_with_webdataset()

    def pack(path: str, files: Files) -> None:
        write(path, files)
        sync(path)

    return pack


def sync(path: str) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


WAYS = {
    "copy": copy_bytes,
    "webdataset": write_with_webdataset,
    "webdataset, synced": write_with_webdataset_and_sync,
}

if __name__ == "__main__":
    main()
