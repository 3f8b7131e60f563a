"""What a loader does with its time: measurements, and what follows from them.

`monitor` watches a training loop; it is imported when first used, since it needs torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from shardio.profiling.monitoring import monitor as monitor

__all__ = ["monitor"]


def __getattr__(name: str) -> Any:
    if name != "monitor":
        raise AttributeError(f"module 'shardio.profiling' has no attribute {name!r}")
    from shardio.profiling.monitoring import monitor  # noqa: PLC0415

    return monitor
