"""Sound: what a header tells is refused early, and a batch has one rate."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

import shardio
from shardio.errors import CodecError
from shardio.fields.audio import Audio
from shardio.testing import make_shard


def wav(rate: int, length: int = 400, channels: int = 1) -> bytes:
    stream = io.BytesIO()
    values = np.linspace(-0.5, 0.5, length * channels).reshape(length, channels)
    soundfile.write(stream, values, rate, format="WAV", subtype="FLOAT")
    return stream.getvalue()


def test_a_batch_of_two_rates_is_refused_unless_audio_has_one(tmp_path: Path) -> None:
    rates = [8000] * 7 + [16000]
    shard = make_shard(tmp_path / "a.tar", {f"{n}": {"wav": wav(r)} for n, r in enumerate(rates)})
    fields: Any = {"sound": Audio("wav")}
    message = (
        r"sample '7'.* 16000 samples per second, others of the batch 8000; give its Audio rate="
    )
    with pytest.raises(shardio.MisfitError, match=message):
        [*shardio.ShardDataset(shard, fields=fields, batch_size=8)]
    singles = [*shardio.ShardDataset(shard, fields=fields)]
    assert [single["sound"].shape for single in singles] == [(1, 400)] * 8
    assert all(type(single["sound"]) is torch.Tensor for single in singles)
    first, last = shardio.ShardDataset(shard, fields=fields, batch_size=7, tail="short")
    assert first["sound"].shape == (7, 1, 400)
    assert torch.equal(last["sound"][0], first["sound"][0])
    (batch,) = shardio.ShardDataset(shard, fields={"sound": Audio("wav", rate=8000)}, batch_size=8)
    assert batch["sound_lengths"].tolist() == [400] * 7 + [200]


def test_samples_without_sound_have_no_rate(tmp_path: Path) -> None:
    samples = {f"{n}": {"txt": b"a", **({"wav": wav(8000)} if n else {})} for n in range(3)}
    shard = make_shard(tmp_path / "a.tar", samples)
    fields: Any = {"sound": Audio("wav?"), "text": "txt"}
    (batch,) = shardio.ShardDataset(shard, fields=fields, batch_size=3)
    assert batch["sound_lengths"].tolist() == [0, 400, 400]


@pytest.mark.parametrize(
    ("type_", "data", "message"),
    [
        (Audio("wav"), wav(8000, 0), "the sound is empty"),
        (Audio("wav"), b"RIFF", "libsndfile does not decode the sound"),
        (Audio("wav", max_seconds=0.01), wav(8000), "seconds long, more than 0.01"),
        (Audio("wav", rate=1_000_000), wav(8000), "more than 64 times that"),
    ],
    ids=["empty", "no sound", "long", "slow"],  # libsndfile's WAV has a date in it
)
@pytest.mark.parametrize("deep", [False, True])
def test_every_check_finds_what_the_header_tells(
    type_: Audio, data: bytes, message: str, deep: bool
) -> None:
    with pytest.raises(CodecError, match=message):
        type_.check(data, deep=deep)
    Audio("wav", rate=8000).check(wav(8000, 1, 2), deep=deep)


def test_two_channels_of_one_value_are_encoded() -> None:
    sound = np.array([[0.5], [-0.5]], np.float32)
    for field in ("wav", "flac"):
        type_ = Audio(field, rate=8000, mono=False)
        assert type_.decode(type_.encode(sound)).tolist() == sound.tolist()
