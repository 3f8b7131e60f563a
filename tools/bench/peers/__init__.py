"""The peers: which loader reads what, and in which module.

A module has `prepare(images, out, workload)`, which converts a folder of images once, and
`batches(out, workload, repeats)`, which yields (images, labels) until every sample came `repeats`
times: uint8 [B, 3, H, W] and B whole numbers.
"""

from __future__ import annotations

from dataclasses import dataclass

FILES = "files"  # the format of those who read the folder of images itself


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """A loader in one configuration.

    Attributes:
        module: of this package.
        package: the distribution whose version is reported.
        format: the folder that holds its data; peers with one format share it.
        workloads: letters of those it can run.
        reads: the function that yields batches.
        compiles: it compiles itself when it starts, which its rate leaves out.
        note: what differs from the others.
    """

    module: str
    package: str
    format: str
    workloads: str
    reads: str = "batches"
    compiles: bool = False
    note: str = ""


PEERS = {
    "shardio Loader": Peer(
        module="shardio_peer",
        package="shardio",
        format="shardio",
        workloads="abcdef",
        reads="thread_batches",
        note="two threads of one process; of a JPEG it decodes the rows down to the crop's end, "
        "which gives the same pixels, and large ones at a part of their size, which gives pixels "
        "nearer to an antialiased resize; on storage that is slow, up to 34 more threads ask for "
        "data ahead",
    ),
    "shardio all pixels": Peer(
        module="shardio_peer",
        package="shardio",
        format="shardio",
        workloads="d",
        reads="all_pixel_batches",
        note="as shardio Loader, with reduced_decoding=False: the pixels of a plain linear resize",
    ),
    "shardio DataLoader": Peer(
        module="shardio_peer",
        package="shardio",
        format="shardio",
        workloads="abcdef",
        reads="worker_batches",
        note="two worker processes of torch's DataLoader; otherwise as shardio Loader",
    ),
    "webdataset": Peer(
        module="webdataset_peer",
        package="webdataset",
        format="webdataset",
        workloads="abdef",
        note="two workers that batch; a buffer of 1,000 samples in each shuffles",
    ),
    "webdataset 8 workers": Peer(
        module="webdataset_peer",
        package="webdataset",
        format="webdataset",
        workloads="f",
        reads="many_worker_batches",
        note="a worker a shard, which is as many as it can use: more wait for storage at a time",
    ),
    "webdataset PNG": Peer(
        module="webdataset_peer",
        package="webdataset",
        format="webdataset-png",
        workloads="c",
        note="the PNG shards of workload b: what its users have",
    ),
    "webdataset raw": Peer(
        module="webdataset_peer",
        package="webdataset",
        format="webdataset-raw",
        workloads="c",
        note="the pixels' bytes as a member",
    ),
    "torchvision ImageFolder": Peer(
        module="imagefolder",
        package="torchvision",
        format=FILES,
        workloads="abdef",
        note="single files; Pillow decodes, and resizes with antialiasing, as torchvision does "
        "for Pillow images whatever is asked; the whole dataset is shuffled",
    ),
    "torchvision tensors": Peer(
        module="imagefolder",
        package="torchvision",
        format=FILES,
        workloads="abdef",
        reads="tensor_batches",
        note="ImageFolder with torchvision.io.decode_image and transforms of tensors; single "
        "files; linear without antialiasing",
    ),
    "cv2 Dataset": Peer(
        module="cv2_dataset",
        package="opencv-python-headless",
        format=FILES,
        workloads="abdef",
        note="single files, a plain torch Dataset; the whole dataset is shuffled",
    ),
    "cv2 Dataset 16 workers": Peer(
        module="cv2_dataset",
        package="opencv-python-headless",
        format=FILES,
        workloads="f",
        reads="many_worker_batches",
        note="as cv2 Dataset; more wait for storage at a time",
    ),
    "LitData": Peer(
        module="litdata_peer",
        package="litdata",
        format="litdata",
        workloads="abcdef",
        note="two workers; chunks and samples inside chunks are shuffled",
    ),
    "MosaicML streaming": Peer(
        module="mosaicml",
        package="mosaicml-streaming",
        format="mds",
        workloads="abcdef",
        note="two workers; py1e shuffles",
    ),
    "SPDL": Peer(
        module="spdl_peer",
        package="spdl",
        format=FILES,
        workloads="abde",
        note="single files; two threads that make whole batches of a shuffled list",
    ),
    "DALI": Peer(
        module="dali",
        package="nvidia-dali-cuda120",
        format=FILES,
        workloads="abd",
        note="on the CPU with two threads, single files; its own decoder and resize (linear, no "
        "antialiasing)",
    ),
    "DALI ROI": Peer(
        module="dali",
        package="nvidia-dali-cuda120",
        format=FILES,
        workloads="ad",
        reads="roi_batches",
        note="as DALI, decoding only the crop",
    ),
    "Grain": Peer(
        module="grain_peer",
        package="grain",
        format="array-record",
        workloads="abcde",
        note="ArrayRecord files, two threads, for workload e two processes; the whole dataset is "
        "shuffled",
    ),
    "FFCV": Peer(
        module="ffcv_peer",
        package="ffcv",
        format="beton",
        workloads="acd",
        compiles=True,
        note="two threads; the same JPEGs in its own file; resizes by area where others "
        "interpolate; it has no PNG; it compiles its pipeline for about ten seconds, which its "
        "rate leaves out and its CPU time and first batch do not",
    ),
}
