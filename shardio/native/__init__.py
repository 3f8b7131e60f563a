"""The native core: what is loaded, or why nothing is."""

from __future__ import annotations

import ctypes
import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path

VERSION = 4
"""Version of what crosses to the library; `version.c` has the same."""

_LIBRARY = Path(__file__).with_name("_core.so")


@dataclass(frozen=True, kw_only=True)
class Status:
    """What the native core does in this process.

    Attributes:
        active: whether the core is used.
        reason: reason why the core is not used, a sentence; empty if it is used.
        libraries: names and versions of the libraries in the core; empty if it is not loaded.
    """

    active: bool
    reason: str = ""
    libraries: str = ""

    def __str__(self) -> str:
        return f"on, {self.libraries}" if self.active else f"off, {self.reason}"


def status() -> Status:
    """Return whether the native core is used, and why not.

    When it is first asked for, the core decodes a few small pictures, and is not used to decode
    if they are not those that Python decodes. `SHARDIO_NATIVE=0` switches it off. A path as the
    value of this variable names another library, such as one with sanitizers.
    """
    return _load()[1]


def is_active() -> bool:
    """Tell whether the native core is used."""
    return _load()[1].active


def library(*, decodes: bool = True) -> ctypes.CDLL | None:
    """Return the library of the core, if it is used.

    Args:
        decodes: whether pictures are decoded, so that the core must first show that it decodes
            as Python does; this loads decoders.
    """
    return _load()[0] if decodes else _open()[0]


@cache
def _load() -> tuple[ctypes.CDLL | None, Status]:
    core, status = _open()
    if core is None:
        return None, status
    from shardio.native.trial import find_fault  # noqa: PLC0415  loads decoders

    try:
        if fault := find_fault(core):
            reason = f"{_path()}, built with {_libraries(core)}, {fault}"
            return None, Status(active=False, reason=reason)
    except AttributeError as error:  # which names the library
        return None, Status(active=False, reason=f"{error}; install shardio again")
    return core, status


@cache
def _open() -> tuple[ctypes.CDLL | None, Status]:
    """Return the library, before it has shown how it decodes."""
    wish, path = os.environ.get("SHARDIO_NATIVE", ""), _path()
    if wish not in {"", "1"} and os.sep not in wish:
        return None, Status(active=False, reason=f"SHARDIO_NATIVE={wish}")
    if not path.exists():
        return None, Status(active=False, reason=_why_missing(path))
    try:
        core = ctypes.CDLL(str(path))
        version = core.shardio_core_version()
        if version != VERSION:
            reason = f"{path} has version {version}, and this shardio needs {VERSION}"
            return None, Status(active=False, reason=f"{reason}; install shardio again")
        return core, Status(active=True, libraries=_libraries(core))
    except (OSError, AttributeError) as error:  # which name the library
        return None, Status(active=False, reason=f"{error}; install shardio again")


def _path() -> Path:
    wish = os.environ.get("SHARDIO_NATIVE", "")
    return Path(wish) if os.sep in wish else _LIBRARY


def _libraries(library: ctypes.CDLL) -> str:
    library.shardio_core_libraries.restype = ctypes.c_char_p
    names: bytes = library.shardio_core_libraries()
    return names.decode()


def _why_missing(path: Path) -> str:
    try:
        return path.with_suffix(".txt").read_text("utf-8").strip()
    except OSError:
        return f"{path} was not built; in a checkout, run make native"
