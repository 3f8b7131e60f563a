"""The command line: each module parses, calls one function and prints."""

from __future__ import annotations

import io
import signal
import sys
from collections.abc import Iterable
from difflib import get_close_matches
from importlib import import_module
from typing import NoReturn

import click

from shardio.cli.text import escape_output, say
from shardio.errors import (
    ShardioError,
    SituationError,
    UsageError,
    as_options,
    escaped,
    without_secrets,
)
from shardio.processes import terminal_width
from shardio.storage.local import is_out_of_files, out_of_files

_COMMANDS = (
    "cache",
    "convert",
    "index",
    "info",
    "pack",
    "plan",
    "profile",
    "replay",
    "reshard",
    "verify",
)


_WIDTH = 78  # columns of help, as click has them
_SHORT = 12  # names of this length leave room beside them


class _Help(click.HelpFormatter):
    """Help in lines that fit the terminal; on a narrow one, each option has lines of its own."""

    def write_dl(
        self, rows: Iterable[tuple[str, str]], col_max: int = 30, col_spacing: int = 2
    ) -> None:
        """Write names and what they mean."""
        found = [*rows]
        beside = self.width >= _WIDTH or max(len(name) for name, _ in found) < _SHORT
        super().write_dl(found, col_max if beside else 2, col_spacing)


class _Context(click.Context):
    formatter_class = _Help


class _Commands(click.Group):
    """Group of commands that are loaded when used, since each needs other libraries."""

    context_class = _Context

    def list_commands(self, ctx: click.Context) -> list[str]:
        del ctx
        return [*_COMMANDS]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        del ctx
        if cmd_name not in _COMMANDS:
            return None
        command: click.Command = getattr(import_module(f"shardio.cli.{cmd_name}"), cmd_name)
        command.context_class = _Context
        return command

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse arguments, of which `help pack` means `pack --help`."""
        return super().parse_args(ctx, [*args[1:], "--help"] if args[:1] == ["help"] else args)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find a command, and have errors name its options until it ends."""
        if not (args[0] in _COMMANDS or args[0].startswith("-") or ctx.resilient_parsing):
            near = get_close_matches(args[0], ["help", *_COMMANDS], n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            ctx.fail(f"No such command {args[0]!r}.{hint}")
        name, command, rest = super().resolve_command(ctx, args)
        options = {
            str(option.name): [
                option.opts[0],
                *(option.secondary_opts or option.opts * option.is_flag),
            ]
            for option in (command.params if command else ())
            if isinstance(option, click.Option)
        }
        ctx.with_resource(as_options(options))
        return name, command, rest


def _show_version(context: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted and not context.resilient_parsing:
        native = import_module("shardio.native").status()
        version = import_module("shardio").__version__
        say(f"shardio, version {version}\nnative core: {native}")
        context.exit()


_USES = """\
Pack images into tar shards:

  shardio pack images/ out/ --shards 8

Read them in training:

  dataset = shardio.ShardDataset("out", shuffle=True, batch_size=64,
                                 transform=shardio.RandomResizedCrop(224))
  for batch in shardio.Loader(dataset):
      batch["image"], batch["label"]

See what limits the loader:

  shardio profile out/

shardio --help lists all commands."""

_COMPLETION = """\b
Completion of commands and options, a line for the start file of your shell:
  bash  eval "$(_SHARDIO_COMPLETE=bash_source shardio)"
  zsh   eval "$(_SHARDIO_COMPLETE=zsh_source shardio)"
  fish  _SHARDIO_COMPLETE=fish_source shardio | source
"""


@click.group(
    cls=_Commands,
    invoke_without_command=True,
    epilog=_COMPLETION,
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_show_version,
    help="Show the version and what the native core is, and exit.",
)
@click.pass_context
def commands(context: click.Context) -> None:
    """Pack images into tar shards, stream them into PyTorch, see what limits the loader."""
    if context.invoked_subcommand is None:
        say(_USES, as_it_is=True)


def main() -> None:
    """Run the command line: exit code 0 for success, 1 for a problem, 2 for wrong usage.

    Usage is wrong if the arguments tell, with the files of names and functions that options load,
    whatever the data are.
    """
    escape_output()
    try:
        commands(standalone_mode=False, terminal_width=min(terminal_width() - 2, _WIDTH))
    except click.ClickException as error:
        written = io.StringIO()
        error.show(file=written)
        say(without_secrets(written.getvalue().rstrip()), error=True)
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt) as interrupt:
        said = interrupt.args if isinstance(interrupt, click.Abort) else ()
        say("; ".join(["shardio: interrupted", *said]), error=True)
        sys.exit(128 + signal.SIGINT)
    except ShardioError as error:
        is_usage = isinstance(error, UsageError) and not isinstance(error, SituationError)
        _fail(str(error), code=2 if is_usage else 1)
    except RecursionError:
        _fail("folders or values are nested too deep; move what lies deepest further up")
    except MemoryError:
        _fail("this machine does not have the memory for it; use fewer jobs, or free some memory")
    except OSError as error:
        if is_out_of_files(error):
            _fail(str(out_of_files(error)))
        where = f"{error.filename}: " if error.filename else ""
        _fail(f"{where}{error.strerror or error}")


def _fail(text: str, *, code: int = 1) -> NoReturn:
    say(f"shardio: {escaped(without_secrets(text))}", error=True)
    sys.exit(code)
