"""shardio plan and shardio replay, as typed."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

import shardio
from shardio.cli import commands
from shardio.errors import ShardioError, UsageError
from shardio.planning.epoch import EpochPlan, References
from shardio.testing import make_images, make_shard


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(commands, [*map(str, arguments)])


def plan(*arguments: str | Path) -> dict[str, Any]:
    done = run("plan", *arguments, "--json")
    assert done.exit_code == 0, done.output
    found: dict[str, Any] = json.loads(done.output)
    return found


def test_plan_proves_what_ranks_and_workers_deliver(packed: Path) -> None:
    found = plan(
        packed, "--ranks", "4", "--workers", "3", "--batch-size", "16", "--shuffle", "true"
    )
    assert found["exact"] is True
    assert (found["samples"], found["delivered_once"]) == (600, 600)
    assert (found["delivered_again"], found["left_out"]) == (0, 0)
    assert found["steps"] == 10
    for rank, share in enumerate(found["ranks"]):
        delivered: Counter[bool] = Counter()
        workers: list[Counter[bool]] = [Counter() for _ in range(3)]
        dataset = shardio.ShardDataset(
            packed, shuffle=True, decode=False, batch_size=16, rank=rank, world_size=4
        )
        for step, batch in enumerate(dataset):
            delivered.update(batch["valid"].tolist())
            workers[step % 3].update(batch["valid"].tolist())
        assert (share["rank"], share["steps"]) == (rank, 10)
        assert (share["samples"], share["pads"]) == (delivered[True], delivered[False])
        assert share["samples_of_workers"] == [worker[True] for worker in workers]
        assert share["pads_of_workers"] == [worker[False] for worker in workers]


def test_plan_says_what_a_dropped_tail_leaves_out(packed: Path) -> None:
    found = plan(packed, "--batch-size", "64", "--tail", "drop")
    assert (found["exact"], found["left_out"], found["steps"]) == (True, 24, 9)
    done = run("plan", packed, "--batch-size", "64", "--tail", "drop")
    assert (
        "576 of 600 samples come exactly once, 0 more often, 24 left out by the tail; 0 pads"
        in _flat(done.output)
    )


def test_an_even_tail_has_a_pad_a_rank_at_most_and_is_replayed(
    packed: Path, tmp_path: Path
) -> None:
    options = "--ranks", "7", "--batch-size", "100", "--tail", "even"
    found = plan(packed, *options)
    assert (found["exact"], found["delivered_once"], found["steps"]) == (True, 600, 1)
    assert [share["samples"] for share in found["ranks"]] == [85, 86, 86, 85, 86, 86, 86]
    assert sum(share["pads"] for share in found["ranks"]) == 2
    assert "1 pad with valid=False." in _flat(run("plan", packed, "--batch-size", "601").output)
    done = run("replay", packed, *options, "--step", "0", "--rank", "3", "--to", tmp_path / "one")
    assert "wrote the 86 samples (1 of them pads) of rank 3" in done.output


def test_plan_counts_the_shards_of_each_node(packed: Path) -> None:
    options = (
        "--ranks",
        "4",
        "--nodes",
        "2",
        "--batch-size",
        "8",
        "--window",
        "1",
        "--shuffle",
        "true",
    )
    shared, own = (plan(packed, *options, "--streams", streams) for streams in ("1", "4"))
    size = sum(path.stat().st_size for path in packed.glob("*.tar"))
    assert shared["bytes"] == own["bytes"] == size
    assert [node["shards"] for node in shared["nodes"]] == [8, 8]
    assert shared["bytes_read"] == 2.0
    assert [node["shards"] for node in own["nodes"]] == [4, 4]
    assert own["bytes_read"] == pytest.approx(1.0)
    assert own["nodes"][0]["window_bytes"] == pytest.approx(size / 2, rel=0.01)
    assert shared["nodes"][0]["window_bytes"] == pytest.approx(size / 4, rel=0.01)
    assert any("--streams 4 gives each node a share" in text for text in shared["warnings"])
    assert not any("streams" in text for text in own["warnings"])


def test_plan_measures_how_well_an_order_is_mixed(packed: Path) -> None:
    full, windows, off = (
        plan(packed, "--batch-size", "50", "--shuffle", shuffle, "--window", "1")
        for shuffle in ("full", "true", "false")
    )
    assert full["neighbour_distance"] == pytest.approx(1 / 3, abs=0.03)
    assert windows["neighbour_distance"] == pytest.approx(1 / 24, abs=0.01)
    assert off["neighbour_distance"] == pytest.approx(1 / 600)
    dataset = shardio.ShardDataset(packed, shuffle="full", batch_size=50)
    entropies = []
    for batch in dataset:
        shares = np.bincount(batch["label"], minlength=10) / 50
        entropies.append(-sum(share * math.log2(share) for share in shares if share))
    assert full["batch_entropy"] == pytest.approx(np.mean(entropies))
    assert full["classes_entropy"] == pytest.approx(math.log2(10))


def test_plan_finds_repeats_and_gaps(packed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A plan with a fault: the proof must be one that can fail."""
    whole = EpochPlan.references

    def broken(plan: EpochPlan, positions: Any) -> References:
        return whole(plan, np.where(positions == 17, 18, positions))

    monkeypatch.setattr(EpochPlan, "references", broken)
    done = run("plan", packed, "--batch-size", "60", "--json")
    found = json.loads(done.output)
    assert (found["exact"], found["delivered_once"]) == (False, 598)
    assert (found["delivered_again"], found["left_out"]) == (1, 1)
    assert "the plan is not exact" in str(done.exception)


