"""What DESIGN promises of the structure: imports point downward, starts are light, names sorted."""

from __future__ import annotations

import ast
import inspect
import re
import subprocess
import sys
import textwrap
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from importlib import import_module
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import pytest
from torch.utils.data import DataLoader

import shardio
from shardio.cli import _COMMANDS
from shardio.planning.epoch import EpochPlan
from shardio.reading.batch import Batch
from shardio.reading.readahead import ReadAhead
from shardio.reading.reader import SampleReader
from shardio.reading.shards import OpenShard

ROOT = Path(shardio.__file__).parent
MODULES = sorted(ROOT.rglob("*.py"))

# What each part may import of shardio, besides itself.
LAYERS = {
    "errors": set(),
    "checks": {"errors"},
    "options": set(),
    "processes": set(),
    "naming": set(),
    "storage": {"errors", "checks", "processes", "native"},
    "tar": {"errors", "native"},
    "native": {"errors", "processes", "fields"},
    "fields": {"errors", "processes", "native"},
    "batchwise": {"errors", "checks", "planning"},
    "transforms": {"errors", "checks", "fields"},
    "buckets": {"checks", "fields", "transforms"},
    "padded": {"errors", "checks", "fields", "transforms"},
    "indexing": {"errors", "naming", "processes", "native", "storage", "tar", "fields"},
    "planning": set(),
    "reading": {
        *{"errors", "checks", "processes", "native", "indexing"},
        *{"storage", "planning", "fields", "transforms", "buckets"},
    },
    "packing": {
        *{"errors", "checks", "naming", "options", "processes", "indexing"},
        *{"storage", "tar", "planning", "fields", "native"},
    },
    "conversion": {"errors", "checks", "naming", "storage", "tar", "indexing", "fields", "packing"},
    "inspection": {
        *{"errors", "checks", "naming", "options", "storage", "tar"},
        *{"fields", "indexing", "planning", "reading", "buckets"},
        *{"packing", "native"},
    },
    "profiling": {
        *{"errors", "processes", "storage", "fields", "transforms", "indexing", "planning"},
        *{"reading", "checks", "options", "native"},
    },
    "cli": {
        *{"errors", "processes", "storage", "fields", "indexing", "reading", "packing"},
        *{"inspection", "conversion", "profiling", "buckets", "native"},
    },
    "ops": set(),
    "testing": {"checks", "errors", "fields", "packing", "reading", "storage"},
    "__main__": {"cli"},
}
# Packages that only some parts may import.
OUTSIDE = {
    "torch": {"reading", "batchwise", "ops", "profiling", "testing"},
    "cv2": {"fields", "packing", "inspection", "testing"},
    "simplejpeg": {"fields"},
    "crc32c": {"packing"},
    "click": {"cli"},
    "rich": {"cli"},
    "webdataset": {"profiling"},
    "urllib3": {"storage"},
    "boto3": {"storage"},
    "botocore": {"storage"},
    "fsspec": {"storage"},
    "matplotlib": {"profiling"},
    "pickle": set(),
    "subprocess": {"native", "profiling"},
}
# Functions that import what their part must not load: only they need it.
WITHIN = {"fields/resample.py": {"torch"}}


