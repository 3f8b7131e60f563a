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

import shardio
from shardio.errors import MisfitError, ShardioError, SituationError, TransformError
from shardio.fields.pictures import Image
from shardio.profiling.evidence import Evidence
from shardio.profiling.measure import answer
from shardio.profiling.profile import ask
from shardio.profiling.system import descendants, drop_from_cache
from shardio.profiling.verdict import judge
from shardio.testing import make_shard

Answer = Callable[[dict[str, Any]], dict[str, Any]]
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


LITTERING = """
import itertools, pathlib, tempfile, threading, torch
def litter():
    for name in itertools.cycle(map(str, range(1000))):
        pathlib.Path(tempfile.gettempdir(), name).touch()
def alike(image):
    if threading.active_count() < 9:
        threading.Thread(target=litter, daemon=True).start()
    return torch.zeros(3)
"""


def start(packed: Path, folder: Path, transform: str) -> subprocess.Popen[bytes]:
    arguments = [str(packed), "--seconds", "200", "--workers", "1", "--transform", transform]
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
    (code := tmp_path / "mine.py").write_text(LITTERING)
    (folder := tmp_path / "temporary").mkdir()
    with start(packed, folder, f"{code}:alike") as process:
        try:
            wait_for(lambda: any(folder.rglob("999")))  # in what the measuring one has forked
            others = [*descendants(process.pid)]
            assert left_in(folder)
        finally:
            process.send_signal(number)
    assert process.returncode == (128 + number if number == signal.SIGTERM else -number)
    wait_for(lambda: not any(map(runs, others)))
    wait_for(lambda: not left_in(folder))


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


IN_A_WORKER = {"kind": "processes", "producers": 1, "prefetch": 2}
FAILING = """
from torch.utils.data import get_worker_info
def fail(image):
    if get_worker_info() is not None:
        raise KeyError("mine")
    return image
def grow(image):
    if get_worker_info() is None:
        return image
    grow.calls = getattr(grow, "calls", 0) + 1
    return image.repeat(1, 1 + grow.calls % 2, 1)
"""


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> Answer:
    """Answers without a process of its own."""
    monkeypatch.setattr("torch.set_num_threads", lambda _: None)
    return answer


def test_an_error_in_a_worker_comes_as_values_without_a_traceback(
    packed: Path, tmp_path: Path
) -> None:
    code = tmp_path / "mine.py"
    code.write_text(FAILING)
    asked = request(packed, transform=f"{code}:fail", size=0) | {"topology": IN_A_WORKER}
    with pytest.raises(TransformError) as raised:
        ask(asked)
    error = raised.value
    assert error.what == "the transform raised KeyError: 'mine'"
    assert error.key is not None
    assert error.field == "png"
    assert f"sample {error.key!r}, field 'png'" in (error.where or "")
    assert str(error) == f"{error.where}: {error.what}; {error.remedy}"


def test_images_of_two_sizes_are_a_misfit_in_a_worker_too(
    packed: Path, tmp_path: Path, in_this_process: Answer
) -> None:
    code = tmp_path / "mine.py"
    code.write_text(FAILING)
    asked = request(packed, transform=f"{code}:grow", size=0) | {"topology": IN_A_WORKER}
    with pytest.raises(MisfitError) as raised:
        in_this_process(asked)
    assert "others of the batch are" in raised.value.what
    assert "\n" not in str(raised.value)


def test_an_error_of_a_baseline_is_a_sentence(
    packed: Path, tmp_path: Path, in_this_process: Answer
) -> None:
    code = tmp_path / "mine.py"
    code.write_text(FAILING)
    asked = request(packed, transform=f"{code}:fail", size=0) | {"topology": IN_A_WORKER}
    with pytest.raises(ShardioError, match=r"^the measuring process met KeyError: [^\n]*mine"):
        in_this_process({**asked, "baseline": "webdataset"})


def test_a_step_that_fails_is_named(packed: Path, tmp_path: Path, in_this_process: Answer) -> None:
    code = tmp_path / "mine.py"
    code.write_text("def step(batch):\n    raise KeyError('mine')\n")
    with pytest.raises(SituationError, match=r"mine\.py:step: it raised KeyError for a batch"):
        in_this_process(request(packed, train=f"{code}:step"))


def test_a_transform_that_gives_no_tensor_is_named(
    packed: Path, tmp_path: Path, in_this_process: Answer
) -> None:
    code = tmp_path / "mine.py"
    code.write_text("def words(image):\n    return 'mine'\n")
    asked = request(packed, transform=f"{code}:words")
    del asked["topology"]
    with pytest.raises(TransformError, match="the transform returned a str, not a tensor"):
        in_this_process(asked)


