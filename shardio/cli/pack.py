"""shardio pack."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from shardio.cli.output import describe, output_options, passes
from shardio.cli.progress import progress_bar
from shardio.cli.text import say, say_json
from shardio.cli.values import (
    Command,
    ShuffleOption,
    max_pixels_option,
    parse_sides,
    parse_types,
    read_names,
    several,
)
from shardio.packing.pack import pack as pack_source

F = TypeVar("F", bound=Callable[..., object])


def _repeated(name: str, metavar: str, help_: str, **more: Any) -> Callable[[F], F]:
    """Return an option that may be repeated, whose values the plural of its name takes."""
    plural = name.removeprefix("--").replace("-", "_") + "s"
    return click.option(name, plural, metavar=metavar, multiple=True, help=help_, **more)


def _split_names(
    _context: click.Context, _option: click.Parameter, text: str | None
) -> list[str] | None:
    """Split names with commas between them."""
    return None if text is None else [name for name in text.split(",") if name]


_source_options = several(
    click.option(
        "--shuffle",
        cls=ShuffleOption,
        default="true",
        show_default=True,
        help="Random order, or by path.",
    ),
    click.option(
        "--labels/--no-labels",
        default=True,
        help="Subfolders are classes, or a column has labels (default); or no labels are packed.",
    ),
    click.option(
        "--classes",
        type=click.Path(),
        callback=read_names,
        help="File with the names of the classes in the order of their numbers, one a line.",
    ),
    click.option(
        "--fields",
        help="Files of one sample, as 'jpg;png,json,txt?': fields, each with alternatives, and a "
        "question mark where samples may lack it. By default each image is a sample, with the "
        "files whose names begin with its stem and a dot (a.json, a.mask.png of a.jpg) if every "
        "image has such files of the same fields; if only some have, they are refused.",
    ),
    _repeated(
        "--type",
        "FIELD=TYPE",
        "Type of a field, which the manifest records and every command uses: "
        "wav=Audio(rate=16000), depth.png=Depth(scale=1/256), png=Image(bits=8), mask.png=Mask; "
        "repeat it for several fields. Types of your own are for Python.",
        callback=parse_types,
    ),
    click.option(
        "--manifest",
        type=click.Path(),
        help="Table of the samples, .csv, .tsv, .jsonl or .parquet, whose paths start from SRC.",
    ),
    click.option(
        "--coco",
        type=click.Path(),
        help="COCO's annotations of the images in SRC, a JSON file (instances, key points).",
    ),
    click.option(
        "--encoding",
        metavar="NAME",
        help="Encoding of the table's text, as latin-1 or cp1252; by default UTF-8, or UTF-16 if "
        "it starts so.",
    ),
    click.option(
        "--delimiter",
        metavar="CHARACTER",
        help="Character between the cells of CSV and TSV, 'tab' for a tab; by default the comma, "
        "semicolon, tab or pipe that the header has.",
    ),
    click.option(
        "--columns",
        metavar="COLUMN,...",
        callback=_split_names,
        help="Columns that become the field json; by default all that have no other use, and '' "
        "for none.",
    ),
    _repeated(
        "--path-column",
        "[FIELD=]COLUMN",
        "Column of paths in the table; repeat it for several files a sample. FIELD says the type, "
        "as mask.png=mask for masks; without it, the extension of a picture is the field.",
    ),
    click.option("--label-column", metavar="COLUMN", help="Column of labels in the table."),
    click.option("--key-column", metavar="COLUMN", help="Column of keys in the table."),
    click.option(
        "--split-column",
        metavar="COLUMN",
        help="Column in the table that names the split of each sample, in place of --split.",
    ),
    _repeated(
        "--target-column",
        "[FIELD=]COLUMN,...",
        "Column of numbers to predict, which becomes an array; several make a vector.",
    ),
    click.option(
        "--target-dtype",
        type=click.Choice(["float32", "float64"]),
        default="float32",
        show_default=True,
        help="Type of the numbers to predict.",
    ),
    _repeated(
        "--multilabel-column",
        "[FIELD=]COLUMN,...",
        "Columns of 0 and 1, or one that lists classes, which become an array of 0 and 1.",
    ),
    _repeated(
        "--feature",
        "FIELD=NAME",
        "Feature of TFRecord files that becomes a field, as jpg=image/encoded; "
        "__key__=image/filename makes keys of one, =NAME leaves one out.",
    ),
    click.option(
        "--store",
        type=click.Choice(["original", "raw"]),
        default="original",
        show_default=True,
        help="Store image files, or decode them and store their pixels.",
    ),
    click.option(
        "--resize",
        metavar="N|HxW",
        callback=parse_sides,
        help="Shrink the shorter side to N, or cut the largest centred part of the aspect ratio of "
        "HxW out and resize it.",
    ),
    click.option("--max-side", type=click.IntRange(min=1), help="Shrink the longer side to this."),
    click.option(
        "--quality",
        type=click.IntRange(1, 100),
        help="Encode all JPEG and WebP files anew; by default only resized ones are, at 90.",
    ),
    click.option(
        "--dedupe",
        type=click.Choice(["exact", "perceptual"]),
        help="Leave out samples with the same image as one before, or with one that looks alike, "
        "and list them in OUT/duplicates.jsonl.",
    ),
    click.option(
        "--dedupe-distance",
        type=click.IntRange(0, 16),
        help="Bits of 64 in which perceptual hashes of alike images may differ, by default 4.",
    ),
    click.option("--keep-duplicates", is_flag=True, help="Pack them too, alike ones in one split."),
    max_pixels_option,
)


_EXAMPLES = """\b
Example: shardio pack images/ out/ --shards 8
         shardio pack images/ out/ --shards 8 --fields 'jpg;png,mask.png?'
         shardio pack audio/ out/ --shards 8 --type 'wav=Audio(rate=16000)'
         shardio pack train.csv out/ --shards 8
         shardio pack train2017/ out/ --shards 8 --coco instances.json
         shardio pack VOC2012/ImageSets/Main/train.txt out/ --shards 8
         shardio pack yolo/images/train out/ --shards 8
         shardio pack s3://bucket/tars s3://bucket/out --shards 64
"""


@click.command(cls=Command, goes_on=True, epilog=_EXAMPLES)
@click.argument("src", type=click.Path())
@click.argument("out", type=click.Path())
@output_options
@_source_options
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON.")
def pack(src: str, out: str, as_json: bool, **options: Any) -> None:
    """Pack the images of folder SRC into tar shards in folder OUT.

    SRC has one subfolder a class, or is flat for images without labels; or it is a folder of
    tars (also a URL of them), whose members are taken as they are, or of TFRecord files (also one
    or a pattern), or a table (.csv, .tsv, .jsonl or .parquet), whose paths start from its folder.
    Datasets of YOLO (images beside labels), COCO and Pascal VOC are recognised, and the command
    says so. OUT is a folder outside SRC, new or without shards, or the URL of one. A pack
    that was interrupted is finished by the same command again.
    """
    titles = passes("packing", on_error=options["on_error"], dedupe=options["dedupe"])
    with progress_bar(*titles, hidden=as_json) as progress:
        summary = pack_source(src, out, progress=progress, **options)
    if as_json:
        say_json(summary)
    else:
        say(describe(summary, out))
