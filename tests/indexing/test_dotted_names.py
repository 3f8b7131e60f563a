"""Names with dots before their extensions: fields of one sample each, which are told."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path

import pytest

import shardio
from shardio.testing import make_shard

MEASURED = """
import resource, sys
import shardio
try:
    shardio.ShardDataset(sys.argv[1])
except shardio.UsageError as error:
    print(error)
print(len(shardio.ShardDataset(sys.argv[1], fields={"a": "00007.json"})))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""


def dotted(folder: Path, samples: int) -> Path:
    return make_shard(
        folder / "a.tar",
        {f"clip{n}": {f"{n:05}.jpg": b"", f"{n:05}.json": b"{}"} for n in range(samples)},
    )


def test_thousands_of_dotted_names_are_read_in_little_memory_if_fields_are_named(
    tmp_path: Path,
) -> None:
    path = dotted(tmp_path, 5000)
    command = [sys.executable, "-c", MEASURED, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    text, samples, memory = done.stdout.splitlines()
    assert "the shards have 10,000 different fields, of which samples have at most 2" in text
    assert text.endswith("name those to read with fields={'image': '00000.jpg', …}")
    assert "5,000 different fields end in '.jp" in done.stderr
    assert "'KEY.00000.jpg' is the field '00000.jpg' of the sample 'KEY'; if" in done.stderr
    assert int(samples) == 5000
    assert int(memory) < 1000  # torch has 300; the table would have 1,600


def test_few_dotted_names_are_read_and_told_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = dotted(tmp_path, 100)
    with caplog.at_level(logging.WARNING, "shardio"):
        assert len(shardio.ShardDataset(path)) == 100
        shardio.ShardDataset(path)
    assert caplog.text.count("100 different fields end in '.jp") == 1
    assert "a field begins at the first dot of a name" in caplog.text


def test_the_pieces_of_one_clip_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pieces = {f"{n:03}s.txt": b"a" for n in range(40)}
    with caplog.at_level(logging.WARNING, "shardio"):
        shardio.index(make_shard(tmp_path / "a.tar", {"clip_1": pieces}))
    assert "40 different fields end in '.txt'" in caplog.text


def test_many_fields_of_few_samples_are_told_though_no_two_end_alike(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    samples = {f"{n}": {"txt": b"a"} for n in range(700)}
    clips = {f"clip{n}": {f"{n:05}": b"a"} for n in range(600)}
    with caplog.at_level(logging.WARNING, "shardio"):
        shardio.index(make_shard(tmp_path / "a.tar", samples | clips))
    assert "few samples have any of 600 different fields; a field begins at the" in caplog.text
    assert "'KEY.00000' is the field '00000' of the sample 'KEY'" in caplog.text


def test_many_fields_that_samples_share_are_no_fault(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fields = {f"f{n}": b"a" for n in range(300)}
    path = make_shard(tmp_path / "a.tar", {f"{n}": dict(fields) for n in range(200)})
    assert len(shardio.ShardDataset(path)) == 200
    assert not caplog.text