def test_a_users_transform_and_step_are_measured(
    packed: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    in_this_process: Answer,
) -> None:
    code = tmp_path / "mine.py"
    code.write_text(
        "import time\n"
        "def augment(image):\n    time.sleep(0.001)\n    return image.float()\n"
        "def step(batch):\n    print('noise')\n    assert batch['image'].dtype.is_floating_point\n"
    )
    asked = request(packed, transform=f"{code}:augment", train=f"{code}:step", seconds=0.4)
    found = in_this_process(asked | {"topology": {"kind": "threads", "producers": 1}})
    assert "noise" in capfd.readouterr().out
    seen = Evidence.from_json(found["evidence"])
    assert judge(seen).bottleneck == "transform"
    assert seen.stages is not None
    assert seen.stages.transform.wall > 1000 > seen.stages.transform.cpu


def test_a_transform_with_threads_of_torch_does_not_hang(
    packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "2")  # conftest.py has them off
    code = tmp_path / "mine.py"
    code.write_text(
        "import torch\ndef grow(image):\n"
        "    return torch.nn.functional.interpolate(image[None].float(), size=(96, 96))[0]\n"
    )
    asked = request(packed, transform=f"{code}:grow")
    found = ask(asked | {"topology": {"kind": "threads", "producers": 1}})
    assert found["evidence"]["samples"] > 0


def test_shards_are_dropped_from_the_cache_right_before_a_cold_run(
    packed: Path, in_this_process: Answer
) -> None:
    os.sync()
    shards = [str(path) for path in packed.glob("*.tar")]
    if not drop_from_cache(shards):
        pytest.skip("the file system keeps them")
    for path in shards:
        Path(path).read_bytes()
    found = in_this_process(request(packed, cold=True))
    assert found["evidence"]["cached"] < 0.5


def test_an_epoch_of_two_steps_is_not_tiny_where_nothing_has_to_start(
    packed: Path,
    tmp_path: Path,
    in_this_process: Answer,
) -> None:
    code = tmp_path / "mine.py"
    code.write_text("import time\ndef slow(image):\n    time.sleep(0.001)\n    return image\n")
    asked = request(packed, batch_size=300, transform=f"{code}:slow")
    seen = in_this_process(asked)["evidence"]
    assert seen["steps"] == 2
    assert seen["starting"] < 0.3


def test_a_run_goes_on_until_something_can_be_told_of_it(
    packed: Path, in_this_process: Answer
) -> None:
    workers = {"kind": "processes", "producers": 1, "prefetch": 4}
    seen = in_this_process({**request(packed, step_ms=200), "topology": workers})["evidence"]
    assert seen["batches"] >= 2
    assert seen["seconds"] > 2 * 0.2


def test_a_loader_that_ends_at_once_is_named(
    packed: Path,
    monkeypatch: pytest.MonkeyPatch,
    in_this_process: Answer,
) -> None:
    monkeypatch.setattr("shardio.profiling.measure.open_baseline", lambda *_: [[1, 2], [3, 4]])
    with pytest.raises(SituationError, match="give more shards, or measure for longer"):
        in_this_process({**request(packed), "baseline": "webdataset"})


def test_a_baseline_skips_images_that_do_not_decode(images: Path, tmp_path: Path) -> None:
    good = next(images.rglob("*.png")).read_bytes()
    samples = {"a": {"png": good, "cls": b"1"}, "b": {"png": b"broken", "cls": b"2"}}
    shard = make_shard(tmp_path / "a.tar", samples)
    asked = {**request(shard, batch_size=1, size=8), "baseline": "webdataset"}
    assert ask(asked)["evidence"]["samples"] > 0


@pytest.mark.parametrize(("channels", "size"), [(1, 8), (4, 0)])
def test_a_baseline_decodes_the_channels_that_the_dataset_does(
    images: Path, tmp_path: Path, channels: int, size: int
) -> None:
    samples = [{"png": path.read_bytes(), "cls": 0} for path in [*images.rglob("*.png")][:30]]
    types: dict[str, Any] = {"image": Image("png", channels=channels), "label": "cls"}
    shardio.pack(samples, tmp_path / "out", shards=1, fields=types)
    code = tmp_path / "mine.py"
    code.write_text(f"def step(batch):\n    assert min(batch[0].shape[1:]) == {channels}\n")
    asked = request(tmp_path / "out", train=f"{code}:step", size=size)
    assert ask({**asked, "baseline": "webdataset"})["evidence"]["samples"] > 0
