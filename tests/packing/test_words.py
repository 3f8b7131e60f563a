"""What no reader could decode as text, JSON or a class number is refused when it is packed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

import shardio
from shardio.testing import make_shard, read_members

LATIN = "café".encode("latin-1")
BAD = {"txt": LATIN, "caption.txt": LATIN, "json": b'{"a": "' + LATIN + b'"}', "cls": b"1.0"}


class Latin(shardio.FieldType):
    """Text in Latin-1."""

    def decode(self, data: Any) -> str:
        return str(data, "latin-1")


def folder_of(path: Path, samples: Mapping[str, Mapping[str, bytes]]) -> tuple[Path, Any]:
    path.mkdir()
    for key, fields in samples.items():
        for field, data in fields.items():
            (path / f"{key}.{field}").write_bytes(data)
    return path, {"fields": ",".join(sorted({f for s in samples.values() for f in s}))}


def tars_of(path: Path, samples: Mapping[str, Mapping[str, bytes]]) -> tuple[Path, Any]:
    path.mkdir()
    make_shard(path / "a.tar", samples)
    return path, {}


def program_of(_: Path, samples: Mapping[str, Mapping[str, bytes]]) -> tuple[Any, Any]:
    return [{"__key__": key, **fields} for key, fields in samples.items()], {}


@pytest.mark.parametrize("field", BAD)
@pytest.mark.parametrize("made", [folder_of, tars_of, program_of])
def test_words_that_do_not_decode_are_refused(tmp_path: Path, field: str, made: Any) -> None:
    if made is folder_of and field == "cls":
        pytest.skip("folders have their labels by name")
    samples = {"a": {field: b"1", "bin": b"x"}, "b": {field: BAD[field], "bin": b"y"}}
    source, options = made(tmp_path / "in", samples)
    with pytest.raises(shardio.PackError, match=rf"its field '{field}': not .*save text as UTF-8"):
        shardio.pack(source, tmp_path / "out", shards=1, **options)
    shardio.pack(source, tmp_path / "out", shards=1, on_error="skip", **options)
    assert read_members(tmp_path / "out") == {f"a.{field}": b"1", "a.bin": b"x"}


def test_a_type_of_a_user_decides_for_its_field(tmp_path: Path) -> None:
    fields = {"txt": Latin("txt")}
    shardio.pack([{"txt": LATIN}], tmp_path / "out", shards=1, fields=fields)
    (sample,) = shardio.ShardDataset(tmp_path / "out", fields=fields)
    assert sample["txt"] == "café"


def test_resharding_takes_members_as_they_are(tmp_path: Path) -> None:
    make_shard(tmp_path / "a.tar", {"a": {"txt": LATIN}})
    shardio.reshard(tmp_path / "a.tar", tmp_path / "out", shards=1)
    assert read_members(tmp_path / "out") == {"a.txt": LATIN}
