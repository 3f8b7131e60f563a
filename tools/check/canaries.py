"""Can bytes run code or reach files? Hostile shards, tables, manifests and indexes try to.

Beside each input is a folder with a canary: a file that must not change, and the place where a
payload would leave a mark. The inputs refer to it by absolute and relative paths, as members, keys,
fields, shards, links and patterns. They contain pickles, object arrays, expressions, YAML tags and
commands. Every command and the dataset read them, in a child.

Right: the canary's folder is unchanged, whether the input is read or refused. Wrong: any change in
it, or an error that is not shardio's own. The payloads are those of pickle's documentation, of
WebDataset's `pipe:`, of Zip Slip (2018) and of tarfile's CVE-2007-4559.
"""

from __future__ import annotations

import io
import json
import pickle
import tarfile
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import get_args

import numpy as np

import campaign
import children
import shardio
from shardio.conversion.tfrecord import Target
from shardio.testing import make_images, make_shard

CANARY = "canary"


class Payload:
    """Value whose pickle runs a command."""

    def __init__(self, mark: Path) -> None:
        self.command = f"touch {mark}"

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        import os  # noqa: PLC0415

        return os.system, (self.command,)


def payloads(mark: Path) -> dict[str, dict[str, bytes]]:
    """Return fields that would run a command, by kind."""
    evil = pickle.dumps(Payload(mark))
    array = io.BytesIO()
    np.save(array, np.array([Payload(mark)], dtype=object), allow_pickle=True)
    text = f"__import__('os').system('touch {mark}')"
    shape = f"{{'descr': '|u1', 'fortran_order': False, 'shape': ({text},)}}".encode()
    return {
        "pickles": dict.fromkeys(("pkl", "pickle", "pyd", "pth", "pt", "npy", "npz"), evil),
        "object array": {"npy": array.getvalue(), "rgb.npy": array.getvalue()},
        "expressions": {"cls": text.encode(), "json": text.encode(), "txt": text.encode()},
        "npy header": {"npy": b"\x93NUMPY\1\0" + len(shape).to_bytes(2, "little") + shape},
        "yaml": {
            "yaml": f"!!python/object/apply:os.system ['touch {mark}']".encode(),
            "json": json.dumps({"__reduce__": ["os.system", f"touch {mark}"]}).encode(),
        },
    }


def names(canary: Path) -> list[str]:
    """Return names that lead to the canary."""
    file = str(canary / "keep.txt")
    climb = "../" * 12 + file.lstrip("/")
    return [
        file,
        climb,
        f"../{CANARY}/keep.txt",
        f"a/../../{CANARY}/keep.txt",
        f"./..//{CANARY}//keep.txt",
        f"pipe:touch {canary}/ran.txt",
        f"|touch {canary}/ran.txt",
        f"$(touch {canary}/ran).txt",
        f"`touch {canary}/ran`.txt",
        f"file://{file}",
        f"~root{file}",
        f"a\n../{CANARY}/keep.txt",
        f"a.txt/../../{CANARY}/keep",
        "C:\\windows\\a.txt",
        "con.txt",
        "-rf.txt",
        f"a.../../{CANARY}/keep.txt",
    ]


def everything(source: Path | str, out: Path) -> None:
    """Pass a source to everything that reads, writes or deletes; errors are allowed."""
    attempts: list[Callable[[], object]] = [
        lambda: [*shardio.ShardDataset(source)],
        lambda: [*shardio.ShardDataset(source, on_bad_sample="skip", decode=False)],
        lambda: shardio.verify(source, deep=True, jobs=1),
        lambda: shardio.info(source),
        lambda: shardio.repair(source, out / "repaired", jobs=1),
        lambda: shardio.reshard(source, out / "resharded", shards=1, jobs=1),
        lambda: shardio.reshard(
            source, out / "split", shards=1, jobs=1, split={"a": 0.5, "b": 0.5}
        ),
        lambda: shardio.pack(source, out / "packed", shards=1, jobs=1),
        *[
            partial(shardio.convert, source, out / f"as-{to}", to=to, jobs=1)
            for to in get_args(Target)
        ],
        *[
            partial(children.run_command, [*words.split(), str(source)])
            for words in (
                f"replay --global-batch-size 2 --step 0 --to {out}/replayed",
                f"info --preview {out}/sheet.png",
                "index",
            )
        ],
    ]
    for attempt in attempts:
        with suppress(*campaign.REFUSALS):
            attempt()


