"""The command line: each module parses, calls one function and prints."""

from __future__ import annotations

import signal
import sys

import click

from shardio.cli.convert import convert
from shardio.cli.index import index
from shardio.cli.info import info
from shardio.cli.pack import pack
from shardio.cli.plan import plan
from shardio.cli.profile import profile
from shardio.cli.replay import replay
from shardio.cli.reshard import reshard
from shardio.cli.verify import verify
from shardio.errors import ShardioError


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="shardio")
def commands() -> None:
    """Pack images into tar shards, stream them into PyTorch, see what limits the loader."""


for _command in (convert, index, info, pack, plan, profile, replay, reshard, verify):
    commands.add_command(_command)


def main() -> None:
    """Run the command line: exit code 0 for success, 1 for a problem, 2 for wrong usage."""
    try:
        commands(standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        click.echo("shardio: interrupted", err=True)
        sys.exit(128 + signal.SIGINT)
    except ShardioError as error:
        sys.exit(f"shardio: {printable(str(error))}")
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        sys.exit(f"shardio: {printable(where)}{error.strerror or error}")


def printable(text: str) -> str:
    """Text that any terminal takes: on one line, undecodable bytes of file names escaped."""
    encoding = sys.stderr.encoding or "utf-8"
    escaped = text.replace("\n", "\\n").encode(encoding, "backslashreplace")
    return escaped.decode(encoding)
