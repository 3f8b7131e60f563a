from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from tfrecord import example_pb2

import shardio
from shardio.packing.sources.records import encode_example, parse_example

INT64 = st.integers(-(2**63), 2**63 - 1)
FEATURES: Any = st.one_of(
    st.lists(st.binary(max_size=200), max_size=3),
    arrays.arrays(np.int64, st.integers(0, 40), elements=INT64),
    arrays.arrays(np.float32, st.integers(0, 5)),
)
EXAMPLES: Any = st.dictionaries(st.text(max_size=20), FEATURES, max_size=5)


def encode(features: Mapping[str, Any]) -> bytes:
    return b"".join(map(bytes, encode_example(features)))


def parse(data: bytes, before: bytes = b"") -> dict[str, Any]:
    """Features with their bytes in the place of where these lie."""
    whole = before + data + b"rest"
    return {
        name: [whole[place.offset : place.offset + place.size] for place in value]
        if isinstance(value, list)
        else value
        for name, value in parse_example(whole, len(before), len(data)).items()
    }


def message(features: Mapping[str, Any]) -> Any:
    """The Example of Protocol Buffers."""
    made = example_pb2.Example()
    made.features.SetInParent()
    for name, value in features.items():
        feature = made.features.feature[name]
        if isinstance(value, list):
            feature.bytes_list.SetInParent()
            feature.bytes_list.value.extend(value)
        elif value.dtype == np.int64:
            feature.int64_list.SetInParent()
            feature.int64_list.value.extend(value.tolist())
        else:
            feature.float_list.SetInParent()
            feature.float_list.value.extend(value.tolist())
    return made


def tag(number: int, wire: int) -> bytes:
    return bytes([number << 3 | wire])


def sized(number: int, data: bytes) -> bytes:
    assert len(data) < 128
    return tag(number, 2) + bytes([len(data)]) + data


def one(feature: bytes, name: bytes = b"x") -> bytes:
    """An Example with one feature, as it is written."""
    return sized(1, sized(1, sized(1, name) + sized(2, feature)))


def varint(number: int) -> bytes:
    number, out = number % 2**64, b""
    while number >= 128:
        out, number = out + bytes([number & 127 | 128]), number >> 7
    return out + bytes([number])


def long(number: int, data: bytes) -> bytes:
    return tag(number, 2) + varint(len(data)) + data


