"""Recipes train to what they promise, count samples exactly, and go on where they were stopped.

`make test-trainers` has what they need; elsewhere, those whose library is missing are skipped.
"""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
TRAIN, HELD_OUT = 1438, 359  # of the 1,797 digits
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node")
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def needs(package: str, name: str) -> None:
    if not importlib.util.find_spec(package):
        pytest.skip(f"{name} is not installed; `make test-trainers` has it")


def example(name: str) -> str:
    return str(ROOT / "examples" / f"{name}.py")


def run(*words: object) -> str:
    command = [sys.executable, *map(str, words)]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="session")
def packed_digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Makes what the docstrings of the recipes say."""
    pytest.importorskip("sklearn", reason="scikit-learn, which has the digits, is not installed")
    folder = tmp_path_factory.mktemp("digits")
    run(ROOT / "tools" / "make_digits.py", folder / "images")
    options = ("--shards", "4", "--split", "train=0.8,val=0.2")
    run("-m", "shardio", "pack", folder / "images", folder, *options)
    return folder


@pytest.fixture
def digits(packed_digits: Path, tmp_path: Path) -> Path:
    """The packed digits in a folder of its own, where checkpoints go."""
    for part in ("train", "val"):
        (tmp_path / part).symlink_to(packed_digits / part)
    return tmp_path


def test_captions_are_found_for_pictures() -> None:
    needs("open_clip", "open_clip_torch")
    found = re.findall(r"own caption of 32 ([\d.]+)%", run("-W", "error", example("captions")))
    assert len(found) == 5
    assert float(found[-1]) > 50  # and 3 % by chance


def test_a_classification_that_was_killed_ends_as_one_that_was_not(
    packed_digits: Path, digits: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    whole = tmp_path_factory.mktemp("whole")
    for part in ("train", "val"):
        (whole / part).symlink_to(packed_digits / part)
    command = [*TORCHRUN, "1", example("classification")]
    checkpoint = digits / "checkpoint.pt"
    started = subprocess.Popen([sys.executable, *command, str(digits), "2"], env=ENVIRONMENT)
    while not checkpoint.exists():
        assert started.poll() is None
        time.sleep(0.005)
    started.terminate()
    started.wait()
    assert torch.load(checkpoint, weights_only=True)[-1]["step"] > 0, "it was not in mid-epoch"
    lines = [run(*command, folder, 2).splitlines()[-1] for folder in (whole, digits)]
    assert lines[0].startswith("epoch 1: last loss")
    assert lines[0] == lines[1]


def test_classification_is_measured_exactly_on_two_ranks(digits: Path) -> None:
    said = run(*TORCHRUN, "2", example("classification"), digits, 3)
    found = re.findall(r"held-out accuracy ([\d.]+)% of (\d+) samples", said)
    assert [int(count) for _, count in found] == [HELD_OUT] * 3
    assert float(found[-1][0]) > 60  # and 10 % by chance


COUNTED = re.compile(
    r"epoch (\d+): (\d+) samples, (\d+) different; held-out accuracy ([\d.]+)% of (\d+)"
)


def counted(said: str) -> dict[int, int]:
    """Return the number of samples of each epoch, each sample once."""
    found = [list(map(float, line)) for line in COUNTED.findall(said)]
    assert all(samples == different for _, samples, different, _, _ in found), said
    assert all(count == HELD_OUT for *_, count in found), said
    assert found[-1][3] > 80, said
    return {int(epoch): int(samples) for epoch, samples, *_ in found}


def test_accelerate_gets_each_sample_once_and_resumes_on_two_ranks(digits: Path) -> None:
    needs("accelerate", "accelerate")
    launch = ("-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2")
    command = (*launch, example("with_accelerate"), digits)
    assert counted(run(*command, 1)) == {0: TRAIN}
    assert counted(run(*command, 3)) == {1: TRAIN, 2: TRAIN}


@pytest.mark.parametrize("ranks", [1, 2])
def test_lightning_gets_each_sample_once_and_resumes(digits: Path, ranks: int) -> None:
    needs("lightning", "lightning")
    command = example("with_lightning"), digits
    assert counted(run(*command, 1, ranks)) == {0: TRAIN}
    rest = TRAIN - 40 * 32  # its checkpoint is from step 40
    assert counted(run(*command, 3, ranks)) == {0: rest, 1: TRAIN, 2: TRAIN}
