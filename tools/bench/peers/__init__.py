"""Peers: the loaders to compare, what they read, and their modules.

Each module has two functions. `prepare(images, out, workload)` converts a folder of images once.
`batches(out, workload, repeats)` yields (images, labels), uint8 [B, 3, H, W] and B whole numbers,
until every sample was delivered `repeats` times.
"""

from __future__ import annotations

from dataclasses import dataclass

FILES = "files"  # the format of those who read the folder of images itself


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """Loader in one configuration.

    Attributes:
        module: module of this package.
        package: distribution whose version is reported.
        format: folder of its data, shared by peers with the same format.
        workloads: letters of the supported workloads.
        reads: function that yields batches.
        compiles: whether the loader compiles itself at the start, which its rate leaves out.
        note: differences from the other peers.
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
        note="two threads of one process; JPEG rows below the crop are not decoded, which gives "
        "the same pixels; large JPEGs are decoded at a fraction of their size, which gives pixels "
        "closer to an antialiased resize; on slow storage, up to 34 more threads read ahead",
    ),
    "shardio without the native core": Peer(
        module="shardio_peer",
        package="shardio",
        format="shardio",
        workloads="abc",
        reads="python_batches",
        note="as shardio Loader, with SHARDIO_NATIVE=0",
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
        note="two workers that batch, each with a shuffle buffer of 1,000 samples",
    ),
    "webdataset 8 workers": Peer(
        module="webdataset_peer",
        package="webdataset",
        format="webdataset",
        workloads="f",
        reads="many_worker_batches",
        note="one worker per shard, the maximum, so that more of them wait for storage at once",
    ),
    "webdataset PNG": Peer(
        module="webdataset_peer",
        package="webdataset",
        format="webdataset-png",
        workloads="c",
        note="the PNG shards of workload b, which its users would have",
    ),
    "webdataset raw": Peer(
        module="webdataset_peer",
        package="webdataset",
        format="webdataset-raw",
        workloads="c",
        note="shards with the bytes of the pixels as members",
    ),
    "webshart": Peer(
        module="webshart_peer",
        package="webshart",
        format="webshart",
        workloads="abcde",
        note="tars with its own indexes, two workers; it leaves decoding to others, so they decode "
        "as those of cv2 Dataset; the whole dataset is shuffled; the slow mount is left out, where "
        "it reads samples one by one, as cv2 Dataset reads files",
    ),
    "datago": Peer(
        module="datago_peer",
        package="datago",
        format="shardio",
        workloads="abde",
        note="shardio's tars by HTTP, as it does not read local ones, from a server on the same "
        "cores whose CPU time and memory count; two tasks at a time decode by its own decoder, and "
        "the thread that takes the samples crops; it shuffles shards and mixes eight, but does not "
        "shuffle inside; does not support raw pixels; the slow mount is left out because of the "
        "server",
    ),
    "datago own crop": Peer(
        module="datago_peer",
        package="datago",
        format="shardio",
        workloads="ad",
        reads="own_crop_batches",
        note="as datago, but it crops itself, which is always in the centre and never flipped, "
        "after it resized the whole image by Lanczos",
    ),
    "datago files": Peer(
        module="datago_peer",
        package="datago",
        format=FILES,
        workloads="abde",
        reads="file_batches",
        note="as datago, but single files without a server; the whole dataset is shuffled",
    ),
    "torchvision ImageFolder": Peer(
        module="imagefolder",
        package="torchvision",
        format=FILES,
        workloads="abdef",
        note="single files; Pillow decodes, and resizes with antialiasing, which torchvision "
        "always uses for Pillow images; the whole dataset is shuffled",
    ),
    "torchvision tensors": Peer(
        module="imagefolder",
        package="torchvision",
        format=FILES,
        workloads="abdef",
        reads="tensor_batches",
        note="ImageFolder with torchvision.io.decode_image and transforms of tensors; single "
        "files; linear interpolation without antialiasing",
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
        note="as cv2 Dataset, but more workers wait for storage at once",
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
        note="two threads; the same JPEGs in its own file format; resizes by area instead of "
        "linearly; does not support PNG; compiles its pipeline for about ten seconds, which count "
        "for its CPU time and first batch but not for its rate",
    ),
}
