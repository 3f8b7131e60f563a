"""The options of the commands that plan an epoch as a training loop would."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, Literal

import click

from shardio.reading.planning import PlanSettings

_DEFAULTS = PlanSettings(source="", batch_size=1)
_SHUFFLES: dict[str, bool | Literal["full"]] = {"windows": True, "full": "full", "off": False}
_AT_LEAST_ONE = click.IntRange(min=1)
_OPTIONS = (
    click.option("--batch-size", type=_AT_LEAST_ONE, required=True, help="Samples of one rank."),
    click.option("--ranks", type=_AT_LEAST_ONE, default=1, show_default=True, help="World size."),
    click.option(
        "--shuffle",
        type=click.Choice([*_SHUFFLES]),
        default="windows",
        show_default=True,
        help="ShardDataset's shuffle: True, 'full' or False.",
    ),
    click.option("--seed", type=int, default=_DEFAULTS.seed, show_default=True, help="Its seed."),
    click.option(
        "--window",
        type=_AT_LEAST_ONE,
        default=_DEFAULTS.window,
        show_default=True,
        help="Shards in a window.",
    ),
    click.option(
        "--streams",
        type=_AT_LEAST_ONE,
        default=_DEFAULTS.streams,
        show_default=True,
        help="Canonical streams; more than one gives each node a share of the shards.",
    ),
    click.option(
        "--tail",
        type=click.Choice(["pad", "drop", "short"]),
        default=_DEFAULTS.tail,
        show_default=True,
        help="What becomes of the last step.",
    ),
    click.option(
        "--epoch",
        type=click.IntRange(min=0),
        default=_DEFAULTS.epoch,
        show_default=True,
        help="Counted from 0.",
    ),
)
_NAMES = ("batch_size", "ranks", "seed", "window", "streams", "tail", "epoch")


def plan_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command PATH and the options of a plan, as its first argument `settings`."""

    @wraps(command)
    def with_settings(path: str, shuffle: str, **options: Any) -> Any:
        chosen = {name: options.pop(name) for name in _NAMES}
        settings = PlanSettings(source=path, shuffle=_SHUFFLES[shuffle], **chosen)
        return command(settings, **options)

    decorated: Callable[..., Any] = click.argument("path", type=click.Path())(with_settings)
    for option in reversed(_OPTIONS):
        decorated = option(decorated)
    return decorated
