"""What the batches of a loop are read from, and how; what is told of their bad samples."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from shardio.errors import counted, quoted
from shardio.fields.image import Scratch
from shardio.planning.samples import Samples
from shardio.processes import new_lock
from shardio.reading.entries import Fields
from shardio.reading.geometry import SampleGeometry
from shardio.reading.mapping import Functions
from shardio.reading.shards import ShardPool
from shardio.reading.times import StageTimes, Stopwatch

if TYPE_CHECKING:
    import threading

_LOG = logging.getLogger("shardio")
_MOST_NAMED = 5  # bad samples of a loop that are told one by one


class Replacements:
    """Tells of the bad samples of a dataset that others replaced.

    In one process each bad sample is told once, whatever the number of epochs: the first few of a
    loop are named, the others counted when the loop ends.
    """

    def __init__(self) -> None:
        self._told: set[tuple[str, int]] = set()  # shards, and positions there
        self._named = self._unnamed = 0
        self._listed = False  # whether `verify` would list one that was not named

    def note(self, place: tuple[str, int], fault: str, substitute: str, *, damaged: bool) -> None:
        """Note a replacement.

        Args:
            place: shard of the bad sample, and position there.
            fault: reason why the sample cannot be delivered.
            substitute: key of the sample in its place.
            damaged: whether its data are the reason.
        """
        if place in self._told:
            return
        self._told.add(place)
        if self._named < _MOST_NAMED:
            self._named += 1
            _LOG.warning("%s; sample %s takes its place", fault, quoted(substitute))
        else:
            self._unnamed += 1
            self._listed |= damaged

    def close(self) -> None:
        """End the loop: tell the number of samples that were not named."""
        if self._unnamed:
            _LOG.warning(
                "%s could not be delivered either and had to be replaced; %snum_bad_samples counts "
                "the replacements",
                counted(self._unnamed, "more sample"),
                "`shardio verify --deep` lists damaged ones, " if self._listed else "",
            )
        self._named, self._unnamed, self._listed = 0, 0, False


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """What all batches of a loop are read from, and how.

    Attributes:
        pool: shards of the dataset.
        samples: samples of the dataset, which alone may stand in for a bad one.
        fields: entries of a sample; see shardio.reading.columns.
        several: entries of which a sample must not have more than one alternative.
        missing_ok: leave out an entry that a sample has no field for.
        optional: entries that a sample may lack; batches say which samples have them.
        geometry: chooser of the views of a sample.
        crops: whether batches tell the crops of their samples.
        functions: functions of the user on whole samples.
        skip_bad: whether another sample takes the place of a bad one; otherwise an error is raised.
        stand_ins: whether another sample takes the place of a bad or skipped one; False where a
            sample is asked for alone.
        on_replaced: function that is called for each replaced sample.
        replacements: teller of replaced samples.
        times: totals of the dataset, to which those of the batches are added.
        stopwatch: makes one for each chunk.
        lock: guards the times.
    """

    pool: ShardPool
    samples: Samples
    fields: Fields
    several: Fields
    missing_ok: bool
    optional: frozenset[str]
    geometry: SampleGeometry
    crops: bool
    functions: Functions
    skip_bad: bool
    stand_ins: bool
    on_replaced: Callable[[], None]
    replacements: Replacements
    times: StageTimes
    stopwatch: Callable[[], Stopwatch]
    lock: threading.Lock


@dataclass(frozen=True, slots=True)
class Shared:
    """What the readers of a loop have in common, one of each bucket.

    Attributes:
        scratch: buffer where image files are decoded.
        lock: guards the times.
    """

    scratch: Scratch = field(default_factory=Scratch)
    lock: threading.Lock = field(default_factory=new_lock)
