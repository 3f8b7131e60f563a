"""Field type of sound. It needs the extra `shardio[audio]`: soundfile, and soxr to change rates."""

from __future__ import annotations

import io
from dataclasses import dataclass, replace
from struct import pack
from typing import TYPE_CHECKING, Any

import numpy as np

from shardio.errors import CodecError, UsageError, counted, quoted
from shardio.fields.arrays import as_array
from shardio.fields.base import FieldType
from shardio.fields.summary import FieldSummary

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from shardio.fields.geometry import View
    from shardio.fields.probe import Buffer

MAX_SECONDS = 3600.0
MAX_RATE = 1_000_000
"""Greatest rate that sound is resampled to, which a manifest may ask for."""

_MOST_RAISED = 64  # times, of rates: from 8 kHz far beyond 192 kHz
_BLOCK = 1 << 16  # values of a channel
_FLOATS = 3  # format of WAV
_FEW_CHANNELS = 8  # as FLAC has at most
_MOST_CHANNELS = {"wav": 1024, "wave": 1024}  # that libsndfile reads
_EMPTY = "the sound is empty"
_MISSING = "pip install 'shardio[audio]'"


@dataclass(frozen=True)
class Audio(FieldType):
    """Sound in any format that libsndfile reads (WAV, FLAC, Ogg, MP3): float32 [channels, T].

    A batch is padded with zeros to its longest sample, [B, channels, T], and `NAME_lengths`,
    int64 [B], has the number of values of each.

    Attributes:
        rate: samples per second of what a batch holds. Data of another rate are resampled. None
            takes the rate of the data, and refuses batches of several rates.
        mono: whether channels are averaged to one.
        max_seconds: length above which data are refused.
    """

    rate: int | None = None
    mono: bool = True
    max_seconds: float = MAX_SECONDS

    holds = "sound"
    batching = "padded"

    def __post_init__(self) -> None:
        given = self.rate is not None and not isinstance(self.rate, bool)
        if self.rate is not None and not (given and 0 < self.rate <= MAX_RATE):
            raise UsageError(
                f"Audio: rate={quoted(self.rate)}: it must be samples per second, above 0 and up "
                f"to {MAX_RATE:,}"
            )
        if not isinstance(self.mono, bool):
            raise UsageError(f"Audio: mono={quoted(self.mono)}: it must be True or False")
        if not self.max_seconds > 0:
            raise UsageError(f"Audio: max_seconds={quoted(self.max_seconds)}: it must be above 0")

    def decode(self, data: Buffer) -> NDArray[np.float32]:
        """Decode to float32 [channels, T], from -1 to 1.

        Raises:
            UsageError: the extra is not installed.
            CodecError: the bytes are no sound, or longer than max_seconds.
        """
        soundfile = _load("soundfile")
        try:
            with soundfile.SoundFile(io.BytesIO(data)) as file:
                self._check_header(file)
                announced, found = file.frames, file.samplerate
                # In blocks, so that memory is taken for what is there and not for what the
                # header announces.
                blocks = [*file.blocks(_BLOCK, dtype="float32", always_2d=True)]
        except soundfile.LibsndfileError as error:
            raise _not_sound(error) from None
        if not blocks:
            raise CodecError(_EMPTY)
        sound: NDArray[np.float32] = np.concatenate(blocks).T
        if sound.shape[1] < announced:
            raise CodecError(
                f"truncated sound: its header announces {announced} values for a channel, but "
                f"{sound.shape[1]} follow"
            )
        if self.mono and len(sound) > 1:
            sound = sound.mean(axis=0, keepdims=True)
        if self.rate is None:
            kept = np.ascontiguousarray(sound, np.float32).view(_AtRate)
            kept.rate = found
            return kept
        if found != self.rate:
            sound = _load("soxr").resample(sound.T, found, self.rate).T
        return np.ascontiguousarray(sound, np.float32)

    def check(self, data: Buffer, *, deep: bool) -> None:
        """Read the header and the first values; decode all if `deep`.

        Raises:
            UsageError: the extra is not installed.
            CodecError: the bytes are no sound, or one that is empty or too long.
        """
        if deep:
            self.decode(data)
            return
        soundfile = _load("soundfile")
        try:
            with soundfile.SoundFile(io.BytesIO(data)) as file:
                self._check_header(file)
                if not len(file.read(1)):
                    raise CodecError(_EMPTY)
        except soundfile.LibsndfileError as error:
            raise _not_sound(error) from None

    def _check_header(self, file: Any) -> None:
        if file.frames > self.max_seconds * file.samplerate:
            raise CodecError(
                f"the sound is {file.frames / file.samplerate:.0f} seconds long, more than "
                f"{self.max_seconds:g}",
                remedy="raise max_seconds of its Audio",
            )
        if self.rate is not None and self.rate > _MOST_RAISED * file.samplerate:
            raise CodecError(
                f"the sound has {file.samplerate} samples per second, and rate={self.rate} is more "
                f"than {_MOST_RAISED} times that"
            )

    def for_field(self, field: str) -> Audio:
        """Return the type for one field."""
        return replace(self, fields=field)

    def blank(self, view: View | None) -> NDArray[np.float32] | None:
        """Return silence of no length, if the number of channels is known."""
        del view
        return np.zeros((1, 0), np.float32) if self.mono else None

    def encode(self, value: Any) -> bytes:
        """Encode floats from -1 to 1, [T] or [channels, T]; needs `rate`.

        A field wav keeps 32-bit floats as they are. All others are FLAC, which rounds to 24 bits.
        """
        if self.rate is None:
            raise ValueError("the rate is not known; give Audio rate=")
        given = as_array(value)
        if given.dtype.kind != "f" or given.ndim not in (1, 2):
            raise TypeError(
                f"sound is floats [T] or [channels, T], from -1 to 1, not {given.dtype} "
                f"{[*given.shape]}"
            )
        sound = np.atleast_2d(np.asarray(given, np.float32))
        if not sound.size:
            raise ValueError(_EMPTY)
        last = self.alternatives[0].rpartition(".")[2] if self.alternatives else "flac"
        most = _MOST_CHANNELS.get(last, _FEW_CHANNELS)
        if len(sound) > most or _FEW_CHANNELS < len(sound) > sound.shape[1]:
            raise ValueError(
                f"it is [{len(sound)}, {sound.shape[1]}], which is {len(sound):,} channels of "
                f"{counted(sound.shape[1], 'value')}; if it is [T, channels], transpose it"
            )
        if last in ("wav", "wave"):
            return _wav(sound, self.rate)
        if last in ("mp3", "ogg", "oga", "opus"):
            raise TypeError(f"{last} changes sound; encode it yourself, or name the field flac")
        if not (np.abs(sound) <= 1).all():
            raise ValueError("FLAC holds values from -1 to 1; name the field wav for others")
        stream = io.BytesIO()
        _load("soundfile").write(stream, sound.T, self.rate, format="FLAC", subtype="PCM_24")
        return stream.getvalue()

    def summarize(self, value: NDArray[np.float32], view: View | None) -> FieldSummary:
        """Tell the length, in seconds where the rate is known, and whether all is silent."""
        del view
        length = value.shape[1]
        return FieldSummary(
            unit="sounds (values a channel)" if self.rate is None else "sounds (seconds)",
            low=length if self.rate is None else length / self.rate,
            high=length if self.rate is None else length / self.rate,
            counts={"silent": int(not value.any())},
        )

    def preview(self, data: Buffer) -> str:
        """Show rate, channels and length."""
        soundfile = _load("soundfile")
        try:
            with soundfile.SoundFile(io.BytesIO(data)) as file:
                seconds = file.frames / file.samplerate
                return f"{file.format}, {file.samplerate} Hz, {file.channels} ch., {seconds:.2f} s"
        except soundfile.LibsndfileError as error:
            raise _not_sound(error) from None


class _AtRate(np.ndarray):
    """An array that knows its samples per second, by which batches of several rates are refused."""

    rate: int | None = None


def _wav(sound: NDArray[np.float32], rate: int) -> bytes:
    """Encode sound [channels, T] as a WAV of 32-bit floats, without the date of libsndfile's."""
    channels, length = sound.shape
    data = np.ascontiguousarray(sound.T, "<f4").tobytes()
    form = pack("<HHIIHHH", _FLOATS, channels, rate, rate * channels * 4, channels * 4, 32, 0)
    chunks = ((b"fmt ", form), (b"fact", pack("<I", length)), (b"data", data))
    body = b"WAVE" + b"".join(name + pack("<I", len(each)) + each for name, each in chunks)
    return b"RIFF" + pack("<I", len(body)) + body


def _load(name: str) -> Any:
    """Import a package of the extra."""
    try:
        return __import__(name)
    except ImportError as error:
        raise UsageError(f"Audio needs the package {name}", remedy=_MISSING) from error


def _not_sound(error: Any) -> CodecError:
    """Make the error for what libsndfile refuses, without the address of the buffer."""
    return CodecError(f"libsndfile does not decode the sound: {error.error_string}")
