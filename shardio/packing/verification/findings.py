"""What a check finds: sentences with a place, and what they add up to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from shardio.errors import ShardioError, escaped, quoted

Severity = Literal["problem", "note"]

_MOST = 1000  # findings of each severity that are listed for one shard


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that was found.

    Attributes:
        severity: "problem", or "note" for what readers take as it is: members that belong to no
            sample, a field that only some samples have.
        shard: path of the shard, index, manifest or folder.
        key: of the sample, if it is about one.
        field: of the sample, if it is about one.
        offset: in bytes in the shard, if there is one.
        what: what was found.
        remedy: the way out.
    """

    severity: Severity = "problem"
    shard: str
    key: str | None = None
    field: str | None = None
    offset: int | None = None
    what: str
    remedy: str

    def __str__(self) -> str:
        """All of it as one sentence."""
        place = [escaped(self.shard)]
        if self.offset is not None:
            place.append(f"byte {self.offset}")
        if self.key is not None:
            place.append(f"sample {quoted(self.key)}")
        if self.field is not None:
            place.append(f"field {quoted(self.field)}")
        mark = "note: " if self.severity == "note" else ""
        return f"{mark}{', '.join(place)}: {escaped(self.what)}; {self.remedy}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Verification:
    """What was checked, and what was found.

    Attributes:
        shards: read.
        samples: in them.
        members: in them, those of no sample included.
        bytes: of their uncompressed tars.
        findings: by shard.
    """

    shards: int
    samples: int
    members: int
    bytes: int
    findings: tuple[Finding, ...]

    @property
    def problems(self) -> tuple[Finding, ...]:
        """The findings that are no notes."""
        return tuple(each for each in self.findings if each.severity == "problem")

    @property
    def sound(self) -> bool:
        """Whether there are no problems."""
        return not self.problems


class Findings:
    """Collects what is found in one shard, as much of it as anyone will read.

    Args:
        shard: path of the shard.
    """

    def __init__(self, shard: str) -> None:
        self._shard = shard
        self._found: list[Finding] = []
        self._counts: dict[Severity, int] = {"problem": 0, "note": 0}

    def add(
        self,
        what: str,
        remedy: str,
        *,
        severity: Severity = "problem",
        key: str | None = None,
        field: str | None = None,
        offset: int | None = None,
    ) -> None:
        """Add a finding; see Finding."""
        self._counts[severity] += 1
        if self._counts[severity] <= _MOST:
            self._found.append(
                Finding(
                    severity=severity,
                    shard=self._shard,
                    key=key,
                    field=field,
                    offset=offset,
                    what=what,
                    remedy=remedy,
                )
            )

    def add_error(self, message: str) -> None:
        """Add a message of an error: what, and after the last semicolon the way out."""
        what, _, remedy = message.removeprefix(f"{self._shard}: ").rpartition("; ")
        self.add(what, remedy)

    def all(self) -> tuple[Finding, ...]:
        """What was found; the last says how many are not listed."""
        left = [
            Finding(
                severity=severity,
                shard=self._shard,
                what=f"{count - _MOST:,} more {severity}s of this shard are not listed",
                remedy="mend those that are, and verify again",
            )
            for severity, count in self._counts.items()
            if count > _MOST
        ]
        return (*self._found, *left)


def finding_of(error: ShardioError, shard: str) -> Finding:
    """A finding that says what an error says."""
    found = Findings(shard)
    found.add_error(str(error))
    return found.all()[0]