def test_plan_warns_when_nodes_share_too_many_shards(packed: Path) -> None:
    found = plan(packed, "--batch-size", "4", "--ranks", "7", "--nodes", "7", "--streams", "7")
    assert found["bytes_read"] > 1.1
    assert len(found["nodes"]) == 7
    assert sum(node["shards"] for node in found["nodes"]) == 14
    assert max(node["window_bytes"] for node in found["nodes"]) < found["bytes"] / 4
    assert any("pack at least 10 shards for each node" in text for text in found["warnings"])


def test_plan_warns_of_what_hurts(images: Path, tmp_path: Path) -> None:
    shardio.pack(images, tmp_path / "sorted", shards=10, shuffle=False)
    options = (
        "--batch-size",
        "50",
        "--ranks",
        "12",
        "--nodes",
        "12",
        "--window",
        "1",
        "--shuffle",
        "true",
        "--workers",
        "3",
    )
    warnings = plan(tmp_path / "sorted", *options)["warnings"]
    for wanted in (
        "every node reads every shard; --streams 12 gives each node a share",
        "10 shards for 12 nodes are too few; pack at least 10 for each",
        "2 of 3 workers have no step to take",
        "a window holds 0.1 global batches; a larger window mixes better",
        "windows hold one class only; pack with shuffling, or use --shuffle full",
    ):
        assert wanted in warnings


def test_plan_fits_a_narrow_terminal(packed: Path) -> None:
    done = run("plan", packed, "--ranks", "20", "--workers", "4", "--batch-size", "3")
    assert done.exit_code == 0
    assert max(map(len, done.output.splitlines())) <= 80
    assert "10 steps of 3 × 20 ranks: 600 of 600 samples come exactly once" in _flat(done.output)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--ranks", "3", "--nodes", "2"], "3 ranks do not divide among 2 nodes"),
        (["--ranks", "3", "--streams", "4"], "3 ranks do not divide --streams 4"),
        (["--streams", "5"], "--streams 5 do not divide the global batch size 64"),
        (["--ranks", "2", "--tail", "short"], "--tail short with 2 ranks"),
        (["--ranks", "100", "--tail", "drop"], "600 samples do not fill one global batch"),
    ],
)
def test_plans_that_do_not_fit_are_explained(
    packed: Path, options: list[str], message: str
) -> None:
    done = run("plan", packed, "--batch-size", "64", *options)
    assert isinstance(done.exception, ShardioError)
    assert message in str(done.exception)


