"""Options that several commands have, and values that are more than a number or a word."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial, wraps
from pathlib import Path
from typing import Any, TypeVar

import click

from shardio.errors import UsageError, argument, quoted, shown
from shardio.fields.base import FieldType
from shardio.fields.limits import MAX_PIXELS
from shardio.fields.recorded import parse_type
from shardio.storage.base import size_in_bytes
from shardio.storage.local import refuse_url
from shardio.storage.location import refuse_both

_FLAGS = {"true": True, "false": False}
_SHUFFLES = {"true": True, "full": "full", "false": False}
_VALUES: dict[str, tuple[Callable[[str], object], str]] = {
    "retries": (int, "a number, as retries=3"),
    "connections": (int, "a number, as connections=3"),
    "timeout": (float, "a number, as timeout=3"),
    "cache_limit": (partial(size_in_bytes, "cache_limit"), "a size, as cache_limit=100GB"),
}
"""What makes the value of a storage option of its text, and what that must be."""
_SIDES = re.compile("([0-9]{1,9})(?:x([0-9]{1,9}))?")

F = TypeVar("F", bound=Callable[..., object])


def several(*options: Callable[[F], F]) -> Callable[[F], F]:
    """Join decorators that give a command options, in the order of its help."""

    def decorate(command: F) -> F:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


_NO_LIMIT = 1000  # characters


class OnceCommand(click.Command):
    """Command that refuses an option that has one value and is given twice; flags are none."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse arguments, and refuse repeated options."""
        given = [] if ctx.resilient_parsing else self.make_parser(ctx).parse_args([*args])[2]
        for option, times in Counter(given).items():
            is_value = isinstance(option, click.Option) and not (
                option.multiple or option.is_flag or option.secondary_opts
            )
            if is_value and times > 1:
                raise click.UsageError(
                    f"{option.opts[0]} is given {times} times; give it once", ctx
                )
        return super().parse_args(ctx, args)

    def get_short_help_str(self, limit: int = _NO_LIMIT) -> str:
        """Return the first sentence of the help, whole; lists of commands divide it into lines."""
        return super().get_short_help_str(max(limit, _NO_LIMIT))


