"""Options of the commands that plan an epoch as a training loop would."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import click

from shardio.buckets import Buckets
from shardio.cli.values import ShuffleOption, allow_empty_option, several, store_options
from shardio.inspection.coverage import OrderOptions, PlanSettings

_DEFAULTS = OrderOptions(batch_size=1)
_AT_LEAST_ONE = click.IntRange(min=1)
_options = several(
    click.argument("path", type=click.Path()),
    click.option("--batch-size", type=_AT_LEAST_ONE, help="Samples of one rank in a step."),
    click.option(
        "--global-batch-size",
        type=_AT_LEAST_ONE,
        help="Samples of all ranks in a step, in place of --batch-size.",
    ),
    click.option(
        "--ranks", type=_AT_LEAST_ONE, default=1, show_default=True, help="Number of ranks."
    ),
    click.option(
        "--shuffle",
        cls=ShuffleOption,
        full=True,
        default="false",
        show_default=True,
        help="Order of the samples, as ShardDataset takes it; alone it means true.",
    ),
    click.option(
        "--seed",
        type=click.IntRange(0, (1 << 64) - 1),
        default=_DEFAULTS.seed,
        show_default=True,
        help="Seed of the shuffle.",
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
        "--epoch-size",
        type=_AT_LEAST_ONE,
        help="Samples in an epoch, if not all: epochs follow one another through whole orders.",
    ),
    click.option(
        "--weights",
        metavar="LABEL=WEIGHT,...",
        help="Draw samples by the weight of their label, a number or name; or 'balanced'.",
    ),
    click.option(
        "--bucket-area",
        type=_AT_LEAST_ONE,
        help="Pixels of the buckets of Buckets(area=...); each step then has one of them.",
    ),
    click.option(
        "--bucket-step",
        type=_AT_LEAST_ONE,
        default=64,
        show_default=True,
        help="Number whose multiples the sides of buckets are.",
    ),
    click.option(
        "--tail",
        type=click.Choice(["pad", "even", "exact", "drop", "short"]),
        default=_DEFAULTS.tail,
        show_default=True,
        help="Last step: pad it with repeats that are not valid, or make it smaller, even on all "
        "ranks or exact without pads; drop it; or short, for one rank.",
    ),
    click.option(
        "--epoch",
        type=click.IntRange(min=0),
        default=_DEFAULTS.epoch,
        show_default=True,
        help="Number of the epoch, from 0.",
    ),
    allow_empty_option,
    store_options,
)


def plan_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command PATH and the options of an order, as keywords for OrderOptions."""

    @wraps(command)
    def with_shuffle(
        weights: str | None,
        bucket_area: int | None,
        bucket_step: int,
        **options: Any,
    ) -> Any:
        return command(
            weights=_parse_weights(weights),
            buckets=None if bucket_area is None else Buckets(bucket_area, step=bucket_step),
            **options,
        )

    decorated: Callable[..., Any] = _options(with_shuffle)
    return decorated


def _parse_weights(text: str | None) -> str | dict[str, float] | None:
    """Read `--weights`: a weight for each label, by number or name."""
    if text is None or text == "balanced":
        return text
    found: dict[str, float] = {}
    for part in text.split(","):
        label, _, weight = part.rpartition("=")
        try:
            found[label] = float(weight)
        except ValueError as error:
            raise click.BadParameter(
                f"{part!r} is not LABEL=WEIGHT, as in cat=2,dog=1", param_hint="--weights"
            ) from error
    return found


def describe(settings: PlanSettings) -> str:
    """Describe a source and its order in a line, to compare with what a run was given."""
    shuffle = "shuffle=full" if settings.shuffle == "full" else f"shuffle={settings.shuffle}"
    size = "" if settings.epoch_size is None else f"epoch_size={settings.epoch_size}, "
    weights = "" if settings.weights is None else f"weights={settings.weights}, "
    buckets = "" if settings.buckets is None else f"transform={settings.buckets}, "
    return (
        f"{settings.source}: {shuffle}, seed={settings.seed}, epoch={settings.epoch}, "
        f"window={settings.window}, streams={settings.streams}, {size}{weights}{buckets}"
        f"tail={settings.tail}, "
        f"{settings.ranks} × {settings.batch_size} samples a step"
    )
