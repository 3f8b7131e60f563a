"""Train a small CLIP on pictures and captions, then find the captions of held-out pictures.

Coloured shapes are drawn, each with a sentence about it, which open_clip tokenizes where the
pictures are decoded, in threads. Usage: python examples/captions.py [EPOCHS]
"""

import sys
import tempfile
from collections.abc import Iterator
from itertools import product
from typing import Any

import cv2
import numpy as np
import torch

import shardio
from shardio import ops

try:
    import open_clip
except ModuleNotFoundError:
    sys.exit("this example needs open_clip_torch: pip install open_clip_torch")

COLOURS = {"red": (220, 40, 40), "green": (40, 200, 60), "blue": (50, 80, 230), "white": (240,) * 3}
SIDE, WORDS, WIDTHS = 32, 16, {"disc": -1, "ring": 4}
PLACES = {"top left": (16, 16), "top right": (48, 16), "bottom left": (16, 48), "centre": (32, 32)}
CAPTIONS = {
    f"a {colour} {shape} at the {place}": (COLOURS[colour], WIDTHS[shape], PLACES[place])
    for colour, shape, place in product(COLOURS, WIDTHS, PLACES)
}
tokenizer = open_clip.SimpleTokenizer(context_length=WORDS)


def draw(count: int) -> Iterator[dict[str, Any]]:
    """Yield samples with the fields png and txt."""
    numbers = np.random.default_rng(0)
    for number in range(count):
        caption, (colour, width, place) = [*CAPTIONS.items()][number % len(CAPTIONS)]
        picture = numbers.integers(0, 60, (64, 64, 3), np.uint8)
        cv2.circle(picture, place, int(numbers.integers(9, 14)), colour, width)
        yield {"png": picture, "txt": caption}


def tokenize(sample: dict[str, Any]) -> dict[str, Any]:
    """Add the caption's tokens, int64 [WORDS]."""
    sample["tokens"] = tokenizer(sample["caption"])[0]
    return sample


@torch.no_grad()
def accuracy(model: open_clip.CLIP, loader: shardio.Loader, normalize: shardio.Normalize) -> float:
    """Compute the share of pictures whose own caption is the most similar of all."""
    mean = shardio.MaskedMean()
    texts = model.encode_text(tokenizer([*CAPTIONS]), normalize=True)
    for batch in loader:
        best = (model.encode_image(normalize(batch["image"]), normalize=True) @ texts.T).argmax(1)
        right = [[*CAPTIONS][one] == own for one, own in zip(best, batch["caption"], strict=True)]
        mean.add(torch.tensor(right), batch["valid"])
    return mean.result()


def train(epochs: int) -> None:
    torch.manual_seed(0)
    vision = {"layers": 2, "width": 64, "head_width": 32, "patch_size": 8, "image_size": SIDE}
    text = {"layers": 2, "width": 64, "heads": 2, "context_length": WORDS}
    model = open_clip.CLIP(64, vision, text)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    normalize = shardio.Normalize(open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD)
    with tempfile.TemporaryDirectory() as folder:
        shardio.pack(draw(1280), folder, shards=4)
        train_set, held_out = shardio.ShardDataset(
            folder,
            fields={"image": "png", "caption": "txt"},
            transform=shardio.RandomResizedCrop(SIDE, scale=(0.9, 1), flip=0),
            map=tokenize,
            shuffle=True, batch_size=32, tail="drop",
        ).split(0.9)  # fmt: skip
        whole = shardio.CenterCrop(SIDE, resize=SIDE)
        held_out = held_out.replace(transform=whole, shuffle=False, tail="even")
        train_loader, test_loader = shardio.Loader(train_set), shardio.Loader(held_out)
        for epoch in range(epochs):
            losses = 0.0
            for batch in train_loader:
                pictures, texts, scale = model(normalize(batch["image"]), batch["tokens"])
                logits, own = scale * pictures @ texts.T, torch.arange(len(texts))
                loss = ops.softmax_cross_entropy(logits, own)  # the caption of a picture
                loss = (loss + ops.softmax_cross_entropy(logits.T, own)) / 2  # and the reverse
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                losses += loss.item() / len(train_loader)
            found = accuracy(model, test_loader, normalize)
            print(f"epoch {epoch}: loss {losses:.2f}, own caption of {len(CAPTIONS)} {found:.1%}")


if __name__ == "__main__":
    number = sys.argv[1] if sys.argv[1:] else "5"
    train(int(number) if number.isdecimal() else sys.exit("give EPOCHS in digits"))
