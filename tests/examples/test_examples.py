"""Each example runs, says what its first line promises, and stays short enough to read."""

from __future__ import annotations

import ast
import json
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from tests import programs

EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*.py"))
TRAIN_DDP = next(path for path in EXAMPLES if path.name == "train_ddp.py")


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.name)
def test_an_example_has_at_most_a_hundred_lines(example: Path) -> None:
    assert len(example.read_text("utf-8").splitlines()) <= 100


DEPENDENCIES = {"cv2", "numpy", "shardio", "torch", "webdataset"}
TAKEN_IF_THERE = {"torchvision"}


def others_of(example: Path) -> set[str]:
    """Names of the modules that an example imports beyond those that shardio brings."""
    tree = ast.parse(example.read_text("utf-8"))
    names = {
        name.partition(".")[0]
        for node in ast.walk(tree)
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else []
        )
    }
    return names - DEPENDENCIES - TAKEN_IF_THERE - sys.stdlib_module_names


WITH_OTHERS = [example for example in EXAMPLES if others_of(example)]


@pytest.mark.parametrize("example", WITH_OTHERS, ids=lambda path: path.name)
def test_an_example_says_what_to_install(example: Path) -> None:
    block = f"import runpy, sys; sys.modules.update(dict.fromkeys({others_of(example)}))"
    done = programs.run(f"{block}; runpy.run_path({str(example)!r}, run_name='__main__')")
    assert done.returncode == 1
    assert re.fullmatch(
        r"this example needs ([\w-]+|\w+\[\w+\]): pip install (')?\1(?(2)')\n", done.stderr
    ), done.stderr


WITH_EPOCHS = [path for path in EXAMPLES if "EPOCHS in digits" in path.read_text("utf-8")]


@pytest.mark.parametrize("example", WITH_EPOCHS, ids=lambda path: path.name)
def test_an_example_that_is_given_no_number_says_so_in_a_sentence(example: Path) -> None:
    done = programs.run(example, "many")
    assert done.returncode == 1
    assert re.fullmatch(r"(give|this example needs) [^\n]+\n", done.stderr), done.stderr


def torchrun(processes: int, folder: Path) -> list[str]:
    options = ["--nproc-per-node", str(processes), "--standalone", str(TRAIN_DDP), str(folder), "3"]
    return [sys.executable, "-m", "torch.distributed.run", *options]


def kill_all(folder: Path) -> None:
    """Kill every process that has the folder on its command line, trainers and their workers."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            with suppress(OSError):
                if str(folder).encode() in (entry / "cmdline").read_bytes():
                    os.kill(int(entry.name), signal.SIGKILL)


def batches_in(folder: Path) -> dict[tuple[int, int], list[str]]:
    """Keys of each global batch by epoch and step, from the logs of all ranks of every run."""
    found: dict[tuple[int, int], list[str]] = {}
    for log in sorted(folder.glob("batches-of-*-0.jsonl")):
        ranks = int(log.stem.split("-")[2])
        parts = []
        for rank in range(ranks):
            lines = (folder / f"batches-of-{ranks}-{rank}.jsonl").read_text().splitlines()
            whole = [line for line in lines if line.endswith("]]")]  # the kill may cut the last
            parts.append({(epoch, step): keys for epoch, step, keys in map(json.loads, whole)})
        for place in set.intersection(*map(set, parts)):
            keys = [key for part in parts for key in part[place]]
            assert found.setdefault(place, keys) == keys, f"{place} was another batch before"
    return found


def test_a_distributed_run_is_killed_and_goes_on_with_more_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seven shards; two ranks, killed in mid-epoch; then three."""
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    killed.mkdir()
    whole.mkdir()
    log, output = killed / "batches-of-2-0.jsonl", tmp_path / "output"
    with output.open("w") as stream:
        process = subprocess.Popen(
            torchrun(2, killed),
            stdout=stream,
            stderr=stream,
        )
        while not (log.exists() and "\n[1, 7, " in log.read_text()):
            assert process.poll() is None, output.read_text()
            time.sleep(0.005)
        kill_all(killed)
        process.wait()
    before = batches_in(killed)
    assert (1, 7) in before or (1, 6) in before
    assert (2, 29) not in before
    more = subprocess.run(
        torchrun(3, killed), capture_output=True, text=True, check=False, timeout=150
    )
    alone = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "localhost", "MASTER_PORT": "0"}
    for name, value in alone.items():  # as torchrun says it
        monkeypatch.setenv(name, value)
    for done in (more, programs.run(TRAIN_DDP, whole, 3)):
        assert done.returncode == 0, done.stderr
        assert float(done.stdout.rsplit(maxsplit=1)[-1].rstrip("%")) > 85
    after = batches_in(killed)
    assert sorted(after) == [(epoch, step) for epoch in range(3) for step in range(30)]
    assert after == batches_in(whole)
    assert all(len(keys) == 48 for keys in after.values())


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("fit_a_curve", r"least squares: +4\.9\d+ x² \+ 3\.0\d+"),
        ("linear_module", r"parameters: \['weight', 'bias'\]\nstate dict: .*'mean'"),
        ("broadcasting", r"whose sum is 12; meant was 6(.|\n)*logits\.squeeze\(-1\)(.|\n)*ms and"),
        ("row_sums", r"element by element +[\d.]+ ms(.|\n)*x\.sum\(1\) +[\d.]+ ms"),
        ("batch_gather", r"ops\.batch_gather +[\d.]+ ms(.|\n)*indices\[17\] is 100"),
        ("exactly_once", r"naive, 2 workers +60 samples, 0 missing, 30 repeated"),
        ("stable_losses", r"shardio\.ops gradient +0\.5, -0\.5"),
        ("float_limits", r"16,777,216 \+ 1 = 16,777,216"),
    ],
)
def test_a_lesson_shows_what_it_is_about(name: str, shown: str) -> None:
    example = next(path for path in EXAMPLES if path.stem == name)
    done = programs.run(example)
    assert done.returncode == 0, done.stderr
    assert re.search(shown, done.stdout), done.stdout


