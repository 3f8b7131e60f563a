"""What may stand for a dataset, alone and in lists, and what is refused."""

from __future__ import annotations

import gzip
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from braceexpand import braceexpand
from hypothesis import given
from hypothesis import strategies as st

import shardio
from shardio.errors import UsageError
from shardio.indexing import publish
from shardio.indexing.catalog import open_catalog
from shardio.indexing.manifest import Manifest, index_path, read_manifest
from shardio.indexing.parts import ShardPaths, count_names
from shardio.testing import make_images, make_shard


@pytest.fixture
def copy(packed: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(packed, tmp_path / "copy"))


@pytest.fixture(scope="module")
def foreign(packed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A shard that no manifest describes."""
    folder = tmp_path_factory.mktemp("foreign")
    return Path(shutil.copy(packed / "shard-000000.tar", folder / "foreign.tar"))


# Unfinished packs


@pytest.mark.parametrize(
    "pattern", ["", "*.tar", "shard-*", "shard-{000000..000007}.tar", "shard-000003.tar"]
)
@pytest.mark.parametrize("in_list", [False, True])
def test_an_interrupted_pack_is_refused_however_it_is_named(
    copy: Path, foreign: Path, pattern: str, in_list: bool
) -> None:
    named = str(copy / pattern)
    source: ShardPaths = [str(foreign), named] if in_list else named
    open_catalog(source)
    (copy / ".shardio-pack").touch()
    with pytest.raises(shardio.IndexFileError, match="copy: writing into this folder was interr"):
        open_catalog(source)
    with pytest.raises(shardio.IndexFileError, match="copy: writing into this folder was interr"):
        shardio.index(source)


# Lists


def test_a_packed_folder_in_a_list_answers_from_its_manifest(copy: Path, foreign: Path) -> None:
    catalog = open_catalog([foreign, copy])
    assert [shard.samples for shard in catalog.shards] == [75] * 9
    assert [shard.contents for shard in catalog.shards[1:]] == [
        shard.sha256 for shard in read_manifest(copy).shards
    ]
    (copy / "shard-000004.tar").unlink()
    for source in ([foreign, copy], [copy, foreign], (copy, foreign)):
        with pytest.raises(shardio.IndexFileError, match=r"1 of 8 shards are missing, .*000004"):
            open_catalog(source)


def test_sources_are_joined_by_colons_as_webdataset_has_it(copy: Path, foreign: Path) -> None:
    joined = f"{copy}/shard-{{000000..000002}}.tar::{foreign}::{copy}"
    alone = [f"{copy}/shard-{{000000..000002}}.tar", str(foreign), str(copy)]
    for source in (joined, [joined]):
        assert open_catalog(source).digest() == open_catalog(alone).digest()
    whole = Path(shutil.copy(foreign, copy / "a::b.tar"))
    assert len(open_catalog(str(whole)).shards) == 1


def test_classes_of_a_list_are_known_if_those_of_each_element_are(
    packed: Path, copy: Path, foreign: Path
) -> None:
    assert open_catalog([packed, copy]).classes == open_catalog(packed).classes is not None
    assert open_catalog([packed, foreign]).classes is None
    assert open_catalog([foreign, foreign]).classes is None


def test_folders_with_different_classes_do_not_join_whatever_else_is_in_the_list(
    packed: Path, foreign: Path, tmp_path: Path
) -> None:
    shardio.pack(
        make_images(tmp_path / "images", classes=2, per_class=2), tmp_path / "out", shards=1
    )
    with pytest.raises(shardio.UsageError, match="packed with different classes"):
        open_catalog([packed, foreign, tmp_path / "out"])


def test_indexing_a_list_by_force_brings_the_manifest_of_each_folder_up_to_date(
    packed: Path, copy: Path, foreign: Path
) -> None:
    shutil.copy(packed / "shard-000005.tar", copy / "shard-000001.tar")
    (copy / "shard-000007.tar").unlink()
    single = Path(shutil.copy(foreign, copy.parent / "single.tar"))
    with pytest.raises(shardio.IndexFileError, match="1 of 8 shards are missing"):
        shardio.index([single, copy])
    summary = shardio.index([single, copy], force=True)
    assert (summary.shards, summary.samples) == (8, 600)
    assert [len(shard.load_index()) for shard in open_catalog([single, copy]).shards] == [75] * 8
    assert index_path(single).exists()


def test_indexing_reads_the_manifest_of_a_folder_once(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = []

    def noted(folder: Path) -> Manifest:
        read.append(folder)
        return read_manifest(folder)

    monkeypatch.setattr(publish, "read_manifest", noted)
    shardio.index(copy)
    assert read == [copy]
    shardio.index(copy / "*.tar")
    assert read == [copy, copy]


# Names


def test_a_manifest_stands_for_its_folder(packed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert open_catalog(packed / "shardio.json") == open_catalog(packed)
    assert open_catalog([packed / "shardio.json"]) == open_catalog(packed)
    monkeypatch.chdir(packed)
    assert len(open_catalog("shardio.json").shards) == 8


def test_a_manifest_that_is_named_is_brought_up_to_date_by_force(copy: Path) -> None:
    (copy / "shard-000007.tar").unlink()
    shardio.index(copy / "shardio.json", force=True)
    assert len(open_catalog(copy).shards) == 7


def test_a_tilde_is_the_home_folder(packed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(packed.parent))
    for source in (
        "~/out",
        Path("~/out"),
        "~/out/*.tar",
        "~/out/shard-{000000..000007}.tar",
        ["~/out/shardio.json"],
    ):
        shards = open_catalog(source).shards
        assert [shard.name for shard in shards] == [
            str(packed / f"shard-{number:06d}.tar") for number in range(8)
        ]


@pytest.mark.parametrize(
    "source", [7, None, b"out", bytearray(b"out"), {"out"}, [b"out"], [["a"], 7]]
)
def test_what_is_no_path_and_no_list_of_paths_is_refused(source: Any, tmp_path: Path) -> None:
    with pytest.raises(shardio.UsageError, match="is not a source of shards; give a path"):
        shardio.ShardDataset(source)
    with os.scandir(os.fsencode(tmp_path.parent)) as found:
        entry: Any = next(found)
    with pytest.raises(shardio.UsageError, match="is not a source of shards; give a path"):
        open_catalog(entry)


def test_an_empty_list_is_refused() -> None:
    with pytest.raises(shardio.UsageError, match="the list of shards is empty; name"):
        open_catalog([])


@pytest.mark.parametrize("pattern", ["{000..tar", "{1..2}{.tar"])
def test_braces_that_are_not_balanced_are_refused(
    pattern: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(shardio.UsageError, match="braces are not a pattern"):
        open_catalog(pattern)
    shutil.copy(Path(__file__), pattern)
    with pytest.raises(shardio.TarError, match="neither a header nor the end of the archive"):
        open_catalog(pattern)


@pytest.mark.parametrize(
    "pattern",
    [
        "{1..999999999}.tar",
        "{000..999}{000..999}{a..b}.tar",
        "{a,{1..2000000}}.tar",
        "}{{1..999999999}.tar",
        "{1..9}" * 40,
    ],
)
def test_braces_that_stand_for_too_many_files_are_refused_before_they_are_expanded(
    pattern: str,
) -> None:
    with pytest.raises(shardio.UsageError, match="more than 1,000,000 files; name their folder"):
        open_catalog(pattern)


def test_braces_that_are_too_deep_are_refused() -> None:
    pattern = "/".join(["{" * 200] * 9 + ["}" * 200] * 9)
    with pytest.raises(shardio.UsageError, match="its braces are not a pattern"):
        open_catalog(pattern)


@given(st.lists(st.sampled_from(["{", "}", ",", "1..4", "08..011..2", "c..a", "\\", "x", "{1,"])))
def test_names_are_counted_as_braces_expand(parts: list[str]) -> None:
    pattern = "".join(parts)
    try:
        expanded = [*braceexpand(pattern)]
    except ValueError:  # unbalanced
        count_names(pattern)
    else:
        assert count_names(pattern) == len(expanded)


def test_a_folder_in_place_of_a_shard_is_refused(copy: Path) -> None:
    for pattern in ("*", "{index,shard-000000.tar}"):
        with pytest.raises(
            shardio.UsageError, match=r"copy/index: .* names it as a shard, and it is not a file"
        ):
            open_catalog(str(copy / pattern))
    (copy / "x.tar").mkdir()
    (copy / "shardio.json").unlink()
    with pytest.raises(shardio.UsageError, match=r"x\.tar: .* it is not a file"):
        open_catalog(copy)
    with pytest.raises(shardio.UsageError, match=r"x\.tar: no shards .* in this folder"):
        open_catalog(copy / "x.tar")


# The cache


@pytest.mark.parametrize("damage", [b"", b"damaged", b"\x08" + bytes(7) + b"{}      "])
def test_an_index_in_the_cache_that_does_not_read_is_built_again(
    foreign: Path, damage: bytes
) -> None:
    expected = open_catalog(foreign)
    cached = Path(expected.shards[0].index)
    whole = cached.read_bytes()
    cached.write_bytes(damage)
    assert open_catalog(foreign) == expected
    assert cached.read_bytes() == whole


def test_an_index_beside_its_shard_that_does_not_read_is_an_error(copy: Path) -> None:
    shard = copy / "shard-000000.tar"
    index_path(shard).write_bytes(b"damaged")
    with pytest.raises(shardio.IndexFileError, match=r"the index is damaged .* delete it"):
        open_catalog(shard)
    index_path(shard).unlink()
    index_path(shard).mkdir()
    with pytest.raises(shardio.IndexFileError, match=r"the index is damaged .* delete it"):
        open_catalog(shard)


def test_a_shard_and_its_compressed_copy_are_not_read_twice(tmp_path: Path) -> None:
    shard = make_shard(tmp_path / "a.tar", {"0": {"txt": b"a"}})
    (tmp_path / "a.tar.gz").write_bytes(gzip.compress(shard.read_bytes()))
    with pytest.raises(UsageError, match=r"a\.tar and a\.tar\.gz look like one shard twice"):
        open_catalog(tmp_path)
    assert len(open_catalog([shard, tmp_path / "a.tar.gz"]).shards) == 2
