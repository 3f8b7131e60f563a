"""Install an sdist and a wheel, each in a fresh environment, and use shardio as its README says.

The three uses are packing, reading in training and profiling. The version must be that of the
files' names, and the newest in CHANGELOG.md, with nothing under "Unreleased".
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

CHANGELOG = Path(__file__).parents[1] / "CHANGELOG.md"
MAKE_IMAGES = """
from pathlib import Path
from shardio.testing import make_images
make_images(Path("images"), classes=2, per_class=64, size=96, extension="jpg")
"""
READ = """
import os, shardio
from pathlib import Path

assert Path(shardio.__file__).is_relative_to(os.environ["FRESH"]), shardio.__file__
dataset = shardio.ShardDataset(
    "out", shuffle=True, batch_size=16, transform=shardio.RandomResizedCrop(64)
)
batches = [*shardio.Loader(dataset)]
assert all(batch["image"].shape == (16, 3, 64, 64) for batch in batches)
keys = {key for batch in batches for key in batch["__key__"]}
assert len(keys) == sum(int(batch["valid"].sum()) for batch in batches) == 128
print("read 128 samples, each once")
"""


def run(fresh: Path, *command: object) -> str:
    """Run a command in a fresh environment, outside of the checkout."""
    done = subprocess.run(  # noqa: S603  what this file says
        [*map(str, command)],
        cwd=fresh,
        env={
            **{name: value for name, value in os.environ.items() if not name.startswith("PYTHON")},
            "PATH": f"{fresh / 'bin'}:{os.environ['PATH']}",
            "FRESH": str(fresh),
        },
        capture_output=True,
        check=False,
        text=True,
    )
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))[:200]}: exit code {done.returncode}\n{done.stderr}")
    return done.stdout.strip()


def install(package: Path, fresh: Path, dependencies: Path | None) -> None:
    """Install a package, and what it needs from the index or, for a trial, from a folder."""
    venv.create(fresh, with_pip=True)
    pip = fresh / "bin/python", "-m", "pip", "--quiet", "--disable-pip-version-check", "install"
    if dependencies is None:
        run(fresh, *pip, package)
        return
    site = run(
        fresh, fresh / "bin/python", "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"
    )
    Path(site, "dependencies.pth").write_text(f"{dependencies}\n", "utf-8")
    run(fresh, *pip, "--no-deps", "--no-build-isolation", package)


def try_package(package: Path, dependencies: Path | None) -> str:
    """Install a package, run the three uses, and return the version that it says."""
    with tempfile.TemporaryDirectory() as folder:
        fresh = Path(folder).resolve()
        install(package, fresh, dependencies)
        python, shardio = fresh / "bin/python", fresh / "bin/shardio"
        said = run(fresh, shardio, "--version")
        run(fresh, python, "-c", MAKE_IMAGES)
        uses = [
            run(fresh, shardio, "pack", "images/", "out/", "--shards", 4),
            run(fresh, python, "-c", READ),
            run(fresh, shardio, "profile", "out/", "--size", 64, "--seconds", 0.5),
        ]
    print(f"{package.name}: {package.stat().st_size:,} bytes\n{said}")
    print(*(f"  {' '.join(use.split()).partition('. ')[0]}" for use in uses), sep="\n", flush=True)
    return said.splitlines()[0].rpartition(" ")[2]


def faults_of(version: str, changelog: str) -> list[str]:
    """List why a version cannot be released with a changelog."""
    sections = re.split(r"^## ", changelog, flags=re.MULTILINE)[1:]
    unreleased = [each for each in sections if each.startswith("Unreleased")]
    numbered = [each.split()[0].strip("[]") for each in sections if each not in unreleased]
    faults = []
    if numbered[:1] != [version]:
        newest = numbered[0] if numbered else "none"
        faults.append(f"CHANGELOG.md: the newest version is {newest}, not {version}")
    if any(each.removeprefix("Unreleased").strip() for each in unreleased):
        faults.append(f'CHANGELOG.md: "Unreleased" has entries; move them to "## {version} - DATE"')
    return faults


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("packages", metavar="FILE", type=Path, nargs="+", help="sdist and wheel")
    parser.add_argument(
        "--dependencies",
        metavar="FOLDER",
        type=Path,
        help="site-packages that has what shardio needs, for a trial without the index",
    )
    given = parser.parse_args()
    packages = [path.resolve() for path in given.packages]
    faults = []
    if {path.suffix for path in packages} != {".gz", ".whl"}:
        faults.append("an sdist and a wheel are needed")
    dependencies = given.dependencies and given.dependencies.resolve()
    versions = {try_package(path, dependencies) for path in packages}
    for version in sorted(versions):
        others = [path.name for path in packages if f"-{version}" not in path.name]
        faults += [f"{name}: it says that it is {version}" for name in others]
        faults += faults_of(version, CHANGELOG.read_text("utf-8"))
    if faults:
        sys.exit("\n".join(faults))
    print(f"shardio {versions.pop()} can be released")


if __name__ == "__main__":
    main()
