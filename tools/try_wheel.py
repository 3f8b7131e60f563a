"""Install a wheel into a fresh environment, where no compiler is, and read images there.

The libraries that shardio needs are those of the Python that runs this. The native core must be on,
and the pixels must be the same without it.
"""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import tempfile
import venv
from pathlib import Path

PROGRAM = """
import hashlib, os, shardio, shardio.native
from pathlib import Path
from shardio.testing import make_images

assert Path(shardio.__file__).is_relative_to(os.environ["FRESH"]), shardio.__file__
if not Path("out").exists():
    make_images(Path("images"), classes=2, per_class=16, size=96, extension="jpg")
    shardio.pack("images", "out", shards=2)
dataset = shardio.ShardDataset("out", batch_size=16, transform=shardio.RandomResizedCrop(64))
seen = hashlib.sha256()
for batch in dataset:
    seen.update(batch["image"].numpy().tobytes())
print(shardio.native.status(), seen.hexdigest(), sep="|")
"""


def run(*command: object, **variables: str) -> str:
    done = subprocess.run(  # noqa: S603  what this file says
        [*map(str, command)],
        cwd=variables["FRESH"],
        env=variables,
        stdout=subprocess.PIPE,
        check=True,
        text=True,
    )
    return done.stdout.strip()


def main() -> None:
    wheel = Path(sys.argv[1]).resolve()
    with tempfile.TemporaryDirectory() as folder:
        fresh = Path(folder).resolve()
        venv.create(fresh, with_pip=True)
        python = fresh / "bin/python"
        variables = {"PATH": str(fresh / "bin"), "FRESH": str(fresh), "CC": "false"}
        pip = ["-m", "pip", "--quiet", "--disable-pip-version-check"]
        run(python, *pip, "install", "--no-deps", "--no-index", wheel, **variables)
        site = run(
            python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", **variables
        )
        Path(site, "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
        status, pixels = run(python, "-c", PROGRAM, **variables).split("|")
        off, reference = run(python, "-c", PROGRAM, **variables, SHARDIO_NATIVE="0").split("|")
        print(run(fresh / "bin/shardio", "--version", **variables))
    assert status.startswith("on, "), status
    assert off == "off, SHARDIO_NATIVE=0", off
    assert pixels == reference, "the native core has other pixels than Python"
    print(f"{wheel.name}: {wheel.stat().st_size:,} bytes, works where no compiler is")


if __name__ == "__main__":
    main()