def judge(trial: campaign.Trial, canary: Path, function: Callable[[], object]) -> None:
    """Run a function in a child and check the canary."""
    before = children.tree(canary)
    ended = children.in_child(lambda: function() and None)
    after = children.tree(canary)
    if after != before:
        changed = sorted(name for name in {*before, *after} if before.get(name) != after.get(name))
        raise campaign.Wrong("the canary changed", changed)
    ended.check()
    if ended.error:
        trial.refused(ended.error)
    else:
        trial.right("the canary is as it was")


def place(trial: campaign.Trial) -> tuple[Path, Path]:
    """Make a folder with a canary, and one for output."""
    canary, out = trial.folder / CANARY, trial.folder / "out"
    canary.mkdir()
    out.mkdir()
    (canary / "keep.txt").write_text("keep", "ascii")
    return canary, out


def fields(kind: str, trial: campaign.Trial) -> None:
    canary, out = place(trial)
    data = payloads(canary / "ran")[kind]
    samples = {f"a{number}": {field: part} for number, (field, part) in enumerate(data.items())}
    shard = make_shard(trial.folder / "a.tar", samples)
    judge(trial, canary, partial(everything, shard, out))


def members(number: int, trial: campaign.Trial) -> None:
    canary, out = place(trial)
    name = names(canary)[number]
    for kind in (tarfile.REGTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE):
        folder = trial.folder / f"in-{kind.decode()}"
        folder.mkdir()
        with tarfile.open(folder / "a.tar", "w") as archive:
            info = tarfile.TarInfo(name if kind == tarfile.REGTYPE else "a.txt")
            info.type, info.linkname = kind, "" if kind == tarfile.REGTYPE else name
            info.size = 4 if kind == tarfile.REGTYPE else 0
            archive.addfile(info, io.BytesIO(b"evil"))
            last = tarfile.TarInfo("b.txt")
            last.size = 1
            archive.addfile(last, io.BytesIO(b"b"))
        (out / folder.name).mkdir()
        judge(trial, canary, partial(everything, folder / "a.tar", out / folder.name))


def sources(number: int, trial: campaign.Trial) -> None:
    canary, out = place(trial)
    name = names(canary)[number]
    judge(trial, canary, partial(everything, name, out))


def packed(trial: campaign.Trial) -> Path:
    folder = trial.folder / "packed"
    shardio.pack(
        make_images(trial.folder / "images", classes=1, per_class=4), folder, shards=1, jobs=1
    )
    return folder


def manifests(number: int, trial: campaign.Trial) -> None:
    canary, out = place(trial)
    folder, name = packed(trial), names(canary)[number]
    path = folder / "shardio.json"
    text = path.read_text("utf-8").replace("shard-000000.tar", json.dumps(name)[1:-1])
    path.write_text(text, "utf-8")
    judge(trial, canary, partial(everything, folder, out))


def indexes(trial: campaign.Trial) -> None:
    canary, out = place(trial)
    folder = packed(trial)
    for path in (folder / "index").iterdir():
        path.write_bytes(pickle.dumps(Payload(canary / "ran")))
    judge(trial, canary, partial(everything, folder, out))


def tables(number: int, trial: campaign.Trial) -> None:
    """Try tables with hostile labels and keys; paths are the user's own and may name any file."""
    canary, out = place(trial)
    name = names(canary)[number].replace("\n", " ")
    image = next(make_images(trial.folder / "images", classes=0, per_class=1).iterdir())
    rows = [
        {"path": image.name, "label": name, "key": name, "extra": f"=cmd|'touch {canary}/ran'!A0"},
        {"path": image.name, "label": f"__import__('os').mkdir('{canary}/ran')", "key": "b"},
    ]
    table = trial.folder / "table.jsonl"
    table.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")

    def pack() -> None:
        target = out / "packed"
        shardio.pack(
            image.parent, target, shards=1, jobs=1, manifest=table, key_column="key", labels=True
        )
        everything(target, out)

    judge(trial, canary, pack)


def cases(_: Path) -> list[campaign.Case]:
    found = [
        campaign.Case(f"fields: {kind}", partial(fields, kind)) for kind in payloads(Path("mark"))
    ]
    for kind in (members, sources, manifests, tables):
        found += [
            campaign.Case(f"{kind.__name__} {number}", partial(kind, number))
            for number in range(len(names(Path("/canary"))))
        ]
    return [*found, campaign.Case("indexes", indexes)]


if __name__ == "__main__":
    campaign.main(__doc__, cases)
