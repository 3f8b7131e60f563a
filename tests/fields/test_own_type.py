"""A field type of a user: packed, read, shown and verified without a change to shardio."""

from __future__ import annotations

import io
import wave
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

import shardio
from shardio.fields.base import Dense
from shardio.testing import make_shard, read_members

RATE, COUNT = 8000, 12


class Pcm(shardio.FieldType):
    """Sound of one channel and 16 bits, as Python's own library reads it."""

    def decode(self, data: Any) -> Any:
        with wave.open(io.BytesIO(data)) as file:
            return np.frombuffer(file.readframes(file.getnframes()), np.int16)

    def encode(self, value: Any) -> bytes:
        stream = io.BytesIO()
        with wave.open(stream, "wb") as file:
            file.setparams((1, 2, RATE, len(value), "NONE", ""))
            file.writeframes(np.asarray(value, np.int16).tobytes())
        return stream.getvalue()


FIELDS: dict[str, str | shardio.FieldType] = {"audio": Pcm("wav;wave"), "number": "cls"}


def sound(number: int, length: int = 50) -> np.ndarray[Any, Any]:
    return np.random.default_rng(number).integers(-1000, 1000, length).astype(np.int16)


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    samples = ({"wav": sound(number), "cls": number} for number in range(COUNT))
    shardio.pack(samples, tmp_path / "out", shards=3, fields={"audio": Pcm("wav")})
    return tmp_path / "out"


def check(batches: Iterator[dict[str, Any]]) -> None:
    numbers = []
    for batch in batches:
        assert batch["audio"].dtype == torch.int16
        for found, number in zip(batch["audio"], batch["number"].tolist(), strict=True):
            assert np.array_equal(found.numpy(), sound(number))
            numbers.append(number)
    assert sorted(numbers) == [*range(COUNT)]


def test_a_field_type_of_a_user_is_packed_read_shown_and_verified(packed: Path) -> None:
    dataset = shardio.ShardDataset(packed, fields=FIELDS, shuffle=True, batch_size=4)
    check(iter(dataset))
    check(iter(shardio.Loader(dataset, threads=2)))
    for method in ("fork", "spawn"):
        check(iter(DataLoader(dataset, None, num_workers=2, multiprocessing_context=method)))
    single = dataset[3]
    assert np.array_equal(single["audio"].numpy(), sound(int(single["number"])))
    found = shardio.info(packed, fields=FIELDS).sample
    assert found is not None
    assert [(each.kind, each.value) for each in found.fields if each.name == "wav"] == [
        ("pcm", "int16 [50]")
    ]
    assert not shardio.verify(packed, fields=FIELDS, deep=True).findings


def test_bytes_that_a_type_of_a_user_does_not_decode_are_named(tmp_path: Path) -> None:
    """Whatever its parser raises: a loop stops with the place, or goes on without the sample."""
    samples = {f"{n}": {"wav": Pcm().encode(sound(n)), "cls": b"%d" % n} for n in range(4)}
    samples["2"]["wav"] = b"RIFF no sound"
    shard = make_shard(tmp_path / "a.tar", samples)
    with pytest.raises(shardio.SampleError, match=r"a\.tar: sample '2', field 'wav'.*not a WAVE"):
        list(shardio.ShardDataset(shard, fields=FIELDS, batch_size=4))
    dataset = shardio.ShardDataset(shard, fields=FIELDS, batch_size=4, on_bad_sample="skip")
    (batch,) = dataset
    assert batch["valid"].tolist() == [True, True, False, True]
    (finding,) = shardio.verify(shard, fields=FIELDS, deep=True).findings
    assert (finding.key, finding.field) == ("2", "wav")
    assert not shardio.verify(shard, deep=True).findings  # bytes to whoever gives no type
    found = shardio.info(shard, sample="2", fields=FIELDS).sample
    assert found is not None
    assert found.fields[0].value.startswith("cannot be decoded: ")


def test_sounds_of_different_length_do_not_fit_into_one_batch(tmp_path: Path) -> None:
    samples = {f"{n}": {"wav": Pcm().encode(sound(n, 10 + n))} for n in range(2)}
    shard = make_shard(tmp_path / "a.tar", samples)
    dataset = shardio.ShardDataset(shard, fields={"audio": Pcm("wav")}, batch_size=2)
    with pytest.raises(shardio.UsageError, match="it is 11 int16, others of the batch are 10"):
        list(dataset)

    class Listed(Pcm):
        batching = "list"

    (batch,) = shardio.ShardDataset(shard, fields={"audio": Listed("wav")}, batch_size=2)
    assert [len(each) for each in batch["audio"]] == [10, 11]


@dataclass(frozen=True)
class Words(shardio.FieldType):
    """A type with a parameter, whose values are whatever a text says they are."""

    separator: str = " "

    def decode(self, data: Any) -> Any:
        words = str(data, "utf-8").split(self.separator)
        if words[0] == "tensor":
            return torch.tensor([float(word) for word in words[1:]])
        return words


def read_words(folder: Path, texts: list[bytes], **options: Any) -> dict[str, Any]:
    shard = make_shard(folder / "a.tar", {f"{n}": {"words": text} for n, text in enumerate(texts)})
    fields = {"words": Words("words", separator=",")}
    (batch,) = shardio.ShardDataset(shard, fields=fields, batch_size=len(texts), **options)
    return dict(batch)


