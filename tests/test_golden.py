"""What was written before still reads; the same input gives the same bytes, orders and answers.

`tests/golden` holds a folder that shardio 0.1.0 packed, a state that it saved, and what it said of
the folder. `python tests/test_golden.py` writes them anew, for a change that is meant.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from torch.utils.data import DataLoader

import shardio
from shardio.cli import commands
from shardio.testing import digests

GOLDEN = Path(__file__).parent / "golden"
PACKED = GOLDEN / "packed"
PLANS: dict[str, dict[str, Any]] = {
    "in order": {"global_batch_size": 8},
    "windows": {"global_batch_size": 8, "shuffle": True, "window": 2, "seed": 5},
    "full": {"global_batch_size": 6, "shuffle": "full", "seed": 1, "tail": "drop"},
    "streams": {"global_batch_size": 6, "shuffle": True, "window": 1, "streams": 2, "seed": 3},
}
SAVED_AT = {"epoch": 1, "step": 2}
COMMANDS = {
    "info": ["info", "--json", "--shards", "--sample", "s017"],
    "verify": ["verify", "--json", "--deep"],
    "plan": ["plan", "--json", "--ranks", "2", "--workers", "2", "--batch-size", "4",
             "--nodes", "2", "--shuffle", "true"],
}  # fmt: skip


def samples() -> Iterator[dict[str, Any]]:
    for number in range(30):
        yield {
            "__key__": f"s{number:03d}",
            "cls": number % 4,
            "bin": hashlib.sha256(b"%d" % number).digest() * (number % 5 + 1),
            "txt": f"sample {number} — ünïcode",
            "json": {"number": number, "parts": [number, None, "x"]},
            "npy": np.arange(12, dtype=np.float32).reshape(3, 4) + number,
        }


def pack(out: Path) -> None:
    shardio.pack(samples(), out, shards=3, classes=["a", "b", "c", "d"], jobs=1)


def epoch_digests(arguments: dict[str, Any]) -> list[str]:
    """A digest of each of two epochs: every entry of every batch, in order."""
    dataset = shardio.ShardDataset(PACKED, **arguments)
    return [_digest_of(dataset) for _ in range(2)]


def _digest_of(dataset: shardio.ShardDataset) -> str:
    seen = hashlib.sha256()
    for batch in dataset:
        seen.update(json.dumps([batch["__key__"], batch["txt"], batch["json"]]).encode())
        seen.update(b"".join(batch["bin"]))
        for name in ("label", "npy", "valid"):
            seen.update(batch[name].numpy().tobytes())
    return seen.hexdigest()


def said(command: str) -> Any:
    """What a command prints as JSON, but for where the folder lies and sentences."""
    name, *options = COMMANDS[command]
    done = CliRunner().invoke(commands, [name, "packed", *options])
    assert done.exit_code == 0, done.output
    answer = json.loads(done.stdout)
    answer.pop("warnings", None)  # sentences may change
    return answer


def saved_state() -> dict[str, Any]:
    dataset = shardio.ShardDataset(PACKED, **PLANS["windows"])
    dataset.set_epoch(SAVED_AT["epoch"])
    loop = iter(dataset)
    for _ in range(SAVED_AT["step"]):
        next(loop)
    return dataset.state_dict()


@pytest.fixture(autouse=True)
def in_golden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(GOLDEN)


@pytest.fixture(scope="session")
def expected() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((GOLDEN / "expected.json").read_text())
    return found


def test_the_same_samples_give_the_same_folder(tmp_path: Path) -> None:
    pack(tmp_path / "out")
    assert digests(tmp_path / "out") == digests(PACKED)


@pytest.mark.parametrize("plan", PLANS)
def test_epochs_are_what_they_were(plan: str, expected: dict[str, Any]) -> None:
    assert epoch_digests(PLANS[plan]) == expected["epochs"][plan]


def test_the_state_of_a_loop_is_what_it_was(expected: dict[str, Any]) -> None:
    assert saved_state() == expected["state"]


def test_a_state_saved_before_is_taken_up_where_it_was(expected: dict[str, Any]) -> None:
    dataset = shardio.ShardDataset(PACKED, **PLANS["windows"])
    dataset.load_state_dict(expected["state"])
    loader = DataLoader(dataset, batch_size=None, num_workers=1)
    assert [batch["__key__"] for batch in loader] == expected["keys after the state"]


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_say_what_they_said(command: str, expected: dict[str, Any]) -> None:
    assert said(command) == expected["commands"][command]


def write() -> None:
    os.chdir(GOLDEN)
    shutil.rmtree(PACKED, ignore_errors=True)
    pack(PACKED)
    dataset = shardio.ShardDataset(PACKED, **PLANS["windows"])
    dataset.load_state_dict(state := saved_state())
    document = {
        "epochs": {name: epoch_digests(plan) for name, plan in PLANS.items()},
        "state": state,
        "keys after the state": [batch["__key__"] for batch in dataset],
        "commands": {name: said(name) for name in COMMANDS},
    }
    (GOLDEN / "expected.json").write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    write()
