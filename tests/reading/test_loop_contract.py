"""Every kind of loop keeps one contract of states: what was saved anywhere is taken up there."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

import shardio


def dataset(packed: Path, **options: Any) -> shardio.ShardDataset:
    return shardio.ShardDataset(packed, shuffle=True, decode=False, seed=3, **options)


def mixture(packed: Path, **options: Any) -> shardio.Mix:
    return shardio.Mix(dataset(packed, **options).split(0.4), weights=[0.3, 0.7])


def threads(loop: Any) -> shardio.Loader:
    return shardio.Loader(loop, threads=2)


LOOPS: dict[str, Callable[[Path], Any]] = {
    "batches": lambda packed: dataset(packed, batch_size=60),
    "a rank": lambda packed: dataset(packed, global_batch_size=60, rank=1, world_size=2),
    "samples": dataset,
    "a mixture": lambda packed: mixture(packed, batch_size=30),
    "samples of a mixture": mixture,
    "threads": lambda packed: threads(dataset(packed, batch_size=60)),
    "threads of a mixture": lambda packed: threads(mixture(packed, batch_size=30)),
}


def keys(loop: Any, count: int | None = None) -> list[Any]:
    return [batch["__key__"] for batch in islice(loop, count)]


@pytest.mark.parametrize("kind", LOOPS)
def test_a_loop_is_taken_up_wherever_it_was_saved(packed: Path, kind: str) -> None:
    """Before, in, between and after epochs, in the same object and in a new one."""
    make = LOOPS[kind]
    whole = make(packed)
    epochs = [keys(whole) for _ in range(3)]
    assert epochs[0] != epochs[1] != epochs[2]
    loop, saved = make(packed), []
    for epoch in range(2):
        for step in (0, 3, len(epochs[epoch])):
            loop.set_epoch(epoch)
            assert keys(loop, step) == epochs[epoch][:step]
            saved.append((epoch, step, loop.state_dict()))
    for epoch, step, state in saved:
        for one in (loop, make(packed)):
            one.load_state_dict(state)
            assert one.state_dict() == state
            rest = epochs[epoch][step:] or epochs[epoch + 1]
            assert keys(one) == rest
            if step < len(epochs[epoch]):
                assert keys(one) == epochs[epoch + 1]
