"""What a loader does with its time, and what limits it.

`shardio.profile` measures a dataset: `settings` say what, `process` starts each measurement,
`ceilings` measures the machine and `measure` a loader. `monitor` watches a user's own loop; it is
imported when first used, since it needs torch. Both come to `evidence`, from which `verdict`
follows. `claims` concludes from all measurements of a profile, and decides what is withheld;
`report` shows the results.
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