class Command(OnceCommand):
    """Command that says what to do if a shell expanded a pattern, or if it is interrupted.

    Args:
        goes_on: whether the same command goes on where it was interrupted.
        **options: see click.Command.
    """

    allow_extra_args = True

    def __init__(self, *, goes_on: bool = False, **options: Any) -> None:
        super().__init__(**options)
        self._goes_on = goes_on

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse arguments, and refuse superfluous ones."""
        for option in self.params:
            if isinstance(option, ShuffleOption) and not ctx.resilient_parsing:
                args = option.completed(args)
        superfluous = super().parse_args(ctx, args)
        if superfluous and not ctx.resilient_parsing:
            arguments = [each for each in self.params if isinstance(each, click.Argument)]
            taken = [str(ctx.params[str(each.name)]) for each in arguments]
            wanted = " and ".join(each.human_readable_name for each in arguments)
            raise click.UsageError(_superfluous(wanted, taken, superfluous), ctx)
        return superfluous

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as error:
            said = ["the same command goes on where it stopped"] if self._goes_on else []
            raise click.Abort(*said) from error


def _superfluous(wanted: str, taken: Sequence[str], others: Sequence[str]) -> str:
    """Describe arguments that a command does not take, which a shell may have made of a pattern."""
    where = Counter(
        (slash.join([folder, ""]), Path(name).suffix)
        for folder, slash, name in (path.rpartition("/") for path in [*taken, *others])
    )
    (folder, suffix), count = where.most_common(1)[0]
    said = f"{len(taken) + len(others)} arguments in place of {wanted}"
    if count < 2 or not suffix:
        return f"{said}; leave out {shown(' '.join(others))}"
    pattern = f"{folder}*{suffix}"
    return f"{said}; if the shell made them of a pattern, quote it, as {quoted(pattern)}"


class ShuffleOption(click.Option):
    """Option `--shuffle`, with a value or without one, and `--no-shuffle`.

    Args:
        *arguments: see click.Option.
        full: whether its value may be "full".
        **options: see click.Option.
    """

    def __init__(self, *arguments: Any, full: bool = False, **options: Any) -> None:
        self._values = [value for value in _SHUFFLES if full or value != "full"]
        options["type"] = click.Choice(self._values)
        options["callback"] = lambda _context, _option, value: _SHUFFLES[value]
        super().__init__(*arguments, **options)
        self.secondary_opts = ["--no-shuffle"]

    def completed(self, args: Sequence[str]) -> list[str]:
        """Return the arguments of a command with the value that each --shuffle alone means."""
        done = list[str]()
        for at, word in enumerate(args):
            if word == "--":
                return [*done, *args[at:]]
            is_alone = word == "--shuffle" and not {*args[at + 1 : at + 2]} & {*self._values}
            done.append("--shuffle=false" if word == "--no-shuffle" else word + "=true" * is_alone)
        return done

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        """Write --no-shuffle without a value."""
        record = super().get_help_record(ctx)
        spelled = f"--shuffle [{'|'.join(self._values)}], --no-shuffle"
        return None if record is None else (spelled, record[1])


allow_empty_option = click.option(
    "--allow-empty",
    is_flag=True,
    help="Take tars that have members, none of which is a field of a sample.",
)

max_pixels_option = click.option(
    "--max-pixels",
    type=click.IntRange(min=1),
    default=MAX_PIXELS,
    show_default=True,
    help="Greatest number of pixels of an image; a greater one also lets files through that ask "
    "for more memory and work than real images of their size.",
)


def parse_sides(
    _context: click.Context, _option: click.Parameter, text: str | None
) -> int | tuple[int, int] | None:
    """Parse a side, as 256, or height and width, as 224x224."""
    if text is None:
        return None
    found = _SIDES.fullmatch(text)
    if found is None:
        raise click.BadParameter(f"{quoted(text)} is neither a number, as 256, nor HxW, as 224x224")
    return (int(found[1]), int(found[2])) if found[2] else int(found[1])


def parse_size(_context: click.Context, _option: click.Parameter, text: str | None) -> int | None:
    """Parse bytes, as 512MB or 1.5GiB."""
    try:
        return None if text is None else size_in_bytes("", text)
    except UsageError:
        raise click.BadParameter(f"{quoted(text)} is not a size, as 512MB or 1GiB") from None


def parse_split(
    _context: click.Context, _option: click.Parameter, text: str | None
) -> dict[str, float] | None:
    """Parse fractions by name, as train=0.9,val=0.1."""
    if text is None:
        return None
    pairs = [part.partition("=")[::2] for part in text.split(",")]
    names = [name for name, _ in pairs]
    if again := next((name for name in names if names.count(name) > 1), None):
        raise click.BadParameter(f"it names {quoted(again)} twice")
    try:
        return {name: float(fraction) for name, fraction in pairs}
    except ValueError:
        raise click.BadParameter(
            f"{quoted(text)} is not a list of fractions by name, as train=0.9,val=0.1; "
            "shardio pack --split-column takes the column of a table that names splits"
        ) from None


def parse_types(
    _context: click.Context, _option: click.Parameter, texts: tuple[str, ...]
) -> dict[str, FieldType] | None:
    """Parse types by field name, as wav=Audio(rate=16000)."""
    types: dict[str, FieldType] = {}
    for text in texts:
        field, equals, spelled = text.partition("=")
        if not (field and equals):
            raise click.BadParameter(f"{quoted(text)} is not FIELD=TYPE, as mask.png=Mask")
        if types.setdefault(field.lower(), made := parse_type(spelled)) != made:
            raise click.BadParameter(f"it gives the field {quoted(field)} two types")
    return types or None


def read_names(
    _context: click.Context, _option: click.Parameter, path: str | None
) -> list[str] | None:
    """Read the lines of a file."""
    if path is None:
        return None
    refuse_url(path)
    if Path(path).exists() and not Path(path).is_file():
        raise UsageError("it is not a file", where=path)
    try:
        text = Path(path).read_text("utf-8")
    except (OSError, UnicodeError) as error:
        raise UsageError(f"it cannot be read as text ({error})", where=path) from error
    return [line for line in text.splitlines() if line]


def _parse_storage(
    _context: click.Context, _option: click.Parameter, pairs: tuple[str, ...]
) -> dict[str, Any]:
    """Parse options of a store, as anon=true; what is wrong is not shown, for it may be secret."""
    found: dict[str, Any] = {}
    for pair in pairs:
        name, mark, value = pair.partition("=")
        if not (name and mark):
            raise click.BadParameter("it is not KEY=VALUE, as anon=true")
        try:
            make = _VALUES[name][0] if name in _VALUES else lambda text: _FLAGS.get(text, text)
            found[name] = make(value)
        except (ValueError, UsageError):
            raise click.BadParameter(f"{name} is {_VALUES[name][1]}") from None
    return found


_store_options = several(
    click.option(
        "--storage-option",
        "storage_options",
        metavar="KEY=VALUE",
        multiple=True,
        callback=_parse_storage,
        help="Setting of the store of a URL, as anon=true or endpoint_url=https://...; repeat it "
        "for several. Others see what a command is given: leave secrets to environment "
        "variables, as AWS_PROFILE or HF_TOKEN.",
    ),
    click.option(
        "--cache-dir",
        type=click.Path(file_okay=False),
        help="Folder for whole shards of stores.  [default: $SHARDIO_CACHE or ~/.cache/shardio]",
    ),
    click.option(
        "--cache-limit",
        metavar="SIZE",
        callback=parse_size,
        help="What they may take there, as 500GB.  [default: three quarters of the free space]",
    ),
)


def store_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the options of a store, as the one keyword storage_options."""

    @wraps(command)
    def with_store(
        storage_options: dict[str, Any],
        cache_dir: str | None,
        cache_limit: int | None,
        **options: Any,
    ) -> Any:
        named = [each if isinstance(each, tuple) else (each,) for each in options.values()]
        if storage_options and not any("://" in str(each) for some in named for each in some):
            raise UsageError(
                "it is for the store of a URL, and no URL is named",
                where=argument("storage_options"),
                remedy="leave it out",
            )
        given = {"cache_dir": cache_dir, "cache_limit": cache_limit}
        cache = {name: value for name, value in given.items() if value is not None}
        refuse_both(storage_options, {name: name for name in cache})
        storage_options |= cache
        return command(storage_options=storage_options or None, **options)

    decorated: Callable[..., Any] = _store_options(with_store)
    return decorated
