"""Field types of text and JSON.

Text is UTF-8. A byte order mark before it, as tools on Windows write one, names its encoding,
UTF-8, UTF-16 or UTF-32, and is not part of the text. JSON may be UTF-16 or UTF-32 without a mark,
too, as the zeros in its first four bytes tell. Other encodings are refused when they are packed
and when they are read; packing leaves bytes as they are.
"""

from __future__ import annotations

import codecs
import json
import re
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from shardio.errors import CodecError, quoted
from shardio.fields.base import SHOWN_CHARACTERS, FieldType
from shardio.fields.boundary import decoder
from shardio.fields.summary import FieldSummary

if TYPE_CHECKING:
    from shardio.fields.geometry import View
    from shardio.fields.probe import Buffer

_MARK = "\ufeff"
_MARKS = (  # UTF-32's begins with UTF-16's
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_MOST_NESTED = 100
_BRACKETS = re.compile(r'[\[\]{}]|"(?:[^"\\]|\\.)*"?', re.DOTALL)
"""Structure, and strings, which hold none; a string that does not end is one, too."""
_NUMBER = re.compile(r"\s*[+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d{1,3})?\s*")  # of any script
_LIMIT = 1 << 63
_DIGITS = 19  # decimal numbers of fewer digits have less than 64 bits


def unique_names(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make an object of JSON, whose names must differ: of equal ones JSON keeps one in silence.

    Raises:
        CodecError: a name is there twice.
    """
    made = dict(pairs)
    if len(made) < len(pairs):
        names = [name for name, _ in pairs]
        again = next(name for name in names if names.count(name) > 1)
        raise CodecError(
            f"it has the name {quoted(again)} twice in one object", remedy="keep one of them"
        )
    return made


_DECODER = json.JSONDecoder(object_pairs_hook=unique_names)


@decoder
def decode_txt(data: Buffer) -> str:
    """Decode text, white space kept, in UTF-8 or in what a byte order mark names.

    Raises:
        CodecError: the bytes are not such text.
    """
    return _text(data, _encoding_of_text(data))


@decoder
def decode_json(data: Buffer) -> object:
    """Decode JSON, in UTF-8 or, as its first bytes tell, in UTF-16 or UTF-32.

    Raises:
        CodecError: the bytes are not JSON, nested too deep, or have a name twice in one object.
    """
    text = _text(data, _encoding_of_json(data))
    if text.count("[") + text.count("{") > _MOST_NESTED:
        _check_depth(text)
    try:
        return _DECODER.decode(text)
    except CodecError:
        raise
    except ValueError as error:
        raise CodecError(f"not JSON: {error}") from None


def _encoding_of_text(data: Buffer) -> str:
    """Return the encoding that the byte order mark before a text names; without one UTF-8."""
    head = bytes(data[:4])
    return next((name for mark, name in _MARKS if head.startswith(mark)), "utf-8")


def _encoding_of_json(data: Buffer) -> str:
    return json.detect_encoding(bytes(data[:4]))


def _text(data: Buffer, encoding: str) -> str:
    try:
        return str(data, encoding)
    except UnicodeDecodeError as error:
        name = encoding.removesuffix("-sig").upper()
        raise CodecError(
            f"not {name} text: {error.reason} at byte {error.start} of {len(data)}"
        ) from None


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


def integer_in(text: str) -> int | None:
    """Parse a 64-bit integer, in whatever way it is spelled; None if the text spells none."""
    if text.isascii() and text.isdecimal() and len(text) < _DIGITS:
        return int(text)
    number = number_in(text)
    if number is None or not -_LIMIT <= number < _LIMIT or number != number.to_integral_value():
        return None
    return int(number)


def number_in(text: str) -> Decimal | None:
    """Parse a decimal number, in whatever way it is spelled; None if the text spells none."""
    return Decimal(text.strip()) if _NUMBER.fullmatch(text) else None


class _Characters(FieldType):
    """Data of characters, of which the first are shown."""

    batching = "list"
    preview_bytes = 4 * SHOWN_CHARACTERS  # no encoding takes more than four bytes a character

    @staticmethod
    def encoding_of(data: Buffer) -> str:
        """Return the encoding of the characters, by the first bytes."""
        return _encoding_of_text(data)

    def preview(self, data: Buffer) -> str:
        """Show the first characters."""
        return str(data, self.encoding_of(data), "replace")[:SHOWN_CHARACTERS]


class Text(_Characters):
    """Text in UTF-8, or in what a byte order mark names; white space kept."""

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
        mark = _MARK if value.startswith(_MARK) else ""  # one that is part of the text
        return f"{mark}{value}".encode()


class Json(_Characters):
    """JSON in UTF-8, UTF-16 or UTF-32."""

    name = "json"
    names = frozenset({"json"})
    holds = "values of JSON"
    decode = staticmethod(decode_json)
    encoding_of = staticmethod(_encoding_of_json)

    def encode(self, value: Any) -> bytes:
        """Encode whatever JSON holds; numbers and arrays of NumPy become numbers and lists."""
        return encode_json(value)


def encode_json(value: Any) -> bytes:
    """Encode a value as JSON in UTF-8, so that it decodes to the same.

    Args:
        value: value of JSON, in which numbers and arrays may be NumPy's.

    Raises:
        TypeError, ValueError, RecursionError: JSON cannot hold the value.
    """
    return json.dumps(_plain(value, 0), ensure_ascii=False, allow_nan=False).encode()


def _plain(value: Any, depth: int) -> Any:
    """Return a value with Python's numbers and lists for NumPy's.

    Raises:
        TypeError: a key is not text, which JSON would make of it.
        ValueError: it is nested deeper than readers accept.
    """
    if isinstance(value, dict | list | tuple) and depth >= _MOST_NESTED:
        raise ValueError(f"it is nested more than {_MOST_NESTED} deep")
    if isinstance(value, dict):
        for key in value:
            if not isinstance(key, str):
                raise TypeError(f"the key {quoted(key)} is not text, as all keys of JSON are")
        return {key: _plain(each, depth + 1) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each, depth + 1) for each in value]
    if hasattr(value, "dtype") and hasattr(value, "tolist"):
        return _plain(_numbers(value), depth)
    return value


def _numbers(value: Any) -> Any:
    """Return the numbers of an array, a tensor or a number of NumPy."""
    found = value.tolist()
    first = found
    while isinstance(first, list) and first:
        first = first[0]
    if not isinstance(first, bool | int | float | list):
        raise TypeError(f"Object of dtype {value.dtype} is not JSON serializable")
    return found
