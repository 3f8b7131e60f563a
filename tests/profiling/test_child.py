"""What measures leaves nothing behind, and says in a sentence what went wrong."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch._utils import ExceptionWrapper

from shardio.errors import ShardioError, TransformError, UsageError
from shardio.profiling.measure import answer
from shardio.profiling.profile import ask, one_sentence
from shardio.profiling.system import descendants
from shardio.testing import make_shard

LONG = 100.0  # seconds to wait at most, on however busy a machine


def wait_for(happened: Callable[[], bool]) -> None:
    end = time.monotonic() + LONG
    while not happened():
        assert time.monotonic() < end
        time.sleep(0.05)


def runs(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text("utf-8").rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def start(packed: Path, folder: Path) -> subprocess.Popen[bytes]:
    arguments = [str(packed), "--seconds", "200", "--size", "16", "--workers", "1"]
    return subprocess.Popen(
        [sys.executable, "-m", "shardio", "profile", *arguments],
        env={**os.environ, "TMPDIR": str(folder)},
        stderr=subprocess.DEVNULL,
    )


def left_in(folder: Path) -> set[str]:
    """What the profile has there, but for the folder in which its like lie."""
    own = f"shardio-{os.geteuid()}"
    return {*os.listdir(folder), *os.listdir(folder / own)} - {own}  # noqa: PTH208  names do


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_profile_that_is_ended_leaves_no_process_and_no_folder(
    packed: Path, tmp_path: Path, number: signal.Signals
) -> None:
    with start(packed, tmp_path) as process:
        try:
            wait_for(lambda: len(descendants(process.pid)) > 1)  # the measuring one has forked
            others = [*descendants(process.pid)]
            assert left_in(tmp_path)
        finally:
            process.send_signal(number)
    assert process.returncode == (128 + number if number == signal.SIGTERM else -number)
    wait_for(lambda: not any(map(runs, others)))
    wait_for(lambda: not left_in(tmp_path))


def request(packed: Path, **changes: Any) -> dict[str, Any]:
    settings = {"source": str(packed), "batch_size": 10, "size": 16, "seconds": 0.1, **changes}
    return {"settings": settings, "topology": {"kind": "here", "producers": 0, "prefetch": 2}}


def test_what_a_step_prints_at_the_end_is_no_answer_and_a_queue_py_is_not_imported(
    packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("queue.py").write_text("raise SystemExit('the wrong queue')\n")
    Path("besides.py").write_text("NOISE = 'noise'\n")
    Path("mine.py").write_text(
        "import atexit\nimport besides\n"
        "atexit.register(print, besides.NOISE)\ndef step(batch):\n    pass\n"
    )
    before = signal.getsignal(signal.SIGTERM)
    assert ask(request(packed, train="mine.py:step"))["evidence"]["samples"] > 0
    assert signal.getsignal(signal.SIGTERM) is before


def test_an_error_that_is_not_ours_and_an_ending_without_an_answer_are_sentences(
    packed: Path, tmp_path: Path
) -> None:
    with pytest.raises(ShardioError, match=r"^the measuring process met TypeError: .*nonsense"):
        ask(request(packed, nonsense=1))
    code = tmp_path / "mine.py"
    code.write_text("import os\ndef step(batch):\n    os._exit(5)\n")
    with pytest.raises(ShardioError, match=r"^the measuring process ended with code 5 and gave no"):
        ask(request(packed, train=f"{code}:step"))


def fail(error: Exception) -> None:
    raise error


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (TransformError("a.tar: the transform raised"), "a.tar: the transform raised"),
        (KeyError("mine"), "the measuring process met KeyError: 'mine'"),
        (ValueError("two\n  lines"), "the measuring process met ValueError: two lines"),
    ],
)
def test_of_a_workers_traceback_the_last_line_is_left(error: Exception, sentence: str) -> None:
    assert one_sentence(error) == sentence
    try:
        fail(error)
    except Exception:
        wrapped = ExceptionWrapper(where="in DataLoader worker process 0")
    with pytest.raises(type(error)) as raised:
        wrapped.reraise()
    found = one_sentence(raised.value)
    assert "Traceback" not in found
    if "lines" not in sentence:
        assert found == sentence


def test_an_epoch_of_two_steps_is_not_tiny_where_nothing_has_to_start(
    packed: Path, tmp_path: Path
) -> None:
    code = tmp_path / "mine.py"
    code.write_text("import time\ndef slow(image):\n    time.sleep(0.001)\n    return image\n")
    seen = ask(request(packed, batch_size=300, transform=f"{code}:slow"))["evidence"]
    assert seen["steps"] == 2
    assert seen["starting"] < 0.3


def test_a_run_goes_on_until_something_can_be_told_of_it(packed: Path) -> None:
    workers = {"kind": "processes", "producers": 1, "prefetch": 4}
    seen = ask({**request(packed, step_ms=200), "topology": workers})["evidence"]
    assert seen["batches"] >= 2
    assert seen["seconds"] > 2 * 0.2


def test_a_loader_that_ends_at_once_is_named(packed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.set_num_threads", lambda _: None)
    monkeypatch.setattr("shardio.profiling.measure.open_baseline", lambda *_: [[1, 2], [3, 4]])
    with pytest.raises(UsageError, match="the shards are too few, or --seconds is too short"):
        answer({**request(packed), "baseline": "webdataset"})


def test_a_baseline_skips_pictures_that_do_not_decode(images: Path, tmp_path: Path) -> None:
    good = next(images.rglob("*.png")).read_bytes()
    samples = {"a": {"png": good, "cls": b"1"}, "b": {"png": b"broken", "cls": b"2"}}
    shard = make_shard(tmp_path / "a.tar", samples)
    asked = {**request(shard, batch_size=1, size=8), "baseline": "webdataset"}
    assert ask(asked)["evidence"]["samples"] > 0
