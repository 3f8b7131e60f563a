"""Fill in the pages of the site that are written elsewhere: mkdocs calls these functions.

README.md, CONTRIBUTING.md and CHANGELOG.md are pages too, with their links turned to the site's.
The reference of the command line is made from the commands themselves. A table after the comment
`chart` is drawn as bars too: its second column, or those that the comment names, "chart of A, B".
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import click
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from shardio.cli import commands
from shardio.profiling.report import Bar, bar_chart

_OURS = ("shardio", "`shuffle")
ROOT = Path(__file__).parents[1]
PAGES = {
    "index.md": "README.md",
    "contributing.md": "CONTRIBUTING.md",
    "changelog.md": "CHANGELOG.md",
}
_COMMENT = re.compile(r"^ *<!--.*?-->\n", re.DOTALL | re.MULTILINE)
_CHART = re.compile(r"^<!-- chart(?: of (.+))? -->\n((?:\|.*\n)+)", re.MULTILINE)
_COMMANDS = "@@commands@@"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are files of the repository."""
    for page, name in PAGES.items():
        text = (ROOT / name).read_text("utf-8")
        files.append(File.generated(config, page, content=of_the_site(text)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Put the commands where they belong, and leave out what is said to the tests alone."""
    del page, config, files
    markdown = _COMMENT.sub("", _CHART.sub(with_charts, markdown))
    if _COMMANDS in markdown:
        markdown = markdown.replace(_COMMANDS, "\n".join(describe(commands, "shardio")))
    return markdown


def of_the_site(text: str) -> str:
    """Turn links between files of the repository into links between pages."""
    text = text.replace("](docs/pages/", "](")
    for page, name in PAGES.items():
        text = text.replace(f"]({name})", f"]({page})")
    return text


def with_charts(found: re.Match[str]) -> str:
    """Put a chart of each named column before a table; the longest bar is the first."""
    head, _, *rows = (
        [cell.strip() for cell in line.strip("|").split("|")] for line in found[2].splitlines()
    )
    parts = []
    for name in (found[1] or head[1]).split(", "):
        column = head.index(name)
        cells = [(row[0], row[column].split()[0]) for row in rows if row[column]]
        bars = [
            Bar(
                label=label.replace("`", ""),
                value=float(text.replace(",", "")),
                text=text,
                style="one" if label.startswith(_OURS) else "rest",
            )
            for label, text in cells
        ]
        bars.sort(key=lambda bar: -bar.value)
        parts.append(f'<div class="chart"><p>{name}</p>{bar_chart(name, bars, width=500)}</div>')
    return "\n".join(parts) + f"\n\n{found[2]}"


def describe(command: click.Command, name: str) -> Iterator[str]:
    """Yield the lines of Markdown about a command and its subcommands."""
    context = click.Context(command, info_name=name)
    if isinstance(command, click.Group):
        for each in command.list_commands(context):
            inner = command.get_command(context, each)
            if inner is not None:
                yield from describe(inner, f"{name} {each}")
        return
    yield f"## {name}\n"
    yield "```text\n" + " ".join([name, *command.collect_usage_pieces(context)]) + "\n```\n"
    for part in (command.help or "").split("\n\n"):
        if part.startswith("\b"):
            yield f"```text\n{part.removeprefix(chr(8)).strip(chr(10))}\n```\n"
        else:
            yield _plain(part) + "\n"
    rows = [record for one in command.params if (record := one.get_help_record(context))]
    yield "| option | |\n|---|---|"
    for option, text in rows:
        yield f"| `{_plain(option).replace('|', chr(92) + '|')}` | {_plain(text)} |"
    yield ""
    examples = (command.epilog or "").replace("\b", "").strip().removeprefix("Example: ")
    if examples:
        yield "Example:\n\n```sh\n" + "\n".join(map(str.strip, examples.splitlines())) + "\n```\n"


def _plain(text: str) -> str:
    return " ".join(text.split())
