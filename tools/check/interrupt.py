"""Interrupt packs in every way, run them again, and compare every byte.

Usage: python tools/check/interrupt.py [--photos DIR] [--kills 200] [--jobs 2]

1. SIGKILL at random times during a pack of the photos (or of digits, without --photos).
2. SIGKILL, EIO and ENOSPC at each write, fsync and rename of a small pack (needs strace).
3. A file system that is full (a tmpfs of several sizes; needs root).

After each, no shard or index has its final name and other bytes than it should; and the same pack
run again ends with the bytes of one that nobody interrupted.
"""

from __future__ import annotations

import argparse
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from shardio.testing import digests, make_images

CALLS = ("write", "fsync", "/^rename")  # the last for renameat and renameat2 too
FAULTS = ("signal=KILL", "error=EIO", "error=ENOSPC")
LOCK = ".shardio-pack"


def pack(source: Path, out: Path, shards: int, jobs: int) -> list[str]:
    options = ["--shards", str(shards), "--jobs", str(jobs), "--json"]
    return [sys.executable, "-m", "shardio", "pack", str(source), str(out), *options]


class Check:
    """One pack, as it should end, and in which ways it was interrupted."""

    def __init__(self, source: Path, folder: Path, shards: int, jobs: int) -> None:
        self.source, self.folder, self.shards, self.jobs = source, folder, shards, jobs
        self.counts = Counter[str]()
        start = time.monotonic()
        self.run(folder / "whole")
        self.seconds = time.monotonic() - start
        self.expected = digests(folder / "whole")

    def command(self, out: Path) -> list[str]:
        """The command that packs into a folder."""
        return pack(self.source, out, self.shards, self.jobs)

    def run(self, out: Path) -> None:
        """Pack into a folder."""
        subprocess.run(self.command(out), check=True, stdout=subprocess.DEVNULL)  # noqa: S603

    def settle(self, out: Path, how: str) -> None:
        """Look at what an interruption left, run the pack again, compare."""
        left = digests(out) if out.exists() else {}
        for name, digest in left.items():
            if name.endswith((".tar", ".idx")) and not Path(name).name.startswith("."):
                assert digest == self.expected[name], f"{how}: {name} is not whole"
        finished = sum(name.endswith(".tar") for name in left if "/" not in name)
        if left and LOCK not in left:
            assert left == self.expected, f"{how}: unlocked, and not whole"
            self.counts["ended before it was interrupted"] += 1
        else:
            self.run(out)
            self.counts[f"with {finished} finished shards"] += 1
        assert digests(out) == self.expected, f"{how}: other bytes"
        shutil.rmtree(out)


def kill_at_random(check: Check, kills: int) -> None:
    choose = random.Random(0)  # noqa: S311
    for number in range(kills):
        out = check.folder / "out"
        process = subprocess.Popen(check.command(out), stdout=subprocess.DEVNULL)  # noqa: S603
        time.sleep(choose.random() * check.seconds)
        process.kill()
        process.wait()
        check.settle(out, f"kill {number}")
    print(f"{kills} kills at random times: {dict(sorted(check.counts.items()))}")


def fail_at_each_call(check: Check) -> None:
    for fault in FAULTS:
        for call in CALLS:
            check.counts.clear()
            number = 0
            while True:
                number += 1
                out = check.folder / "out"
                inject = f"inject={call}:{fault}:when={number}"
                command = ["strace", "-f", "-o", "/dev/null", "-e", inject, *check.command(out)]
                done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
                assert "Traceback" not in done.stderr, done.stderr
                if done.returncode == 0 and out.exists():
                    assert digests(out) == check.expected
                    shutil.rmtree(out)
                    break
                if fault.startswith("error") and out.exists() and done.returncode == 1:
                    assert done.stderr.count("\n") == 1, done.stderr
                check.settle(out, f"{fault} at {call} {number}")
            print(f"{fault} at each of {number - 1} {call}: {sum(check.counts.values())} settled")


def fill_disk(check: Check, mount: Path) -> None:
    mount.mkdir()
    total = sum(path.stat().st_size for path in (check.folder / "whole").rglob("*"))
    for share in range(1, 10):
        size = f"size={total * share // 10}"
        command = ["mount", "-t", "tmpfs", "-o", size, "tmpfs", str(mount)]
        if subprocess.run(command, capture_output=True, check=False).returncode:  # noqa: S603
            print("a full disk: not tried, since mounting a tmpfs needs root")
            return
        try:
            done = subprocess.run(  # noqa: S603
                check.command(mount / "out"), capture_output=True, text=True, check=False
            )
            assert done.returncode == 1, done
            assert "No space left on device" in done.stderr
            assert done.stderr.count("\n") == 1, done.stderr
            grow = ["mount", "-o", f"remount,size={total * 3}", str(mount)]
            subprocess.run(grow, check=True)  # noqa: S603
            check.settle(mount / "out", f"disk of {share}/10")
        finally:
            subprocess.run(["umount", str(mount)], check=True)  # noqa: S603, S607
    print("a disk of 1/10 to 9/10 of the size: 9 settled")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--photos", type=Path)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--jobs", type=int, default=2)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        photos = arguments.photos or make_images(
            folder / "made", classes=10, per_class=60, size=200
        )
        for part in ("large", "small"):
            (folder / part).mkdir()
        large = Check(photos, folder / "large", 16, arguments.jobs)
        kill_at_random(large, arguments.kills)
        fill_disk(large, folder / "mount")
        few = make_images(folder / "few", classes=2, per_class=4)
        if shutil.which("strace") is None:
            print("a fault at each call: not tried, since strace is not installed")
            return
        fail_at_each_call(Check(few, folder / "small", 3, 1))


if __name__ == "__main__":
    main()
