"""What the sentences about a loop are made of."""

from __future__ import annotations

from shardio.profiling.evidence import Evidence

_NAMES = "shardio", "num_workers", "persistent_workers", "cv2", "--"


def as_sentence(text: str) -> str:
    """A verdict or a change as it is printed: it begins with a capital letter and ends.

    Names that are typed as they are keep their letters.
    """
    if not text.startswith(_NAMES):
        text = text[:1].upper() + text[1:]
    return text if text.endswith(".") else f"{text}."


def rate_of(seen: Evidence) -> str:
    """As 1,600 samples/s."""
    return f"{seen.rate:,.0f} {seen.unit}/s"


def name_of(seen: Evidence, number: int | None = None) -> str:
    """What makes batches: worker or thread, workers or threads if they are several.

    Args:
        seen: tells the kind.
        number: of them; by default as many as there are.
    """
    one = "worker" if seen.kind == "processes" else "thread"
    return one if (seen.number if number is None else number) == 1 else f"{one}s"


def count(number: int, seen: Evidence) -> str:
    """So many of what makes batches."""
    return f"{number} {name_of(seen, number)}"


def cores(number: int) -> str:
    """So many cores."""
    return "1 core" if number == 1 else f"{number} cores"