@pytest.mark.parametrize("rank", [None, 1])
def test_replay_writes_the_samples_of_one_batch(
    packed: Path, images: Path, tmp_path: Path, rank: int | None
) -> None:
    order = (
        "--shuffle",
        "true",
        "--seed",
        "5",
        "--window",
        "2",
        "--epoch",
        "3",
        "--ranks",
        "2",
        "--batch-size",
        "7",
    )
    place = ("--step", "42") if rank is None else ("--step", "42", "--rank", str(rank))
    done = run("replay", packed, *order, *place, "--to", tmp_path / "batch")
    assert done.exit_code == 0
    batches = [
        shardio.ShardDataset(
            packed, shuffle=True, seed=5, window=2, batch_size=7, rank=r, world_size=2
        ).read_batch(epoch=3, step=42)
        for r in ([0, 1] if rank is None else [rank])
    ]
    keys = [key for batch in batches for key in batch["__key__"]]
    valid = [flag for batch in batches for flag in batch["valid"].tolist()]
    assert f"wrote the {len(keys)} samples ({valid.count(False)} of them pads)" in done.output
    assert "shuffle=True, seed=5, epoch=3, window=2, streams=1, tail=pad, 2 × 7 " in done.output
    listing = json.loads((tmp_path / "batch/batch.json").read_text())
    assert (listing["step"], listing["rank"]) == (42, rank)
    assert [sample["key"] for sample in listing["samples"]] == keys
    assert [sample["valid"] for sample in listing["samples"]] == valid
    for key, sample in zip(keys, listing["samples"], strict=True):
        written = tmp_path / "batch" / sample["files"]["png"]
        assert written.read_bytes() == (images / f"{key}.png").read_bytes()
    names = {name for sample in listing["samples"] for name in sample["files"].values()}
    assert {path.name for path in (tmp_path / "batch").iterdir()} == names | {"batch.json"}
    assert len(names) == 2 * len(keys)


def test_replay_prints_the_listing_for_programs(packed: Path, tmp_path: Path) -> None:
    done = run(
        "replay", packed, "--batch-size", "3", "--step", "0", "--to", tmp_path / "b", "--json"
    )
    listing = json.loads((tmp_path / "b/batch.json").read_text())
    assert json.loads(done.output) == listing


def test_replay_refuses_what_it_cannot_do(packed: Path, tmp_path: Path) -> None:
    order = ("replay", packed, "--batch-size", "60", "--to", tmp_path)
    for options, message in {
        ("--step", "10"): "step 10 is outside the 10 steps of an epoch; give a step from 0 to 9",
        ("--step", "0", "--rank", "1"): "rank 1 is outside 0 to 0 (ranks - 1)",
    }.items():
        assert message in str(run(*order, *options).exception)
    (tmp_path / "mine").touch()
    done = run("replay", packed, "--batch-size", "60", "--step", "0", "--to", tmp_path / "mine")
    assert "it is a file; name a new folder" in str(done.exception)
    assert "the folder is not empty; name a new one" in str(run(*order, "--step", "0").exception)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_replay_opens_no_path_that_a_key_names(tmp_path: Path) -> None:
    """Keys and fields come from a shard that anyone may have made."""
    import io
    import tarfile

    shard = tmp_path / "a.tar"
    with tarfile.open(shard, "w") as archive:
        for name in ("../../evil.txt", "/etc/evil.txt", "x/..;rm -rf.a b", "y" * 90 + ".txt"):
            info = tarfile.TarInfo(name)
            info.size = 1
            archive.addfile(info, io.BytesIO(b"x"))
    done = run("replay", shard, "--batch-size", "4", "--step", "0", "--to", tmp_path / "batch")
    if done.exit_code:  # such names may be refused before
        assert isinstance(done.exception, ShardioError)
    assert {path.name for path in tmp_path.iterdir()} == {"a.tar", "batch"}


def _flat(text: str) -> str:
    return " ".join(text.split())


@pytest.mark.parametrize("shuffle", ["false", "true", "full"])
def test_options_and_defaults_are_those_of_the_dataset(
    packed: Path, shuffle: str, tmp_path: Path
) -> None:
    choice: Any = {"false": False, "true": True, "full": "full"}[shuffle]
    options = [] if shuffle == "false" else ["--shuffle", shuffle]
    size = ["--global-batch-size", "60", "--ranks", "2"]
    run("replay", packed, *size, *options, "--step", "3", "--to", tmp_path / "batch")
    listing = json.loads((tmp_path / "batch/batch.json").read_text())
    dataset = shardio.ShardDataset(
        packed, decode=False, global_batch_size=60, **({"shuffle": choice} if choice else {})
    )
    wanted = dataset.read_batch(epoch=0, step=3)["__key__"]
    assert [sample["key"] for sample in listing["samples"]] == wanted


