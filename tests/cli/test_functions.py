"""Every command is a function, whose result has what the command prints as JSON."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from dataclasses import FrozenInstanceError, asdict
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

import shardio
from shardio.cli import _COMMANDS, commands
from shardio.testing import make_shard

Call = Callable[[Path, Path], Any]
CALLS: dict[str, tuple[list[str], Call]] = {
    "index": ([], lambda source, _: shardio.index(source)),
    "info": (["--sample", "1"], lambda source, _: shardio.info(source, sample=1)),
    "plan": (
        ["--batch-size", "2", "--ranks", "2", "--workers", "1", "--shuffle", "full"],
        lambda source, _: shardio.plan(source, batch_size=2, ranks=2, workers=1, shuffle="full"),
    ),
    "replay": (
        ["--global-batch-size", "4", "--ranks", "2", "--rank", "1", "--step", "1", "--to"],
        lambda source, out: shardio.replay(
            source, out, global_batch_size=4, ranks=2, rank=1, step=1
        ),
    ),
}


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    samples = {str(number): {"txt": b"%d" % number, "cls": b"1"} for number in range(8)}
    return make_shard(tmp_path / "a.tar", samples)


@pytest.mark.parametrize("name", CALLS)
def test_a_function_returns_what_its_command_prints(
    shards: Path, tmp_path: Path, name: str
) -> None:
    options, call = CALLS[name]
    to = [str(tmp_path / "b")] * (name == "replay")
    done = CliRunner().invoke(commands, [name, str(shards), *options, *to, "--json"])
    assert done.exit_code == 0, done.output
    found = call(shards, tmp_path / "c")
    printed = json.loads(done.stdout)
    assert printed == {
        key: json.loads(json.dumps(getattr(found, key), default=asdict)) for key in printed
    }
    with pytest.raises(FrozenInstanceError):
        setattr(found, next(iter(printed)), None)


FUNCTIONS = {
    **{name: name for name in _COMMANDS if name != "cache"},
    "cache ls": "list_cache",
    "cache prune": "prune_cache",
    "cache clear": "clear_cache",
}


@pytest.mark.parametrize("command", FUNCTIONS)
def test_every_command_is_a_function(command: str) -> None:
    name = FUNCTIONS[command]
    function = getattr(shardio, name)
    assert inspect.isfunction(function)
    assert name in shardio.__all__
    kinds = {parameter.kind for parameter in inspect.signature(function).parameters.values()}
    assert not kinds & {inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL}


def test_every_command_of_a_group_has_its_function() -> None:
    (group,) = (command for command in _COMMANDS if command not in FUNCTIONS)
    with click.Context(commands) as context:
        found = commands.get_command(context, group)
    assert isinstance(found, click.Group)
    assert {f"{group} {name}" for name in found.commands} == {
        command for command in FUNCTIONS if command.startswith(f"{group} ")
    }


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ranks": 0}, "ranks=0: it must be a whole number from 1 to 1048576"),
        ({"shuffle": "half"}, "shuffle='half': it must be True, False or 'full'"),
        ({"tail": "cut"}, "tail='cut': it must be 'pad', 'even', 'exact', 'drop' or 'short'"),
        ({"epoch": -1}, "epoch=-1: it must be a whole number, at least 0"),
        ({"workers": -1}, "workers=-1: it must be a whole number from 0 to 1048576"),
    ],
)
def test_a_plan_refuses_what_is_wrong(shards: Path, options: Any, message: str) -> None:
    with pytest.raises(shardio.UsageError, match=message):
        shardio.plan(shards, **{"batch_size": 2, **options})
    with pytest.raises(TypeError, match="source"):
        shardio.plan()  # type: ignore[call-arg]
