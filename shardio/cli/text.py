"""Text that any terminal takes, whatever the names in it."""

from __future__ import annotations

import sys
from typing import TextIO


def encodable(text: str, stream: TextIO | None = None) -> str:
    """Text that a stream, by default standard output, takes: what it cannot encode is escaped."""
    encoding = (stream or sys.stdout).encoding or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)
