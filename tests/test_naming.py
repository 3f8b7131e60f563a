from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from webdataset.tariterators import base_plus_ext

from shardio.naming import join_member_name, split_member_name

names = st.text(st.sampled_from("ab./_Ü\n\udc80"), max_size=12)


@pytest.mark.parametrize(
    ("name", "key", "field"),
    [
        ("a.jpg", "a", "jpg"),
        ("dir.with.dots/a.seg.PNG", "dir.with.dots/a", "seg.png"),
        ("./a.jpg", "./a", "jpg"),
        ("a.", "a", ""),
    ],
)
def test_the_first_dot_of_the_basename_splits(name: str, key: str, field: str) -> None:
    assert split_member_name(name) == (key, field)


@pytest.mark.parametrize("name", ["README", "dir/README", "._a.jpg", "dir/._a.jpg", "a/", ""])
def test_names_without_a_field_and_dot_files_belong_to_no_sample(name: str) -> None:
    assert split_member_name(name) is None


@pytest.mark.parametrize("name", ["__meta__/a.json", "__x__/b/c.txt", "__info__", "__.__"])
def test_metadata_of_webdataset_belongs_to_no_sample(name: str) -> None:
    assert split_member_name(name) is None


@given(names)
def test_the_rule_is_that_of_webdataset(name: str) -> None:
    split = split_member_name(name)
    key, field = base_plus_ext(name)
    metadata = re.match(r"__[^/]*__($|/)", name)  # the default of tar_file_iterator
    if name.rpartition("/")[2].startswith(".") or metadata:
        assert split is None
    else:
        assert split == (None if key is None else (key, field.lower()))


@given(names)
def test_joining_gives_back_what_was_split(name: str) -> None:
    split = split_member_name(name)
    if split is not None:
        assert split_member_name(join_member_name(*split)) == split