def test_tensors_are_stacked_and_anything_else_is_a_list(tmp_path: Path) -> None:
    batch = read_words(tmp_path, [b"tensor,1,2", b"tensor,3,4"])
    assert torch.equal(batch["words"], torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    assert read_words(tmp_path, [b"a,b", b"c"])["words"] == [["a", "b"], ["c"]]
    texts = [b"tensor,1,2", b"a", b"b,c"]
    with pytest.raises(
        shardio.UsageError, match=r"sample '1'.* it is of the type list, others of "
    ):
        read_words(tmp_path, texts)
    batch = read_words(tmp_path, texts, on_bad_sample="skip")
    assert batch["valid"].tolist() == [False, True, True]
    assert batch["words"][1:] == [["a"], ["b", "c"]]


class Digits(shardio.FieldType):
    """Three digits, of which many are decoded at once, and whose decoders raise anything."""

    batching = Dense(np.uint8, (3,))

    @staticmethod
    def decode(data: Any) -> Any:
        return [{b"0": 0, b"1": 1, b"2": 2}[digit] for digit in (bytes([byte]) for byte in data)]

    def decode_rows(self, block: Any, sizes: Any) -> Any:
        if block.max() > ord("2") or (sizes != 3).any():
            raise KeyError(f"{len(sizes)} members at once")
        return block - np.uint8(ord("0"))


@pytest.mark.parametrize(
    ("odd", "message"),
    [
        (b"013", "the bytes do not decode: KeyError: b'3'"),
        (b"01", r"its shape is \(2,\), its field type says \(3,\)"),
    ],
)
def test_a_dense_type_of_a_user_is_decoded_at_once_and_its_faults_are_named(
    tmp_path: Path, odd: bytes, message: str
) -> None:
    samples = {f"{n}": {"digits": data} for n, data in enumerate((b"012", b"221", b"100", odd))}
    shard = make_shard(tmp_path / "a.tar", samples)
    dataset = shardio.ShardDataset(shard, fields={"x": Digits("digits")}, batch_size=3, tail="drop")
    (batch,) = dataset
    assert batch["x"].dtype == torch.uint8
    assert batch["x"].tolist() == [[0, 1, 2], [2, 2, 1], [1, 0, 0]]
    with pytest.raises(shardio.ShardioError, match=f"sample '3', field 'digits'.*{message}"):
        list(dataset.replace(batch_size=4))


def test_a_picture_of_a_user_follows_the_crop(tmp_path: Path) -> None:
    class Grid(shardio.FieldType):
        geometry = "leads"

        def decode(self, data: Any) -> Any:
            return np.frombuffer(data, np.uint8).reshape(4, 6, 3)

    pixels = np.arange(72, dtype=np.uint8).reshape(4, 6, 3)
    shard = make_shard(tmp_path / "a.tar", {"a": {"grid": pixels.tobytes()}})
    transform = shardio.Resize((4, 6), flip=1.0)
    dataset = shardio.ShardDataset(shard, fields={"x": Grid("grid")}, transform=transform)
    (sample,) = dataset
    expected = pixels[:, ::-1].transpose(2, 0, 1)
    assert np.array_equal(sample["x"].numpy(), expected)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"a": Pcm()}, r"Pcm\(\) for 'a' names no field; write Pcm\('NAME'\) with"),
        ({"a": 3}, "must be a mapping"),
        ({"a": Pcm}, "must be a mapping"),
        ({"a": Pcm("flac")}, "no sample has 'flac' for 'a'"),
    ],
)
def test_fields_that_say_nothing_are_refused(packed: Path, fields: Any, message: str) -> None:
    with pytest.raises(shardio.UsageError, match=message):
        shardio.ShardDataset(packed, fields=fields)


def test_info_verify_and_pack_refuse_what_is_no_mapping_of_types(packed: Path) -> None:
    for wrong in ({"a": 3}, {"a": Pcm()}, {"a": Pcm("wav"), "b": Words("wav")}):
        fields: Any = wrong
        for call in (
            lambda fields=fields: shardio.info(packed, fields=fields),
            lambda fields=fields: shardio.verify(packed, fields=fields),
            lambda fields=fields: shardio.pack([], packed / "x", shards=1, fields=fields),
        ):
            with pytest.raises(shardio.UsageError, match=r"^fields: "):
                call()
    with pytest.raises(shardio.UsageError, match="field types are for samples of a program"):
        shardio.pack(packed / "index", packed / "x", shards=1, fields={"a": Pcm("wav")})


def test_bytes_and_state_are_those_of_the_same_fields_as_bytes(packed: Path) -> None:
    own = shardio.ShardDataset(packed, fields={"audio": Pcm("wav")}, batch_size=4, decode=False)
    text = shardio.ShardDataset(packed, fields={"audio": shardio.Bytes("wav")}, batch_size=4)
    assert own.state_dict() == text.state_dict()
    batches = [[*each] for each in (own, text)]
    assert [each["audio"] for each in batches[0]] == [each["audio"] for each in batches[1]]
    members = read_members(packed)
    assert {*batches[0][0]["audio"]} < {*members.values()}
