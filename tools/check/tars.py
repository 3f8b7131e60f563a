"""Does shardio read other tars correctly? It is compared with tarfile, GNU tar and bsdtar.

The archives are those of ../shared/data/tars and ../shared/data/shards, if they are available, and
random ones made here by tarfile and GNU tar in all of their formats. They have names of all lengths
and encodings, PAX records, empty members, links and folders. Some are truncated at the end, without
an end mark, or followed by zeros, text or another archive; some are compressed with gzip, xz or
bzip2, whatever their names say.

Right: the names and bytes that the other readers agree on, in the archive and as samples of a
dataset; or a refusal if the others disagree or complain, or for a reason that shardio documents:
sparse members, links and devices as fields, fields that are repeated or not adjacent, no samples,
members after the end, an end inside a header, global sizes. Wrong: other names or bytes, an archive
that all others read and that shardio refuses without such a reason, or a dataset that silently has
no samples. The idea is differential testing (McKeeman 1998), as in the parser studies that found
TARmageddon.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import subprocess
import tarfile
import zlib
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from itertools import groupby
from pathlib import Path
from random import Random

import campaign
import shardio
from oracles import (
    ABSENT,
    Files,
    Reading,
    plain_bytes,
    read_with_others,
    read_with_shardio,
    without_slashes,
)
from shardio.naming import split_member_name
from shardio.tar.header import LONGEST_EXTENSION, MOST_RECORDS

SHARED = Path(__file__).parents[3] / "shared" / "data"
MADE = 1500
BROKEN = (EOFError, zlib.error, lzma.LZMAError, OSError)


def judge(trial: campaign.Trial, path: Path) -> None:
    readings = read_with_others(path)
    try:
        found = read_with_shardio(plain_bytes(path))
    except (shardio.TarError, *BROKEN) as error:
        trial.refused(reason_to_refuse(path, readings, error))
    else:
        compare(found, readings)
        trial.right("names and bytes")
    judge_samples(trial, path, readings)


def compare(found: Files, readings: dict[str, Reading]) -> None:
    """Raise Wrong unless the readers that reach the end agree."""
    content = without_slashes(found)
    whole = {name: reading for name, reading in readings.items() if not reading.fault}
    if not whole:
        said = {name: reading.fault for name, reading in readings.items()}
        raise campaign.Wrong("reads what all others refuse", said)
    if all(without_slashes(reading.files) != content for reading in whole.values()):
        sizes = {name: brief(reading.files) for name, reading in whole.items()}
        raise campaign.Wrong("other members", f"{brief(found)}; {sizes}")


def judge_samples(trial: campaign.Trial, path: Path, readings: dict[str, Reading]) -> None:
    try:
        dataset = shardio.ShardDataset(path, decode=False)
        samples = [dict(sample) for sample in dataset]
    except campaign.REFUSALS as error:
        trial.refused(reason_to_refuse(path, readings, error))
        return
    if not samples:
        raise campaign.Wrong("no samples in silence", brief(readings["tarfile"].files))
    got = [
        (str(sample["__key__"]), data)
        for sample in samples
        for data in sample.values()
        if isinstance(data, bytes)
    ]
    expected = [keyed(reading.files) for reading in readings.values() if not reading.fault]
    if sorted(got) not in expected:
        raise campaign.Wrong("other samples", brief(got))
    trial.right("samples")


def keyed(files: Files) -> Files:
    """Return the keys of the samples that files form, with the bytes of their fields."""
    names = [(split_member_name(name), data) for name, data in files]
    return sorted((split.key, data) for split, data in names if split is not None)


def reason_to_refuse(path: Path, readings: dict[str, Reading], error: Exception) -> str:
    """Return the reason that an archive gives to refuse it, or raise Wrong if there is none."""
    faults = [name for name, reading in readings.items() if reading.fault]
    contents = {tuple(without_slashes(reading.files)) for reading in readings.values()}
    if faults or len(contents) > 1:
        return "others complain or disagree"
    with tarfile.open(path, encoding="utf-8", errors="surrogateescape") as archive:
        members = archive.getmembers()
        global_size = "size" in (archive.pax_headers or {})
    names = [(split_member_name(member.name), member) for member in members]
    fields = [(split, member) for split, member in names if split and not member.isdir()]
    keys = [key for key, _ in groupby(split.key for split, _ in fields)]
    reasons = {
        "sparse": any(member.issparse() for member in members),
        "no samples": not fields,
        "a field that is no file": any(not member.isfile() for _, member in fields),
        "a field twice": len({split for split, _ in fields}) < len(fields),
        "a sample in two places": len({*keys}) < len(keys),
        "members after the end": with_members_after(path) > len(members),
        "an end inside a header": ends_inside_a_header(path),
        "a global size": global_size,
        "a huge header": any(is_huge(member) for member in members),
    }
    reason = next((reason for reason, holds in reasons.items() if holds), None)
    if reason is None:
        raise campaign.Wrong("refused though all others read it", error)
    return reason


def with_members_after(path: Path) -> int:
    number = 0
    with suppress(tarfile.TarError), tarfile.open(path, ignore_zeros=True) as archive:
        for _ in archive:
            number += 1
    return number


def ends_inside_a_header(path: Path) -> bool:
    """Return whether the last block is truncated and not empty, which only bsdtar reports."""
    data = plain_bytes(path)
    return any(data[len(data) // 512 * 512 :])


def is_huge(member: tarfile.TarInfo) -> bool:
    size = sum(map(len, member.pax_headers.values())) + len(member.name)
    return size > LONGEST_EXTENSION or len(member.pax_headers) > MOST_RECORDS


def brief(files: Files) -> list[tuple[str, int]]:
    return [(name[-40:], len(data)) for name, data in files[:6]]


def given(path: Path, trial: campaign.Trial) -> None:
    judge(trial, path)


def made_with_tarfile(trial: campaign.Trial) -> None:
    random, stream = trial.random, io.BytesIO()
    form = random.choice([tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
    encoding = random.choice(["utf-8", "utf-8", "iso-8859-1"])
    headers = {"comment": "of all"} if random.random() < 0.1 else None
    with tarfile.open(
        fileobj=stream, mode="w", format=form, encoding=encoding, pax_headers=headers
    ) as archive:
        for number in range(random.randint(0, 8)):
            info, data = random_member(random, number)
            try:
                archive.addfile(info, io.BytesIO(data))
            except ValueError:
                continue  # names that ustar does not hold
    judge(trial, write(trial.folder, random_end(random, stream.getvalue()), random))


def random_member(random: Random, number: int) -> tuple[tarfile.TarInfo, bytes]:
    length = random.choice([1, 5, 20, random.randint(80, 110), random.randint(140, 300)])
    letters = random.choice(["abc", "ab/c", "aé/", "aü ü", "-'\"\\"])
    stem = "".join(random.choice(letters) for _ in range(length)).replace("//", "/a").strip("/")
    field = random.choice(["txt", "cls", "JPG", "seg.png", "json"])
    info = tarfile.TarInfo(f"{stem}{number}.{field}" if random.random() < 0.95 else stem or "x")
    info.mtime = random.choice([0, 1, 1.5, 1 << 31, 1 << 34])
    info.uid = random.choice([0, 1000, 1 << 22])
    info.uname = random.choice(["", "root", "jürgen"])
    data = random.randbytes(random.choice([0, 1, 511, 512, 513, random.randint(0, 3000)]))
    if random.random() < 0.1:
        info.type = random.choice([tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.FIFOTYPE])
        info.linkname, data = "elsewhere", b""
    if random.random() < 0.2:
        info.pax_headers = {random.choice(["comment", "SCHILY.xattr.user.a"]): "x" * length}
    info.size = len(data)
    return info, data


def random_end(random: Random, archive: bytes) -> bytes:
    """Return the archive with its end unchanged, truncated, without a mark, or with an addition."""
    bare = archive.rstrip(b"\0")
    bare += bytes(-len(bare) % 512)
    ends = {
        "as it is": archive,
        "none": bare,
        "one block": bare + bytes(512),
        "cut": archive[: random.randint(0, len(archive))],
        "zeros": archive + bytes(512 * random.randint(1, 100)),
        "text": archive + random.choice([b"\n", b"signed by nobody\n" * 40, b"\xff" * 512]),
        "another": archive + archive,
    }
    return ends[random.choice([*["as it is"] * 4, *ends])]


def write(folder: Path, data: bytes, random: Random) -> Path:
    path = folder / random.choice(["a.tar", "a.tar", "a.tgz", "a.tar.xz", "a.tbz2"])
    packers: list[Callable[[bytes], bytes]] = [gzip.compress, lzma.compress, bz2.compress]
    path.write_bytes(random.choice([bytes, bytes, *packers])(data))
    return path


def made_with_gnu_tar(trial: campaign.Trial) -> None:
    if "tar" in ABSENT:
        raise campaign.SkipCase("GNU tar is not installed")
    random, source = trial.random, trial.folder / "source"
    source.mkdir()
    for number in range(random.randint(0, 6)):
        info, data = random_member(random, number)
        path = source / "/".join(part[-60:] for part in info.name.split("/") if part.strip("."))
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        except OSError:
            continue  # a file lies where a folder would
        if random.random() < 0.1:
            path.with_name("hole.txt").write_bytes(b"a" + bytes(1 << 17) + b"b")
    form = random.choice(["v7", "oldgnu", "gnu", "ustar", "posix"])
    extended = [["--sparse"], ["--label=a label"]] if form in {"oldgnu", "gnu", "posix"} else []
    words = ["tar", f"--format={form}", "--sort=name", "--create"]
    words += random.choice([[], ["--absolute-names"], ["-b1"], *extended])
    words += ["--file", str(trial.folder / "made.tar"), f"--directory={source}", "."]
    subprocess.run(words, check=False, capture_output=True)  # noqa: S603  names too long are left out
    data = (trial.folder / "made.tar").read_bytes()
    judge(trial, write(trial.folder, random_end(random, data), random))


def cases(_: Path) -> list[campaign.Case]:
    corpora = [SHARED / "tars", SHARED / "shards"]
    paths = [path for corpus in corpora for path in sorted(corpus.rglob("*")) if path.is_file()]
    tars = [path for path in paths if path.name.endswith((".tar", ".tgz", ".tar.gz"))]
    found = [campaign.Case(str(path.relative_to(SHARED)), partial(given, path)) for path in tars]
    for number in range(MADE):
        found.append(campaign.Case(f"tarfile {number}", made_with_tarfile))
        if number % 3 == 0:
            found.append(campaign.Case(f"GNU tar {number}", made_with_gnu_tar))
    absent = [f"{name} is not installed" for name in ABSENT]
    absent += [] if tars else [f"{SHARED} is not there"]
    return found + [campaign.skipped(reason) for reason in absent]


if __name__ == "__main__":
    campaign.main(__doc__, cases)