@pytest.mark.parametrize(
    ("name", "form", "least"),
    [
        (
            "segmentation",
            r"epoch 4: .* of background [\d.]+%, bright ([\d.]+)%, dark ([\d.]+)%",
            70,
        ),
        ("detection", r"epoch 7: ([\d.]+)% of all centres, true or found, are both", 40),
    ],
)
def test_an_example_with_fields_that_follow_the_crop_learns(
    name: str, form: str, least: float
) -> None:
    example = next(path for path in EXAMPLES if path.stem == name)
    assert len(example.read_text("utf-8").splitlines()) <= 80
    done = programs.run(example, strict=True)
    assert done.returncode == 0, done.stderr
    found = re.search(form, done.stdout)
    assert found is not None, done.stdout
    assert all(float(share) >= least for share in found.groups()), done.stdout


def numbers_of(name: str, form: str) -> list[list[float]]:
    """Run an example, and return the numbers in what it prints, for each match of the form."""
    example = next(path for path in EXAMPLES if path.stem == name)
    done = programs.run(example, strict=True)
    assert done.returncode == 0, done.stderr
    found = re.findall(form, done.stdout)
    assert found, done.stdout
    return [[float(number) for number in groups] for groups in found]


def test_depth_is_measured_far_better_than_it_is_guessed() -> None:
    off, guessed = numbers_of("stereo", r"([\d.]+) m off, ([\d.]+) m by guessing")[-1]
    assert off < guessed / 8  # mirrored pairs would make it more


def test_sounds_of_several_rates_and_lengths_are_told_apart() -> None:
    pytest.importorskip("soundfile", reason="soundfile, which decodes sound, is not installed")
    found = numbers_of("audio", r"([\d.]+)% of (\d+) held-out clips")
    assert all(clips == 120 for _, clips in found)
    assert found[-1][0] > 90  # and 33 % by chance; silence behind a clip would make it less


def test_a_table_gives_sets_of_labels_and_numbers() -> None:
    form = r"right of ([\d.]+)% of (\d+) held-out pictures, ([-\d.]+)% of the variance"
    colours, pictures, explained = numbers_of("table", form)[-1]
    assert pictures == 200
    assert colours > 75  # and 13 % by chance
    assert explained > 85


def test_balanced_sampling_and_class_weights_find_rare_classes() -> None:
    form = r"an epoch: \[(\d+), (\d+), (\d+)\].*; mean ([\d.]+)%"
    (*plain, found), (*weighted, more), (*balanced, most) = numbers_of("imbalanced", form)
    assert plain == weighted == [1800, 180, 20]
    assert sum(balanced) == pytest.approx(2000, abs=2)  # each is a mean, rounded down
    assert max(balanced) - min(balanced) < 20
    assert min(more, most) > found + 20


def test_a_network_is_surer_of_what_is_right_after_mixing() -> None:
    form = r"accuracy ([\d.]+)% of (\d+), held-out loss ([\d.]+)"
    plain, *mixed = numbers_of("mixing", form)
    assert len(mixed) == 3
    assert all(count == 1597 and accuracy > 70 for accuracy, count, _ in (plain, *mixed))
    assert all(loss < 0.9 * plain[2] for _, _, loss in mixed)


def test_buckets_show_pictures_of_any_shape_whole_and_once() -> None:
    form = r"(\d+) samples, (\d+) different, of (\d+) shapes; ([\d.]+)% of (\d+) counted right"
    found = numbers_of("buckets", form)
    assert all((*row[:3], row[4]) == (960, 960, 3, 240) for row in found)
    assert found[-1][3] > 70  # and 17 % by chance


def test_the_training_example_learns_to_read_digits() -> None:
    example = next(path for path in EXAMPLES if path.name == "train.py")
    done = programs.run(example, strict=True)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    form = re.compile(
        r"epoch +\d+: loss [\d.]+, true class [\d.]+%, held-out accuracy ([\d.]+)%, "
        r"[\d,]+ img/s, \d+% waiting for data"
    )
    matches = [form.fullmatch(line) for line in lines]
    assert all(matches)
    assert matches[-1] is not None
    assert float(matches[-1][1]) >= 97
