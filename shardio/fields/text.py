"""Field types of text and JSON, both in UTF-8."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

from shardio.errors import CodecError
from shardio.fields.base import SHOWN_CHARACTERS, FieldType
from shardio.fields.boundary import decoder
from shardio.fields.summary import FieldSummary

if TYPE_CHECKING:
    from shardio.fields.geometry import View
    from shardio.fields.probe import Buffer

_MOST_NESTED = 100
_BRACKETS = re.compile(r'[\[\]{}]|"(?:[^"\\]|\\.)*"', re.DOTALL)  # strings hold no structure


@decoder
def decode_txt(data: Buffer) -> str:
    """Decode text in UTF-8, white space kept.

    Raises:
        CodecError: the bytes are not UTF-8.
    """
    try:
        return str(data, "utf-8")
    except UnicodeDecodeError as error:
        raise CodecError(
            f"not UTF-8 text: {error.reason} at byte {error.start} of {len(data)}"
        ) from None


@decoder
def decode_json(data: Buffer) -> object:
    """Decode JSON in UTF-8.

    Raises:
        CodecError: the bytes are not JSON, or nested too deep.
    """
    text = decode_txt(data)
    if text.count("[") + text.count("{") > _MOST_NESTED:
        _check_depth(text)
    try:
        return json.loads(text)
    except ValueError as error:
        raise CodecError(f"not JSON: {error}") from None


def _check_depth(text: str) -> None:
    """Refuse JSON that is nested so deep that sending it to another process would fail."""
    depth = 0
    for found in _BRACKETS.finditer(text):
        if found[0] in "[{":
            depth += 1
            if depth > _MOST_NESTED:
                raise CodecError(f"JSON nested more than {_MOST_NESTED} deep")
        elif found[0] in "]}":
            depth -= 1


class _Characters(FieldType):
    """Data of characters, of which the first are shown."""

    batching = "list"
    preview_bytes = 4 * SHOWN_CHARACTERS  # UTF-8 takes at most four bytes a character

    def preview(self, data: Buffer) -> str:
        """Show the first characters."""
        return str(data, "utf-8", "replace")[:SHOWN_CHARACTERS]


class Text(_Characters):
    """Text in UTF-8, white space kept."""

    name = "txt"
    names = frozenset({"txt", "text"})
    holds = "text"
    decode = staticmethod(decode_txt)

    def summarize(self, value: str, view: View | None) -> FieldSummary:
        """Count empty texts."""
        del view
        return FieldSummary(unit="texts", counts={"empty": int(not value.strip())})

    def encode(self, value: Any) -> bytes:
        """Encode text."""
        if not isinstance(value, str):
            raise TypeError("it is no text")
        return value.encode()


class Json(_Characters):
    """JSON in UTF-8."""

    name = "json"
    names = frozenset({"json"})
    holds = "values of JSON"
    decode = staticmethod(decode_json)

    def encode(self, value: Any) -> bytes:
        """Encode whatever JSON holds."""
        return json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
