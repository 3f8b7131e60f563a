"""Train a small network to tell sounds apart: clips of several rates and lengths in one batch.

Whistles that rise, fall or stay are made, in WAV of 8 and 16 kHz, and resampled to one rate where
they are decoded, in threads. Usage: python examples/audio.py [EPOCHS]
"""

import io
import sys
import tempfile
import wave
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import nn

import shardio

try:
    import soundfile  # noqa: F401  it decodes the sounds
    import soxr  # noqa: F401  it resamples them
except ModuleNotFoundError:
    sys.exit("this example needs shardio[audio]: pip install 'shardio[audio]'")

KINDS = {"falls": 0.4, "stays": 1.0, "rises": 2.5}  # pitch at the end by that at the beginning
RATE, WINDOW, HOP = 8000, 256, 128


def record(count: int) -> Iterator[dict[str, Any]]:
    """Yield samples with the fields wav and cls."""
    numbers = np.random.default_rng(0)
    for number in range(count):
        label, rate = number % len(KINDS), int(numbers.choice([8000, 16000]))
        length = int(numbers.integers(rate // 4, rate))  # a quarter of a second to a whole one
        pitch = numbers.uniform(500, 1500) * np.linspace(1, [*KINDS.values()][label], length)
        sound = np.sin(2 * np.pi * pitch.cumsum() / rate) + numbers.normal(0, 0.3, length)
        with wave.open(stream := io.BytesIO(), "wb") as file:
            file.setparams((1, 2, rate, length, "NONE", ""))
            file.writeframes((sound * 9000).astype("<i2").tobytes())
        yield {"wav": stream.getvalue(), "cls": label}


class Network(nn.Module):
    """A spectrogram, convolutions over time, and the mean over the length of each clip."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 16, 5, (2, 1), 2), nn.ReLU(), nn.Conv2d(16, 32, 5, (2, 1), 2), nn.ReLU()
        )
        self.classify = nn.Linear(32, len(KINDS))

    def forward(self, sounds: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """Map float32 [B, 1, T] and int64 [B] to logits, [B, 3]."""
        window = torch.hann_window(WINDOW, device=sounds.device)
        found = torch.stft(sounds[:, 0], WINDOW, HOP, window=window, return_complex=True)
        features = self.layers(found.abs()[:, None].log1p()).mean(2)  # [B, 32, frames]
        frames = torch.arange(features.shape[2], device=sounds.device)
        inside = frames < (lengths // HOP)[:, None]  # what is behind the end of a clip is no sound
        mean = (features * inside[:, None]).sum(2) / inside.sum(1, keepdim=True)
        logits: torch.Tensor = self.classify(mean)
        return logits


def train(epochs: int) -> None:
    torch.manual_seed(0)
    network = Network()
    optimizer = torch.optim.AdamW(network.parameters(), lr=5e-3)
    with tempfile.TemporaryDirectory() as folder:
        types = {"wav": shardio.Audio(rate=RATE)}  # the manifest records it
        shardio.pack(record(600), folder, shards=4, types=types)
        train_set, held_out = shardio.ShardDataset(
            folder, fields={"audio": "wav", "label": "cls"}, shuffle=True, batch_size=20
        ).split(0.8)
        for epoch in range(epochs):
            for batch in shardio.Loader(train_set, threads=2):
                logits = network(batch["audio"], batch["audio_lengths"])
                loss = shardio.ops.softmax_cross_entropy(
                    logits, batch["label"], valid=batch["valid"]
                )
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            accuracy = shardio.MaskedMean()
            for batch in shardio.Loader(held_out, threads=2):
                with torch.no_grad():
                    found = network(batch["audio"], batch["audio_lengths"]).argmax(1)
                accuracy.add(found == batch["label"], batch["valid"])
            print(f"epoch {epoch}: {accuracy.result():.1%} of {accuracy.count()} held-out clips")


if __name__ == "__main__":
    number = sys.argv[1] if sys.argv[1:] else "5"
    train(int(number) if number.isdecimal() else sys.exit("give EPOCHS in digits"))
