from __future__ import annotations

import gzip
import struct
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tfrecord.reader import tfrecord_iterator
from tfrecord.writer import TFRecordWriter

import shardio
from shardio.packing.sources.records import Record, frame_record, load_checksum, scan_records


def frame(*records: bytes) -> bytes:
    return b"".join(bytes(piece) for record in records for piece in frame_record([record]))


def scan(data: bytes) -> list[Record]:
    return [*scan_records(data, name="x.tfrecord")]


@given(st.lists(st.binary(max_size=40), max_size=6))
def test_what_was_framed_is_found_where_it_lies(records: list[bytes]) -> None:
    data = frame(*records)
    found = scan(data)
    assert [data[r.offset : r.offset + len(r.data)] for r in found] == records
    assert [r.data for r in found] == records
    assert all(r.sound for r in found)


def test_the_checksum_is_the_masked_crc32c_of_the_format() -> None:
    """CRC-32C of "123456789" is 0xE3069283 (RFC 3720); the mask is that of the format."""
    crc = 0xE3069283
    masked = ((crc >> 15 | crc << 17) + 0xA282EAD8) % 2**32
    assert load_checksum()([b"1234", b"", b"56789"]) == masked


def test_the_tfrecord_package_reads_what_is_framed(tmp_path: Path) -> None:
    path = tmp_path / "a.tfrecord"
    path.write_bytes(frame(b"one", b"", b"three" * 1000))
    found = [bytes(record) for record in tfrecord_iterator(str(path))]
    assert found == [b"one", b"", b"three" * 1000]


def test_what_the_tfrecord_package_writes_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.tfrecord"
    writer = TFRecordWriter(str(path))
    for number in range(3):
        writer.write({"x": (number, "int")})
    writer.close()
    assert [record.sound for record in scan(path.read_bytes())] == [True] * 3


def test_real_files_are_sound(shared_data: Path) -> None:
    files = sorted((shared_data / "shards").glob("*/*.tfrecord"))
    assert [len(scan(path.read_bytes())) for path in files] == [1, 5, 4, 4]
    for path in files:
        assert all(record.sound for record in scan(path.read_bytes()))


@given(st.data())
def test_every_flipped_bit_is_found(data: st.DataObject) -> None:
    records = data.draw(st.lists(st.binary(max_size=12), min_size=1, max_size=4))
    whole = bytearray(frame(*records))
    bit = data.draw(st.integers(0, 8 * len(whole) - 1))
    whole[bit // 8] ^= 1 << bit % 8
    try:
        found = scan(bytes(whole))
    except shardio.TFRecordError:
        return
    assert len(found) == len(records)
    assert sum(not record.sound for record in found) == 1


@given(st.lists(st.binary(max_size=12), min_size=1, max_size=3), st.data())
def test_a_file_that_is_cut_off_is_found_unless_a_record_ends_there(
    records: list[bytes], data: st.DataObject
) -> None:
    whole = frame(*records)
    length = data.draw(st.integers(0, len(whole) - 1))
    ends = {len(frame(*records[:count])): count for count in range(len(records))}
    if length in ends:
        assert len(scan(whole[:length])) == ends[length]
        return
    with pytest.raises(shardio.TFRecordError, match="truncated"):
        scan(whole[:length])


def test_errors_name_file_and_offset() -> None:
    whole = frame(b"first", b"second")
    start = len(frame(b"first"))
    damaged = bytearray(whole)
    damaged[start] ^= 1
    with pytest.raises(shardio.TFRecordError) as caught:
        scan(bytes(damaged))
    assert str(caught.value) == (
        f"x.tfrecord, byte {start}: the checksum of the record's length does not match, so the "
        "file is damaged or not a TFRecord file; download or write it again"
    )
    assert (caught.value.shard, caught.value.offset) == ("x.tfrecord", start)


def test_a_huge_length_with_a_valid_checksum_takes_no_memory() -> None:
    length = struct.pack("<Q", 2**63)
    head = length + struct.pack("<I", load_checksum()([length]))
    with pytest.raises(shardio.TFRecordError, match="has 9223372036854775808 bytes of data and"):
        scan(head + b"1234567")


def test_compressed_files_are_refused_with_the_way_out() -> None:
    with pytest.raises(shardio.TFRecordError, match="compressed with gzip; decompress it with"):
        scan(gzip.compress(frame(b"a")))


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "crc32c", None)
    with pytest.raises(shardio.UsageError, match=r"pip install 'shardio\[tfrecord\]'"):
        scan(b"1234")
