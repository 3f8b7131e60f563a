"""The options of the commands that plan an epoch as a training loop would."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from functools import wraps
from typing import Any, Literal

import click

from shardio.cli.values import allow_empty_option
from shardio.reading.settings import PlanSettings

_DEFAULTS = PlanSettings(source="", batch_size=1)
_SHUFFLES: dict[str, bool | Literal["full"]] = {"true": True, "full": "full", "false": False}
_AT_LEAST_ONE = click.IntRange(min=1)
_OPTIONS = (
    click.option("--batch-size", type=_AT_LEAST_ONE, help="Samples of one rank."),
    click.option(
        "--global-batch-size", type=_AT_LEAST_ONE, help="Of all ranks, in place of --batch-size."
    ),
    click.option("--ranks", type=_AT_LEAST_ONE, default=1, show_default=True, help="World size."),
    click.option(
        "--shuffle",
        type=click.Choice([*_SHUFFLES]),
        default="false",
        show_default=True,
        help="As ShardDataset takes it.",
    ),
    click.option(
        "--seed",
        type=click.IntRange(0, (1 << 64) - 1),
        default=_DEFAULTS.seed,
        show_default=True,
        help="Its seed.",
    ),
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
    allow_empty_option,
)
_NAMES = {field.name for field in fields(PlanSettings)} - {"source", "batch_size", "shuffle"}


def plan_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command PATH and the options of a plan, as its first argument `settings`."""

    @wraps(command)
    def with_settings(
        path: str,
        shuffle: str,
        batch_size: int | None,
        global_batch_size: int | None,
        **options: Any,
    ) -> Any:
        chosen = {name: options.pop(name) for name in _NAMES}
        share = _share(batch_size, global_batch_size, chosen["ranks"])
        settings = PlanSettings(source=path, shuffle=_SHUFFLES[shuffle], batch_size=share, **chosen)
        return command(settings, **options)

    decorated: Callable[..., Any] = click.argument("path", type=click.Path())(with_settings)
    for option in reversed(_OPTIONS):
        decorated = option(decorated)
    return decorated


def describe(settings: PlanSettings) -> str:
    """The settings as a line to compare with what a run was given."""
    shuffle = "shuffle=full" if settings.shuffle == "full" else f"shuffle={settings.shuffle}"
    return (
        f"{settings.source}: {shuffle}, seed={settings.seed}, epoch={settings.epoch}, "
        f"window={settings.window}, streams={settings.streams}, tail={settings.tail}, "
        f"{settings.ranks} × {settings.batch_size} samples a step"
    )


def _share(batch_size: int | None, global_batch_size: int | None, ranks: int) -> int:
    if (batch_size is None) == (global_batch_size is None):
        raise click.UsageError("give either --batch-size or --global-batch-size")
    if batch_size is not None:
        return batch_size
    share, rest = divmod(global_batch_size or 0, ranks)
    if rest:
        raise click.UsageError(f"{global_batch_size} does not divide among {ranks} ranks")
    return share
