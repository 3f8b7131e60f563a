"""What went wrong while measuring, in one sentence."""

from __future__ import annotations

from shardio.errors import ShardioError

_FROM_A_WORKER = "Original Traceback"
_UNEQUAL = "; give a transform that makes them equal"
_ON_THE_COMMAND_LINE = "; give --size, a --transform that makes them equal, or --batch-size 1"


def one_sentence(error: Exception) -> str:
    """Say what an error says, without the traceback that a DataLoader's worker sends along."""
    kind, text = type(error).__name__, str(error)
    if _FROM_A_WORKER in text:
        lines = text.splitlines()
        frames = [at for at, line in enumerate(lines) if line.startswith("  ")]
        text = " ".join(lines[frames[-1] + 1 :]) if frames else lines[-1]
        raised, _, message = text.partition(": ")
        kind, text = raised.rpartition(".")[2], message
    text = " ".join(text.split())
    what, unequal, _ = text.partition(_UNEQUAL)
    if unequal:
        text = what + _ON_THE_COMMAND_LINE
    if isinstance(error, ShardioError):
        return text
    return f"the measuring process met {kind}" + (f": {text}" if text else "")
