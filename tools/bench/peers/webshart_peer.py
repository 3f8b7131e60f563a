"""webshart: random access to tars by its own indexes, in two workers that decode and crop."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import webdataset
import webshart
from torch.utils.data import DataLoader, Dataset

from peers.common import (
    Batch,
    Sample,
    collate,
    cut_shards,
    make_pixels,
    packed_order,
    stored_bytes,
    use_one_thread,
)
from workloads import CORES_USED, Workload


def prepare(images: Path, out: Path, workload: Workload) -> None:
    out.mkdir()
    for shard, part in enumerate(cut_shards(packed_order(images))):
        with webdataset.TarWriter(str(out / f"{shard:06d}.tar")) as writer:
            for number, (path, label) in enumerate(part):
                data, key = stored_bytes(path, workload), f"{shard:03d}-{number:06d}"
                writer.write({"__key__": key, "image": data, "json": {"label": label}})
    folder = str(out.resolve())
    webshart.MetadataExtractor().extract_metadata(source=folder, destination=folder)


class Samples(Dataset[Sample]):
    """Dataset of the samples of a folder, each `repeats` times; the indexes are loaded at once."""

    def __init__(self, folder: Path, workload: Workload, repeats: int) -> None:
        self.loader = webshart.TarDataLoader(str(folder))
        self.workload = workload
        self.places = [
            (shard, number)
            for shard in range(self.loader.num_shards)
            for number in range(len(self.loader.list_samples_in_shard(shard)))
        ] * repeats

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> Sample:
        entry = self.loader.load_sample(*self.places[index])
        return make_pixels(entry.data, self.workload), entry.json_metadata["label"]


def batches(out: Path, workload: Workload, repeats: int) -> Iterator[Batch]:
    return iter(
        DataLoader(
            Samples(out, workload, repeats),
            batch_size=workload.batch,
            shuffle=True,
            num_workers=CORES_USED,
            collate_fn=collate,
            worker_init_fn=use_one_thread,
        )
    )
