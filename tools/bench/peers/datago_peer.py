"""datago: Rust threads that read tars from a server, or single files, and decode.

It reads tars by HTTP alone, here from a process that serves them on this machine. Random crops are
made by Python code, in the thread that takes the samples.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import datago
import numpy as np

from peers import shardio_peer
from peers.common import Batch, Pixels, Sample, collate, transform, use_one_thread
from sources import files_and_labels
from workloads import CORES_USED, SHARDS, Workload

NO_LIMIT = 1_000_000_000  # samples; it requires a limit

prepare = shardio_peer.prepare


def batches(out: Path, workload: Workload, repeats: int, *, own: bool = False) -> Iterator[Batch]:
    with serve(out) as server:
        yield from load(f"{server}/{{1..{repeats}}}", SHARDS, workload, own=own)


def load(url: str, shards: int, workload: Workload, *, own: bool = False) -> Iterator[Batch]:
    source = {
        "url": f"{url}/shard-{{000000..{shards - 1:06d}}}.tar",
        "random_sampling": True,
        "reference_image_type": "jpg" if workload.crop else "png",
        "concurrent_downloads": SHARDS,
    }
    return join(samples("webdataset", source, workload, own=own), workload)


def own_crop_batches(out: Path, workload: Workload, repeats: int) -> Iterator[Batch]:
    return batches(out, workload, repeats, own=True)


def file_batches(out: Path, workload: Workload, repeats: int) -> Iterator[Batch]:
    labels = dict(files_and_labels(out))
    source = {"root_path": str(out), "random_sampling": True}
    for _ in range(repeats):
        yield from join(samples("file", source, workload, labels), workload)


def samples(
    kind: str,
    source: dict[str, Any],
    workload: Workload,
    labels: dict[str, int] | None = None,
    *,
    own: bool = False,
) -> Iterator[Sample]:
    """Deliver samples of a source.

    Args:
        kind: type of the source.
        source: its configuration.
        workload: what to do with the images.
        labels: labels by path; if omitted, those of the sample's member.
        own: whether datago itself crops, in the centre.
    """
    os.environ["DATAGO_MAX_TASKS"] = str(CORES_USED)
    use_one_thread()
    image = {
        "crop_and_resize": own,
        "default_image_size": workload.size,
        "downsampling_ratio": workload.size,  # so that the only size is the square
        "min_aspect_ratio": 1.0,
        "max_aspect_ratio": 1.0,
        "image_to_rgb8": True,
    }
    request = {"source_type": kind, "source_config": source, "image_config": image}
    sizes = {"prefetch_buffer_size": 128, "samples_buffer_size": 64, "limit": NO_LIMIT}
    client = datago.DatagoClient(json.dumps({**request, **sizes}))
    client.start()
    try:
        while (sample := client.get_sample()) is not None:
            pixels = pixels_of(sample.image.get_payload())
            if labels is None:
                label = int(json.loads(sample.attributes)["cls"])
            else:
                label = labels[json.loads(sample.id)]
            yield pixels if own else transform(pixels, workload), label
    finally:
        client.stop()


def pixels_of(image: Any) -> Pixels:
    if not image.width:
        raise ValueError("it gave a sample without its image")
    pixels: Pixels = np.frombuffer(image.data, np.uint8)
    return pixels.reshape(image.height, image.width, image.channels)


def join(found: Iterator[Sample], workload: Workload) -> Iterator[Batch]:
    batch: list[Sample] = []
    for sample in found:
        batch.append(sample)
        if len(batch) == workload.batch:
            yield collate(batch)
            batch = []
    if batch:
        yield collate(batch)


class Server(ThreadingHTTPServer):
    """Server that lets all shards be requested at once; a full queue delays one by a second."""

    request_queue_size = 128


@contextlib.contextmanager
def serve(folder: Path) -> Iterator[str]:
    """Serve the files of a folder, whatever the folders in the URL, from a process of its own."""

    class Files(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            with (folder / Path(self.path).name).open("rb") as file:
                self.send_response(200)
                self.send_header("Content-Length", str(os.fstat(file.fileno()).st_size))
                self.end_headers()
                with contextlib.suppress(ConnectionError):  # the client has enough
                    self.connection.sendfile(file)

        def log_message(self, *words: object) -> None:
            """Say nothing."""

    with Server(("127.0.0.1", 0), Files) as server:
        child = multiprocessing.get_context("fork").Process(target=server.serve_forever)
        child.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            child.terminate()
            child.join()