@pytest.mark.parametrize(
    ("words", "shuffle"),
    [
        (["--batch-size", "9", "--shuffle"], True),
        (["--shuffle", "--batch-size", "9"], True),
        (["--batch-size", "9", "--shuffle=full"], "full"),
        (["--batch-size", "9", "--shuffle", "false"], False),
        (["--batch-size", "9", "--shuffle", "--no-shuffle"], False),
    ],
)
def test_shuffle_is_a_flag_or_takes_a_value(packed: Path, words: list[str], shuffle: Any) -> None:
    assert plan(packed, *words)["settings"]["shuffle"] == shuffle
    done = run("plan", "--json", *words, "--", packed)
    assert json.loads(done.output)["settings"]["shuffle"] == shuffle


def test_shuffle_before_a_path_is_a_flag(packed: Path) -> None:
    assert plan("--shuffle", packed, "--batch-size", "9")["settings"]["shuffle"] is True


@pytest.mark.parametrize("command", ["pack", "reshard"])
def test_what_writes_shards_takes_shuffle_in_the_same_forms(
    command: str, packed: Path, tmp_path: Path
) -> None:
    orders = []
    for words in (["--shuffle"], ["--shuffle", "true"], ["--no-shuffle"], ["--shuffle", "false"]):
        out = tmp_path / "-".join(words)
        done = run(command, packed, out, "--shards", "1", *words)
        assert done.exit_code == 0, done.output
        dataset = shardio.ShardDataset(out, decode=False)
        orders.append([sample["__key__"] for sample in dataset])
    assert orders[0] == orders[1] != orders[2] == orders[3]


def test_the_example_of_replay_is_a_step_of_a_small_dataset(
    packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "out").symlink_to(packed)
    monkeypatch.chdir(tmp_path)
    example = run("replay", "--help").output.rpartition("Example: shardio ")[2]
    done = run(*example.split())
    assert done.exit_code == 0, done.exception
    assert "wrote the 64 samples (0 of them pads)" in done.output


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "give either --batch-size or --global-batch-size"),
        (["--batch-size", "4", "--global-batch-size", "4"], "give either --batch-size or --global"),
        (["--global-batch-size", "10", "--ranks", "3"], "10 does not divide among 3 ranks"),
    ],
)
def test_a_batch_size_is_asked_for(packed: Path, options: list[str], message: str) -> None:
    done = run("plan", packed, *options)
    assert type(done.exception) is UsageError  # exit code 2
    assert message in str(done.exception)


def test_replay_writes_what_it_can_of_a_damaged_batch(tmp_path: Path) -> None:
    images = make_images(tmp_path / "images", classes=1, per_class=8)
    shardio.pack(images, tmp_path / "out", shards=1)
    dataset = shardio.ShardDataset(tmp_path / "out")
    index = dataset.catalog.shards[0].load_index()
    (shard,) = (tmp_path / "out").glob("*.tar")
    data = bytearray(shard.read_bytes())
    data[int(index.offsets[3, 1]) + 50] ^= 1
    shard.write_bytes(data)
    done = run(
        "replay", tmp_path / "out", "--batch-size", "8", "--step", "0", "--to", tmp_path / "b"
    )
    assert "members of 1 sample could not be written" in str(done.exception)
    assert f"sample {index.key(3)!r}, field 'png'" in str(done.exception)
    listing = json.loads((tmp_path / "b/batch.json").read_text())
    assert [bool(sample["problem"]) for sample in listing["samples"]] == [i == 3 for i in range(8)]
    assert len([*(tmp_path / "b").iterdir()]) == 1 + 15


def test_replay_gives_every_field_a_file_of_its_own(tmp_path: Path) -> None:
    fields = {"x y": b"1", "x_y": b"2", "a" * 90 + "z": b"3", "b" * 10 + "a" * 79 + "z": b"4"}
    shard = make_shard(tmp_path / "a.tar", {"k": fields})
    run("replay", shard, "--batch-size", "1", "--step", "0", "--to", tmp_path / "b")
    listing = json.loads((tmp_path / "b/batch.json").read_text())
    files = listing["samples"][0]["files"]
    assert {field: (tmp_path / "b" / name).read_bytes() for field, name in files.items()} == fields
