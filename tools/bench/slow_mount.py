"""Mount a folder as if it were on slow network storage: a read-only FUSE file system.

Each open and each read request is delayed, many at a time, as by a file server. Names and
attributes are returned at once. Pages that were read stay in the kernel's cache until they are
dropped (posix_fadvise with DONTNEED) or the folder is mounted again, so the files must not change.
"mounted" is printed, and the folder is served until SIGTERM, SIGINT or `fusermount3 -u MOUNTPOINT`.
Linux, fuse3 and mfusepy are required.

A reader is limited by the number of requests and their sizes. Whatever size a program reads, a
request is no larger than the kernel's read-ahead, 128 KiB at first
(/sys/class/bdi/MAJOR:MINOR/read_ahead_kb), and the requests of one thread are sequential.

Usage: python tools/bench/slow_mount.py BACKING MOUNTPOINT [--delay-ms 20] [--mb-per-s 200]
                                        [--in-flight 64]
"""

import argparse
import os
import time
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("FUSE_LIBRARY_NAME", "fuse3")  # mfusepy would take libfuse2 before
import mfusepy

STATS = ("st_mode", "st_nlink", "st_size", "st_uid", "st_gid")
STATS_NS = ("st_atime", "st_mtime", "st_ctime")
THREADS = 256  # libfuse's own default is 10, and each waiting request holds one
ENDED_BY_SIGNAL = 8  # what libfuse returns then
CACHED_SECONDS = 60  # how long the kernel may believe names and attributes


class SlowFolder:
    """Operations of a read-only folder whose files are slow to open and to read.

    mfusepy finds the operations by name and calls them from many threads at once. Waiting and
    reading release the interpreter lock.
    """

    use_ns = True  # attributes hold times in nanoseconds

    def __init__(self, backing: str, *, delay: float, bytes_per_s: float, in_flight: int) -> None:
        self.backing = backing
        self.delay = delay
        self.bytes_per_s = bytes_per_s
        self.in_flight = in_flight

    def init_with_config(self, conn: "mfusepy.fuse_conn_info", _config: object) -> None:
        """Handle the kernel's first message: the folder is mounted."""
        conn.max_background = self.in_flight
        conn.congestion_threshold = self.in_flight * 3 // 4  # as the kernel's defaults have it
        print("mounted", flush=True)

    def getattr(self, path: str, fh: int | None = None) -> dict[str, int]:
        """Return a file's attributes, without delay."""
        found = os.fstat(fh) if fh is not None else os.lstat(self.backing + path)
        stats = {name: int(getattr(found, name)) for name in STATS}
        return stats | {name: int(getattr(found, f"{name}_ns")) for name in STATS_NS}

    def readdir(self, path: str, _fh: int) -> Iterator[str]:
        """Return the names in a folder, without delay."""
        yield from (".", "..")
        yield from os.listdir(self.backing + path)  # noqa: PTH208  names are what is wanted

    def readlink(self, path: str) -> str:
        """Return the target of a link, without delay."""
        return os.readlink(self.backing + path)  # noqa: PTH115  libfuse wants the text

    def open(self, path: str, flags: int) -> int:
        """Open the real file after the delay."""
        time.sleep(self.delay)
        return os.open(self.backing + path, flags & os.O_ACCMODE | os.O_CLOEXEC)

    def read(self, _path: str, size: int, offset: int, fh: int) -> bytes:
        """Return bytes of a file, limited by the delay and the rate."""
        due = time.monotonic() + self.delay
        data = os.pread(fh, size, offset)
        left = due + len(data) / self.bytes_per_s - time.monotonic()
        if left > 0:
            time.sleep(left)
        return data

    def release(self, _path: str, fh: int) -> int:
        """Close the real file."""
        os.close(fh)
        return 0


def mount(folder: SlowFolder, mountpoint: str) -> None:
    """Serve the folder until it is unmounted."""
    try:
        mfusepy.FUSE(
            folder,
            mountpoint,
            fsname="slow_mount",
            foreground=True,
            ro=True,
            kernel_cache=True,  # an open does not drop the pages that were read before
            max_threads=THREADS,
            entry_timeout=CACHED_SECONDS,
            attr_timeout=CACHED_SECONDS,
        )
    except RuntimeError as error:
        if error.args != (ENDED_BY_SIGNAL,):
            raise


def main() -> None:
    """Parse the arguments, mount the folder, and serve it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("backing", help="the real folder")
    parser.add_argument("mountpoint", help="an empty folder")
    parser.add_argument("--delay-ms", type=float, default=20.0, help="of each open and each read")
    parser.add_argument("--mb-per-s", type=float, default=200.0, help="the speed of each read")
    parser.add_argument(
        "--in-flight",
        type=int,
        default=64,
        help="how many reads of all programs the kernel sends at a time: 64, as NFS has it; "
        "FUSE's own default is 12",
    )
    given = parser.parse_args()
    folder = SlowFolder(
        str(Path(given.backing).resolve(strict=True)),
        delay=given.delay_ms / 1e3,
        bytes_per_s=given.mb_per_s * 1e6,
        in_flight=given.in_flight,
    )
    mount(folder, given.mountpoint)


if __name__ == "__main__":
    main()
