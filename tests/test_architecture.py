"""What DESIGN promises of the structure: imports point downward, starts are light, names sorted."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import shardio

ROOT = Path(shardio.__file__).parent
MODULES = sorted(ROOT.rglob("*.py"))

# What each part may import of shardio, besides itself.
LAYERS = {
    "errors": set(),
    "checks": {"errors"},
    "processes": set(),
    "naming": set(),
    "storage": {"errors"},
    "tar": {"errors"},
    "fields": {"errors", "processes"},
    "transforms": {"errors", "checks", "fields"},
    "indexing": {"errors", "naming", "storage", "tar"},
    "planning": set(),
    "reading": {
        *{"errors", "checks", "processes", "indexing"},
        *{"storage", "planning", "fields", "transforms"},
    },
    "packing": {
        *{"errors", "checks", "naming", "processes", "indexing"},
        *{"storage", "tar", "planning", "fields"},
    },
    "conversion": {"errors", "checks", "naming", "storage", "tar", "indexing", "fields", "packing"},
    "inspection": {
        *{"errors", "checks", "naming", "storage", "tar"},
        *{"fields", "indexing", "planning", "reading"},
        "packing",
    },
    "profiling": {
        *{"errors", "processes", "storage", "fields", "transforms", "indexing", "planning"},
        "reading",
    },
    "cli": {
        *{"errors", "processes", "storage", "fields", "indexing", "reading", "packing"},
        *{"inspection", "conversion", "profiling"},
    },
    "ops": set(),
    "testing": set(),
    "__main__": {"cli"},
}
# Packages that only some parts may import.
OUTSIDE = {
    "torch": {"reading", "transforms", "ops", "profiling"},
    "cv2": {"fields", "packing", "inspection", "testing"},
    "simplejpeg": {"fields"},
    "crc32c": {"packing"},
    "click": {"cli"},
    "rich": {"cli"},
    "webdataset": {"profiling"},
    "matplotlib": {"profiling"},
    "pickle": set(),
    "subprocess": {"profiling"},
}


def part_of(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imports_of(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found.add(node.module or "")
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_downward(path: Path) -> None:
    part = part_of(path)
    if part == "__init__":
        return
    for name in imports_of(path):
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


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_modules_and_functions_stay_short(path: Path) -> None:
    text = path.read_text("utf-8")
    assert text.count("\n") <= 700
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or 0) - node.lineno + 1
            assert length <= 60, f"{node.name} has {length} lines"


def test_the_read_pipe_is_one_short_function() -> None:
    source = (ROOT / "reading" / "dataset.py").read_text("utf-8")
    pipes = [
        node
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.FunctionDef) and node.name == "_read_steps"
    ]
    assert len(pipes) == 1
    assert len(pipes[0].body) <= 15
