"""The samples of a shard by the names of its members, however they lie.

Adjacent members with one key are a run. In a sound shard each run is a sample: no key has two
runs, and no run a field twice.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from shardio.naming import split_member_name
from shardio.tar.header import DIRECTORY, FILE
from shardio.tar.reader import Members


class Run(NamedTuple):
    """Adjacent members with one key.

    Attributes:
        key: of the sample.
        members: number of the member by field; of a field that is there twice, the first.
        again: fields that are there again, and the numbers of those members.
    """

    key: str
    members: dict[str, int]
    again: list[tuple[str, int]]


class NoSample(NamedTuple):
    """A member that belongs to no sample.

    Attributes:
        number: of the member.
        name: as text.
        is_file: False for links, devices and the like, whose data are elsewhere.
    """

    number: int
    name: str
    is_file: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Grouped:
    """The members of a shard by sample.

    Attributes:
        runs: in order.
        others: members of no sample, but for folders.
    """

    runs: list[Run]
    others: list[NoSample]


def group_members(members: Members) -> Grouped:
    """Group members into samples, by the one rule of names."""
    runs: list[Run] = []
    others: list[NoSample] = []
    for number, (raw, kind) in enumerate(zip(members.names, members.kinds, strict=True)):
        if kind == DIRECTORY[0]:
            continue
        name = raw.decode("utf-8", "surrogateescape")
        split = split_member_name(name)
        if split is None or kind != FILE[0]:
            others.append(NoSample(number, name, kind == FILE[0] or split is None))
            continue
        if not runs or runs[-1].key != split.key:
            runs.append(Run(split.key, {}, []))
        if runs[-1].members.setdefault(split.field, number) != number:
            runs[-1].again.append((split.field, number))
    return Grouped(runs=runs, others=others)