def same(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    assert one.keys() == other.keys()
    for name, value in one.items():
        if isinstance(value, list):
            assert value == other[name]
        else:
            assert value.dtype == other[name].dtype
            assert value.tobytes() == other[name].tobytes()
    return True


@given(EXAMPLES, st.binary(max_size=9))
@example({"": [b""], "é": np.array([-1, 2**63 - 1, -(2**63)])}, b"")
@example({"many": np.arange(-300, 300)}, b"")
def test_what_was_written_is_read(features: Mapping[str, Any], before: bytes) -> None:
    same(parse(encode(features), before), features)


@given(EXAMPLES)
def test_the_bytes_are_those_of_protocol_buffers(features: Mapping[str, Any]) -> None:
    names = sorted(features)
    # Its implementation in C, unlike those in C++ and Python, sorts "ab" before "a".
    assume(not any(one.startswith(other) for one in names for other in names if one != other))
    assert encode(features) == message(features).SerializeToString(deterministic=True)


@given(st.lists(INT64), st.lists(st.floats(width=32)))
def test_numbers_are_read_one_by_one_too(ints: list[int], floats: list[float]) -> None:
    int_list = b"".join(tag(1, 0) + varint(number) for number in ints)
    float_list = b"".join(tag(1, 5) + struct.pack("<f", number) for number in floats)
    entries = [
        long(1, long(1, name) + long(2, long(kind, data)))
        for name, kind, data in ((b"i", 3, int_list), (b"f", 2, float_list))
    ]
    expected = {"i": np.array(ints, np.int64), "f": np.array(floats, np.float32)}
    same(parse(long(1, b"".join(entries))), expected)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", {}),
        (sized(1, b""), {}),
        (one(sized(1, sized(1, b"a") + sized(1, b"b"))), {"x": [b"a", b"b"]}),
        # Of two features of a name the last counts, also one that has no list.
        (one(sized(3, sized(1, b"\x01"))) + one(sized(1, sized(1, b"a"))), {"x": [b"a"]}),
        (one(sized(1, sized(1, b"a"))) + one(b""), {}),
        # In a feature the last kind of list counts, and lists of one kind are joined.
        (one(sized(3, sized(1, b"\x01")) + sized(1, sized(1, b"a"))), {"x": [b"a"]}),
        (one(sized(1, sized(1, b"a")) + sized(1, sized(1, b"b"))), {"x": [b"a", b"b"]}),
        (one(sized(3, sized(1, b"\x01")) + sized(3, tag(1, 0) + b"\x02")), {"x": [1, 2]}),
        # What is not known is passed over: numbers of every width, and bytes.
        (tag(7, 0) + b"\x80\x01" + tag(7, 1) + bytes(8) + tag(7, 5) + bytes(4), {}),
        (sized(9, b"..") + one(sized(9, b"..") + sized(1, sized(2, b"") + sized(1, b"a"))),
         {"x": [b"a"]}),
        # A number of ten bytes keeps its low 64 bits.
        (one(sized(3, sized(1, b"\xff" * 9 + b"\x7f"))), {"x": [-1]}),
    ],
)  # fmt: skip
def test_odd_messages_are_read_as_protocol_buffers_does(
    data: bytes, expected: Mapping[str, Sequence[Any]]
) -> None:
    assert {name: [*value] for name, value in parse(data).items()} == expected
    parsed = example_pb2.Example.FromString(data).features.feature
    lists = {name: feature.WhichOneof("kind") for name, feature in parsed.items()}
    found = {name: [*getattr(parsed[name], kind).value] for name, kind in lists.items() if kind}
    assert found == expected


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"\x0a", "a number at byte 1 that does not end"),
        (b"\x0a\x05abc", "a field at byte 0 that reaches to byte 7, beyond the end"),
        (sized(1, b"\x0a\x7f"), "beyond the end of its message at byte 4"),
        (sized(1, sized(1, b"\x0a\x09x")), "beyond the end of its message"),
        (one(sized(1, b"\x0a\x30")), "beyond the end of its message"),
        (tag(1, 0) + b"\x01", "field 1 before byte 1 has the wire type 0, not 2"),
        (one(sized(1, tag(1, 0) + b"\x01")), "has the wire type 0, not 2"),
        (one(sized(3, tag(1, 5) + bytes(4))), "has the wire type 5, not 2 or 0"),
        (one(sized(2, tag(1, 0) + b"\x01")), "has the wire type 0, not 2 or 5"),
        (sized(1, b"") + sized(2, b""), "it is a SequenceExample"),
        (tag(3, 3) + tag(3, 4), "a field of the wire type 3"),
        (tag(3, 4), "a field of the wire type 4"),
        (tag(3, 7), "a field of the wire type 7"),
        (b"\x02\x00", "a field with the number 0"),
        (b"\xfa\xff\xff\xff\xff\x01\x00", "a field with the number"),
        (tag(3, 0) + b"\x80" * 10 + b"\x01", "that does not end"),
        (tag(3, 2) + b"\xff" * 9 + b"\x01", "beyond the end"),
        (tag(3, 1) + bytes(7), "beyond the end"),
        (one(sized(3, sized(1, b"\x80"))), "a number that does not end before byte"),
        (one(sized(3, sized(1, b"\x80" * 10 + b"\x00"))), "that does not end"),
        (one(sized(3, sized(1, b"\x80" * 11 + b"\x00" * 40))), "a number of more than 10 bytes"),
        (one(sized(2, sized(1, b"12345"))), "floats that are not 4 bytes each"),
        (one(b"", name=b"\xff"), "the name of a feature at byte 6 is not UTF-8 text"),
    ],
)
def test_hostile_messages_are_refused_with_a_reason(data: bytes, reason: str) -> None:
    with pytest.raises(shardio.CodecError) as caught:
        parse_example(data, 0, len(data))
    assert reason in str(caught.value)


@given(EXAMPLES, st.data())
def test_damaged_messages_give_features_inside_them_or_an_error(
    features: Mapping[str, Any], data: st.DataObject
) -> None:
    whole = bytearray(encode(features))
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    try:
        found = parse_example(bytes(whole), 0, len(whole))
    except shardio.CodecError:
        return
    for value in found.values():
        if isinstance(value, list):
            assert all(0 <= place.offset <= place.offset + place.size <= len(whole)
                       for place in value)  # fmt: skip


def test_messages_that_would_fill_the_memory_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    entries = [long(1, sized(1, b"%d" % n) + sized(2, sized(1, b""))) for n in range(10_001)]
    assert len(parse(long(1, b"".join(entries[:-1])))) == 10_000
    with pytest.raises(shardio.CodecError, match="more than 10000 features"):
        parse(long(1, b"".join(entries)))
    ones = b"\x01" * (1 << 22)
    assert len(parse(long(1, long(1, long(2, long(3, long(1, ones))))))[""]) == 1 << 22
    monkeypatch.setattr("shardio.packing.sources.records._MOST_VALUES", 40)
    many = {1: [sized(1, b"") * 41], 2: [long(1, bytes(164)), long(1, bytes(4)) * 41]}
    many[3] = [long(1, bytes(41)), (tag(1, 0) + b"\x01") * 41]
    for kind, lists in many.items():
        for values in lists:
            with pytest.raises(shardio.CodecError, match="a feature of more than 40 values"):
                parse(long(1, long(1, long(2, long(kind, values)))))
