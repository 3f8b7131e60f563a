"""Hatchling's hook: puts the native core into the wheel, or the reason why it is not there."""

from __future__ import annotations

import importlib.util
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class NativeCore(BuildHookInterface[Any]):
    """Builds the core into the wheel, or beside the modules if these are used where they lie.

    The library calls nothing of Python, so a wheel is for one platform and every Python. Without
    the library it is for every platform.
    """

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile the core before the wheel is written."""
        place = Path(self.root, "shardio/native")
        spec = importlib.util.spec_from_file_location("build", place / "build.py")
        assert spec is not None
        assert spec.loader is not None
        builder = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(builder)
        library = builder.LIBRARY
        if version != "editable":
            self._folder = tempfile.TemporaryDirectory()  # until the wheel is written
            library = Path(self._folder.name, library.name)
        library.unlink(missing_ok=True)  # since what it is linked to may be another by now
        if reason := builder.build(library):
            self.app.display_warning(f"native core: not built, {reason}")
        else:
            platform = self.build_config.builder.get_best_matching_tag().rpartition("-")[2]
            build_data |= {"pure_python": False, "tag": f"py3-none-{platform}"}
        if version != "editable":
            for path in library.parent.iterdir():
                build_data["force_include"][str(path)] = f"shardio/native/{path.name}"
