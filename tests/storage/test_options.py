"""Options that all stores have are checked when a storage is made, whatever its kind."""

from __future__ import annotations

from typing import Any

import pytest

import shardio
from shardio.storage.location import locate


@pytest.mark.parametrize("url", ["https://h/out", "s3://bucket/out", "gs://bucket/out"])
@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"retries": -1}, "retries=-1: it must be a whole number, at least 0"),
        ({"timeout": 0}, "timeout=0: it must be a number above 0"),
        ({"cache_limit": "5XB"}, "cache_limit='5XB': it must be bytes, at least 0, or a size"),
        ({"cache_limt": 5}, "there is no option 'cache_limt'; the options here are .*cache_limit"),
    ],
)
def test_a_wrong_option_is_refused(url: str, options: dict[str, Any], told: str) -> None:
    if url.startswith("s3"):
        pytest.importorskip("boto3")
    if url.startswith("gs"):
        pytest.importorskip("gcsfs")
    with pytest.raises(shardio.UsageError, match=told):
        locate(url, options=options)
