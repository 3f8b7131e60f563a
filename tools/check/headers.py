"""Do corrupt headers give wrong members? Every byte of a header takes every value.

An archive has three members. The header of the second one is of some kind: v7, ustar with a prefix,
GNU's long names and base-256 sizes, PAX records for one member and for all, or a folder. Each of
its bytes is set to each other value. At random, several bytes are set, with a valid checksum in
half of the cases.

Right: the members of the original archive; or, if the checksum of the changed header is valid, the
members that Python's tarfile, GNU tar or bsdtar reads. Wrong: any other members, or any error but
TarError. The idea is that of AFL's deterministic stage. A checksum is valid if it is the sum of
POSIX or that of Sun's old tar.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from random import Random

import campaign
import shardio
from oracles import READERS, Files, read_with_shardio, without_slashes

BLOCK = 512
RANDOM_ROUNDS = 200
RANDOM_TIMES = 250


def member(name: str, data: bytes, **fields: object) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for field, value in fields.items():
        setattr(info, field, value)
    return info, data


def archive(form: int, second: tuple[tarfile.TarInfo, bytes]) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=form) as tar:
        for info, data in (member("a.txt", b"first"), second, member("c.cls", b"3")):
            tar.addfile(info, io.BytesIO(data))
    return stream.getvalue()[: -(10240 - 1024) % BLOCK or None].rstrip(b"\0")


def made() -> dict[str, bytes]:
    """Return the archives by kind; the header to change is always the second, at byte 1,024."""
    long = "folder/" * 20 + "b.txt"
    plain = member("b.txt", b"x" * 700)
    ustar = archive(tarfile.USTAR_FORMAT, plain)
    v7 = bytearray(ustar)
    v7[1024 + 257 : 1024 + 512] = bytes(255)
    archives = {
        "ustar": ustar,
        "v7": with_checksum(v7, 1024),
        "prefix": archive(tarfile.USTAR_FORMAT, member(long, b"x" * 700)),
        "gnu": archive(tarfile.GNU_FORMAT, plain),
        "gnu long name": archive(tarfile.GNU_FORMAT, member(long, b"x" * 700)),
        "base 256": archive(tarfile.GNU_FORMAT, member("b.txt", b"x" * 700, mtime=1 << 40)),
        "pax": archive(tarfile.PAX_FORMAT, member("ü.txt", b"x" * 700)),
        "high bytes": archive(tarfile.GNU_FORMAT, member("üöä.txt", b"x" * 700)),
        "folder": archive(tarfile.USTAR_FORMAT, member("b", b"", type=tarfile.DIRTYPE)),
        "global": archive(
            tarfile.PAX_FORMAT, member("b.txt", b"11 path=zz\n", type=tarfile.XGLTYPE)
        ),
    }
    return {kind: data + bytes(-len(data) % BLOCK + 2 * BLOCK) for kind, data in archives.items()}


def with_checksum(data: bytearray, at: int) -> bytes:
    data[at + 148 : at + 156] = b" " * 8
    data[at + 148 : at + 156] = b"%06o\0 " % sum(data[at : at + BLOCK])
    return bytes(data)


def checksum_holds(data: bytes, at: int) -> bool:
    try:
        stated = tarfile.nti(data[at + 148 : at + 156])  # type: ignore[attr-defined]
    except tarfile.HeaderError:
        return False
    sums = tarfile.calc_chksums(data[at : at + BLOCK])  # type: ignore[attr-defined]
    return stated in sums


def judge(trial: campaign.Trial, sound: Files, data: bytes, changed: object) -> None:
    try:
        found = read_with_shardio(data)
    except shardio.TarError as error:
        trial.refused(error)
        return
    except Exception as error:
        trial.wrong(f"raises {type(error).__name__}", f"{changed}: {error}")
        return
    if found == sound:
        trial.right("the undamaged members")
        return
    if checksum_holds(data, 1024):
        path = trial.folder / "damaged.tar"
        path.write_bytes(data)
        for name, read in READERS.items():
            if without_slashes(found) == without_slashes(read(path).files):
                trial.right(f"under a checksum that holds, the members that {name} reads")
                return
    trial.wrong("other members", f"{changed}: {[(name, len(part)) for name, part in found]}")


def every_value(kind: str, offset: int, trial: campaign.Trial) -> None:
    sound = SOUND[kind]
    members = read_with_shardio(sound)
    for value in range(256):
        if value != sound[1024 + offset]:
            data = bytearray(sound)
            data[1024 + offset] = value
            judge(trial, members, bytes(data), f"byte {offset} of the header is {value}")


def several_bytes(kind: str, trial: campaign.Trial) -> None:
    sound = SOUND[kind]
    members = read_with_shardio(sound)
    for number in range(RANDOM_TIMES):
        changes = random_changes(trial.random)
        data = bytearray(sound)
        for offset, value in changes.items():
            data[1024 + offset] = value
        judge(trial, members, with_checksum(data, 1024) if number % 2 else bytes(data), changes)


def random_changes(random: Random) -> dict[int, int]:
    fields = ((0, 100), (124, 136), (148, 156), (156, 157), (257, 265), (345, 500), (0, 512))
    start, end = random.choice(fields)
    values: Callable[[], int] = random.choice(
        [lambda: random.randrange(256), lambda: ord(random.choice("01234567 \0/LKxgS"))]
    )
    return {random.randrange(start, end): values() for _ in range(random.randint(1, 6))}


SOUND = made()


def cases(_: Path) -> list[campaign.Case]:
    exhaustive = [
        campaign.Case(f"{kind}, byte {offset}", partial(every_value, kind, offset))
        for kind in SOUND
        for offset in range(BLOCK)
    ]
    rounds = [
        campaign.Case(f"{kind}, round {number}", partial(several_bytes, kind))
        for kind in SOUND
        for number in range(RANDOM_ROUNDS)
    ]
    return exhaustive + rounds


if __name__ == "__main__":
    campaign.main(__doc__, cases)
