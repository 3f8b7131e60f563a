"""Text that any terminal takes, whatever the names in it."""

from __future__ import annotations

import sys
from typing import TextIO


def encodable(text: str, stream: TextIO | None = None) -> str:
    """Text that a stream, by default standard output, takes: what it cannot encode is escaped."""
    encoding = getattr(stream or sys.stdout, "encoding", None) or "utf-8"  # None if it is closed
    return text.encode(encoding, "backslashreplace").decode(encoding)
