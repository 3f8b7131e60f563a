"""What is saved of a loop, and what refuses a state that belongs to another one.

A state is a position (epoch and step) and the identity of what it is a position in: everything
that the sequence of global batches depends on. The identity is compared entry by entry, so that
a refusal says what differs. Payloads are never saved: a state has the same few hundred bytes
wherever it is taken.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from shardio.errors import UsageError

VERSION = 1
Identity = Mapping[str, str | int | bool | None]


class Position(NamedTuple):
    """Where a loop is.

    Attributes:
        epoch: from 0.
        step: the next one, from 0.
    """

    epoch: int
    step: int


def make_state(
    identity: Identity, position: Position, worker: tuple[int, int] | None
) -> dict[str, Any]:
    """A state.

    Args:
        identity: of the dataset and plan.
        position: of the next step.
        worker: the worker and num_workers, if the position is of one worker's own steps.
    """
    state = {"version": VERSION, **position._asdict(), **identity}
    return state if worker is None else {**state, "worker": list(worker)}


def read_state(
    state: Mapping[str, Any], identity: Identity, worker: tuple[int, int] | None
) -> Position:
    """The position of a state.

    Args:
        state: from make_state.
        identity: what the state should be of.
        worker: what make_state was given.

    Raises:
        UsageError: it is no state, or of another version, dataset, plan or worker.
    """
    version = state.get("version") if isinstance(state, Mapping) else None
    if type(version) is not int:
        raise UsageError(f"{_short(state)} is no state of a dataset: pass what state_dict() gave")
    if version != VERSION:
        raise UsageError(
            f"the state has version {version}, this shardio reads {VERSION}: install the shardio "
            "that wrote it"
        )
    different = [
        f"{name} was {state.get(name)!r}, is {value!r}"
        for name, value in identity.items()
        if state.get(name) != value
    ]
    if different:
        raise UsageError(
            f"the state belongs to other batches: {'; '.join(different)}. Open the dataset as it "
            "was when the state was saved, or start an epoch anew with set_epoch()"
        )
    _check_worker(state.get("worker"), worker)
    epoch, step = state.get("epoch"), state.get("step")
    if not (isinstance(epoch, int) and isinstance(step, int) and min(epoch, step) >= 0):
        raise UsageError(f"the state has epoch {epoch!r} and step {step!r}: it was changed")
    return Position(epoch, step)


def _check_worker(saved: object, worker: tuple[int, int] | None) -> None:
    here = None if worker is None else list(worker)
    if saved == here:
        return
    if saved is None:
        raise UsageError(
            "a worker was given the state of a whole loop: load it into the dataset before the "
            "DataLoader starts its workers"
        )
    raise UsageError(
        f"the state is of worker and num_workers {saved}, here they are {here}: a state that "
        "StatefulDataLoader saved needs as many workers again; ds.state_dict(batch) does not"
    )


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}…"