def part_of(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imports_of(path: Path) -> set[str]:
    return _imports(ast.walk(ast.parse(path.read_text("utf-8"))))


def imports_at_start(path: Path) -> set[str]:
    return _imports(ast.parse(path.read_text("utf-8")).body)


def _imports(nodes: Iterable[ast.AST]) -> set[str]:
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"relative import of {node.module}"
            found.add(node.module or "")
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_downward(path: Path) -> None:
    part = part_of(path)
    if part == "__init__":
        return
    within = WITHIN.get(path.relative_to(ROOT).as_posix(), set())
    assert not within & imports_at_start(path)
    for name in imports_of(path) - within:
        package, _, rest = name.partition(".")
        if package == "shardio":
            assert rest.partition(".")[0] in LAYERS[part] | {part}, f"{part} imports {name}"
        assert part in OUTSIDE.get(package, {part}), f"{part} imports {name}"


def test_the_plan_needs_numpy_only() -> None:
    for path in (ROOT / "planning").glob("*.py"):
        outside = {name for name in imports_of(path) if not name.startswith("shardio.planning")}
        assert {name.partition(".")[0] for name in outside} <= {"numpy", *sys.stdlib_module_names}


@pytest.mark.parametrize("part", ["fields", "indexing", "reading", "storage", "cli"])
def test_locks_and_threads_are_made_where_forks_are_thought_of(part: str) -> None:
    """As a fork copies a lock that is held, and an executor without its threads."""
    for path in (ROOT / part).glob("*.py"):
        if path.name != "processes.py":
            text = path.read_text("utf-8")
            made = {"threading.Lock()", "RLock(", "threading.Event(", "ThreadPoolExecutor("}
            assert not {one for one in made if one in text}, path


COMMANDS = [f"shardio.cli.{path.stem}" for path in sorted((ROOT / "cli").glob("[a-z]*.py"))]


@pytest.mark.parametrize("module", ["shardio", "shardio.packing.pack", ", ".join(COMMANDS)])
def test_the_command_line_starts_without_torch_and_opencv(module: str) -> None:
    code = f"import sys, {module}; print({{'torch', 'cv2', 'simplejpeg'}} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_packing_files_as_they_are_needs_no_decoder(images: Path, tmp_path: Path) -> None:
    code = (
        "import sys, shardio; shardio.pack(*sys.argv[1:], shards=2, on_error='skip'); "
        "print({'torch', 'cv2', 'simplejpeg'} & set(sys.modules))"
    )
    command = [sys.executable, "-c", code, str(images), str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_the_first_batch_waits_for_no_further_imports(packed: Path) -> None:
    """As of numpy.ma, which np.unique loads when it is first called: a tenth of a second."""
    code = (
        "import sys, cv2, torch, shardio; shardio.ShardDataset, shardio.RandomResizedCrop; "
        "before = set(sys.modules); "
        "next(iter(shardio.ShardDataset(sys.argv[1], batch_size=8, shuffle=True))); "
        "print(sorted(set(sys.modules) - before))"
    )
    command = [sys.executable, "-c", code, str(packed)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert not [
        name for name in ast.literal_eval(done.stdout) if "numpy" in name or "torch" in name
    ]


def test_public_names_are_sorted_documented_and_importable() -> None:
    assert shardio.__all__ == sorted(shardio.__all__)
    assert set(shardio.__all__) <= set(dir(shardio))
    for name in shardio.__all__:
        assert getattr(shardio, name).__doc__
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        shardio.nothing  # noqa: B018  reading it is the test


@pytest.mark.parametrize(
    "name", ["ops.softmax_cross_entropy", "profiling.monitor", "testing.check_map"]
)
def test_packages_need_no_import_but_that_of_shardio(name: str) -> None:
    command = [sys.executable, "-c", f"import shardio; shardio.{name}"]
    subprocess.run(command, check=True)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_modules_and_functions_stay_short(path: Path) -> None:
    text = path.read_text("utf-8")
    assert text.count("\n") <= 700
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or 0) - node.lineno + 1
            assert length <= 60, f"{node.name} has {length} lines"


def texts_of(path: Path) -> Iterator[str]:
    """Yield the texts of a module that are neither docstrings nor chosen by the reader."""
    nodes = [*ast.walk(ast.parse(path.read_text("utf-8")))]
    chosen = [node for node in nodes if isinstance(node, ast.Call)]
    chosen = [node for node in chosen if getattr(node.func, "id", None) == "in_words"]
    documented = [node for node in nodes if isinstance(node, ast.Expr)]
    left_out = {each for node in [*chosen, *documented] for each in ast.walk(node)}
    for node in nodes:
        if node not in left_out and isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def test_options_are_named_as_the_reader_types_them() -> None:
    """Functions of Python raise the same errors as commands: `argument` names the settings."""
    commands = [getattr(import_module(f"shardio.cli.{name}"), name) for name in _COMMANDS]
    options = {option for command in commands for each in command.params for option in each.opts}
    for path in MODULES:
        for text in () if part_of(path) in ("cli", "native") else texts_of(path):
            whole = re.sub(r"shardio [a-z]+( [^;.,]*)?", "", text)  # a command for a terminal
            assert not options.intersection(re.findall(r"--[a-z-]+", whole)), f"{path}: {text}"


def test_the_read_pipe_is_one_short_function() -> None:
    lines, _ = inspect.getsourcelines(SampleReader.read)
    (function,) = ast.parse(textwrap.dedent("".join(lines))).body
    assert isinstance(function, ast.FunctionDef)
    first = function.body[1].lineno  # after the docstring
    assert len([line for line in lines[first - 1 :] if line.strip()]) <= 15


def is_in_the_pipe() -> bool:
    """Tell whether the read pipe, or a function inside it, is among the callers."""
    pipe = SampleReader.read.__code__
    codes = {pipe, *(code for code in pipe.co_consts if isinstance(code, CodeType))}
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_code not in codes:
        frame = frame.f_back
    return frame is not None


def loop_over(dataset: shardio.ShardDataset, way: str) -> list[Any]:
    if way == "single samples":
        return [dataset[number] for number in range(len(dataset.samples))]
    if way == "threads":
        return [*shardio.Loader(dataset, threads=2)]
    if way == "mixture":
        return [*shardio.Mix([dataset, dataset.replace(seed=1)], weights=[0.5, 0.5], stop="all")]
    if way == "workers":
        return [*DataLoader(dataset, batch_size=None, num_workers=2)]
    return [*dataset]


@pytest.mark.usefixtures("python_path")
@pytest.mark.parametrize("way", ["dataset", "threads", "workers", "mixture", "single samples"])
@pytest.mark.parametrize("rows", [False, True])
def test_every_sample_comes_through_the_read_pipe(
    way: str, rows: bool, packed: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The short function is what runs: it plans each batch, and reads and fills each slot."""

    def noted(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def called(*arguments: Any) -> Any:
            with (tmp_path / "calls").open("a") as stream:  # of all processes
                stream.write(f"{name} {is_in_the_pipe()}\n")
            return function(*arguments)

        return called

    watched: dict[Any, tuple[str, ...]] = {
        OpenShard: ("read", "file"),
        Batch: ("put", "put_rows"),
        EpochPlan: ("references",),
    }
    for owner, names in watched.items():
        for name in names:
            monkeypatch.setattr(owner, name, noted(name, getattr(owner, name)))
    monkeypatch.setattr(ReadAhead, "_ask", lambda *_: None)  # which reads nothing
    fields = {"label": "cls"} if rows else None
    dataset = shardio.ShardDataset(packed, batch_size=50, fields=fields).subset(range(100))
    batches = loop_over(dataset, way)
    delivered = sum(1 if way == "single samples" else len(b["__key__"]) for b in batches)
    assert delivered >= 100
    calls = (tmp_path / "calls").read_text().split("\n")[:-1]
    assert {call.partition(" ")[2] for call in calls} == {"True"}
    counts = Counter(call.partition(" ")[0] for call in calls)
    assert counts["references"] > 0
    if rows:
        assert counts["put_rows"] > 0
        assert not counts["put"]
    else:
        assert counts["put"] == counts["read"] == delivered


def test_a_named_tuple_has_no_other_base() -> None:
    """Python 3.10 raises TypeError for one, and mypy does not know."""
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.ClassDef) and len(node.bases) > 1:
                assert "NamedTuple" not in map(ast.unparse, node.bases), f"{path}: {node.name}"
