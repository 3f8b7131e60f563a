"""Recipes train to what they promise, count samples exactly, and go on where they were stopped.

`make test-trainers` has what they need; elsewhere, those whose library is missing are skipped.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

import shardio
from tests import programs

ROOT = Path(__file__).parents[2]
TRAIN, HELD_OUT = 1438, 359  # of the 1,797 digits
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node")
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


RECIPES = sorted((ROOT / "examples").glob("*.py"))
WITH_FOLDER = [path for path in RECIPES if "Path(sys.argv[1])" in path.read_text("utf-8")]


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
    return linked(packed_digits, tmp_path / "digits")


@pytest.fixture
def other_digits(packed_digits: Path, tmp_path: Path) -> Path:
    """The same in another one."""
    return linked(packed_digits, tmp_path / "other")


def linked(packed: Path, place: Path) -> Path:
    place.mkdir()
    for part in ("train", "val"):
        (place / part).symlink_to(packed / part)
    return place


def kill_after_saving(checkpoint: Path, *words: object) -> Any:
    """Start a recipe, kill it when it has saved its first checkpoint, and return that."""
    started = subprocess.Popen([sys.executable, *map(str, words)], env=ENVIRONMENT)
    while not checkpoint.exists():
        assert started.poll() is None
        time.sleep(0.005)
    started.terminate()  # torchrun then ends its processes
    started.wait()
    return torch.load(checkpoint, weights_only=True)


@pytest.mark.parametrize(
    "words",
    [(), ("nowhere",), ("other",), ("packed", "out", "many"), ("packed", "out", "-1")],
    ids=str,
)
@pytest.mark.parametrize("recipe", WITH_FOLDER, ids=lambda path: path.name)
def test_without_its_folder_a_recipe_says_in_a_sentence_what_to_give(
    recipe: Path, words: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "other/train").mkdir(parents=True)
    shardio.pack([{"__key__": "a", "cls": b"0"}], tmp_path / "packed/val", shards=1)
    monkeypatch.chdir(tmp_path)
    done = programs.run(recipe, *words)
    assert done.returncode == 1
    assert re.fullmatch(r"(give|this example needs) [^\n]+\n", done.stderr), done.stderr


def test_captions_are_found_for_pictures() -> None:
    needs("open_clip", "open_clip_torch")
    found = re.findall(r"own caption of 32 ([\d.]+)%", run("-W", "error", example("captions")))
    assert len(found) == 5
    assert float(found[-1]) > 50  # and 3 % by chance


def test_a_classification_that_was_killed_ends_as_one_that_was_not(
    digits: Path, other_digits: Path
) -> None:
    command = *TORCHRUN, "1", example("classification")
    saved = kill_after_saving(digits / "checkpoint.pt", *command, digits, 2)
    assert saved[-1]["step"] > 0, "it was not in mid-epoch"
    lines = [run(*command, folder, 2).splitlines()[-1] for folder in (other_digits, digits)]
    assert lines[0].startswith("epoch 1: last loss")
    assert lines[0] == lines[1]


def test_classification_is_measured_exactly_on_two_ranks(digits: Path) -> None:
    said = run(*TORCHRUN, "2", example("classification"), digits, 3)
    found = re.findall(r"held-out accuracy ([\d.]+)% of (\d+) samples", said)
    assert [int(count) for _, count in found] == [HELD_OUT] * 3
    assert float(found[-1][0]) > 60  # and 10 % by chance


def test_intersection_over_union_is_that_of_all_ranks(tmp_path: Path) -> None:
    """Each rank trains alone, on its own share, and counts its own held-out samples."""
    script = tmp_path / "ranks.py"
    script.write_text(
        "import runpy, torch\n"
        "torch.distributed.init_process_group('gloo')\n"
        f"runpy.run_path({example('segmentation')!r})['train'](1)\n"
        "torch.distributed.destroy_process_group()\n"
    )
    one, other = re.findall(r"epoch 0: .*? dark [\d.]+%", run(*TORCHRUN, "2", script))
    assert one == other


def test_a_folder_of_images_becomes_a_network_and_a_killed_run_goes_on(
    packed_digits: Path, tmp_path: Path
) -> None:
    command = example("imagenet"), packed_digits / "images"
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    saved = kill_after_saving(killed / "checkpoint.pt", *command, killed, 3, 16)
    assert saved[0]["step"] > 0, "it was not in mid-epoch"
    said = [run(*command, folder, 3, 16).splitlines() for folder in (whole, killed)]
    assert said[1][0] == "resuming at epoch {epoch}, step {step}".format(**saved[0])
    assert said[0][-2] == said[1][-2]
    accuracy, held_out = found_on_held_out(said[0][-2])
    assert held_out == 179  # a tenth of each class
    assert accuracy > 85
    again = run(*command, killed, 3, 16).splitlines()
    assert again == ["resuming at epoch 3, step 0", said[1][-1]]
    assert said[1][-1] == f"trained for 3 epochs, see {killed / 'checkpoint.pt'}"


def test_ctrl_c_ends_a_run_in_a_line_and_loses_no_step(packed_digits: Path, tmp_path: Path) -> None:
    """Ten steps are between saves; beside the classes lies a file that is no image."""
    images, data = tmp_path / "images", tmp_path / "data"
    images.mkdir()
    for folder in (packed_digits / "images").iterdir():
        (images / folder.name).symlink_to(folder)
    (images / "notes.txt").write_text("not an image")
    command = sys.executable, example("imagenet"), str(images), str(data)
    started = subprocess.Popen(
        [*command, "9", "96"],
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    while not (data / "checkpoint.pt").exists():
        assert started.poll() is None
        time.sleep(0.005)
    started.send_signal(signal.SIGINT)
    said, errors = started.communicate()
    assert said == "packed 1797 images; left out 1, see skipped.jsonl\n"
    assert errors == "stopped; the same command goes on from here\n"
    place = torch.load(data / "checkpoint.pt", weights_only=True)[0]
    assert 10 < place["step"] < 20
    more = run(*command[1:], 1, 16)
    assert more.startswith(f"resuming at epoch 0, step {place['step']}\nepoch 0: last loss")
    assert run(*command[1:], 2, 16).startswith("resuming at epoch 1, step 0\nepoch 1: last loss")


def found_on_held_out(line: str) -> tuple[float, int]:
    found = re.fullmatch(r"epoch 2: last loss [\d.]+, ([\d.]+)% of (\d+) held-out images", line)
    assert found, line
    return float(found[1]), int(found[2])


def test_photos_in_folders_as_those_of_imagenet_become_a_network(
    shared_data: Path, tmp_path: Path
) -> None:
    """Dark and bright ones are told apart; a fifth is in the folder val."""
    photos = sorted((shared_data / "photos").rglob("*.jpg"))
    grays = [cv2.imread(str(path), cv2.IMREAD_REDUCED_GRAYSCALE_8) for path in photos]
    brightness = [gray.mean() for gray in grays if gray is not None]
    for number, (path, mean) in enumerate(zip(photos, brightness, strict=True)):
        kind = "bright" if mean > np.median(brightness) else "dark"
        place = tmp_path / "images" / ("train" if number % 5 else "val") / kind
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{number}.jpg").symlink_to(path)
    said = run(example("imagenet"), tmp_path / "images", tmp_path / "data", 3, 32)
    accuracy, held_out = found_on_held_out(said.splitlines()[-2])
    assert held_out == len(photos) // 5
    assert accuracy > 75  # and 50 % by chance


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


@pytest.mark.parametrize("ranks", [1, 2])
def test_transformers_get_each_sample_once_and_resume(digits: Path, ranks: int) -> None:
    needs("transformers", "transformers")
    command = *TORCHRUN, ranks, example("with_transformers"), digits
    assert counted(run(*command, 1)) == {0: TRAIN}
    last = max((digits / "transformers").iterdir(), key=lambda path: int(path.name.split("-")[1]))
    shutil.rmtree(last)  # as if it was killed before the end of the epoch
    rest = TRAIN - 40 * 32
    assert counted(run(*command, 3)) == {0: rest, 1: TRAIN, 2: TRAIN}


def test_torchdata_gets_each_sample_once_and_resumes(digits: Path, other_digits: Path) -> None:
    needs("torchdata", "torchdata")
    command = "-W", "ignore", example("with_torchdata")
    saved = kill_after_saving(digits / "torchdata.pt", *command, digits, 2)
    assert saved["epoch"] == 0, "it was not in mid-epoch"
    whole, resumed = (run(*command, folder, 2) for folder in (other_digits, digits))
    assert counted(whole) == {0: TRAIN, 1: TRAIN}
    assert 0 < counted(resumed)[0] < TRAIN
    assert whole.splitlines()[-1] == resumed.splitlines()[-1]
