"""Port public training scripts to shardio, run original and port, and compare what they count.

    python tools/check/ports.py imagenet=DIR timm=DIR open_clip=DIR vision=DIR webdataset=DIR

Each argument names a port and a checkout of the repository of its script. It needs torchvision,
Pillow and what the script needs. Without them, or the checkout, a port is skipped with the reason.

Of every port the changed lines are here, as pairs of old text and new; nothing else of the script.
Both versions run two epochs on two ranks with gloo on the CPU, on small pictures: 447 samples to
train and 199 to validate. The colour of a picture says which sample it is, so that the samples that
the network sees are known on each rank, batch by batch. A port fails if, in an epoch, a rank trains
on another number of samples than in the original, one sample comes again before all have come, one
is not validated, or the script says that it has validated another number than there are.
"""

from __future__ import annotations

import argparse
import atexit
import difflib
import importlib.util
import json
import os
import re
import runpy
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

import shardio

TRAINED, VALIDATED = 447, 199  # the last batch of a rank is whole only with a pad
LEVELS = 8  # of a colour channel, in a picture that says its number
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # what the scripts normalise with
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
Changes = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Port:
    """A port of a script.

    Attributes:
        script: path of the script in its repository.
        changed: path of the file that the port changes.
        lines: old text and new, of the port.
        smaller: old text and new, in original and port: smaller pictures, and what is printed.
        options: arguments of the script; {data} is the folder of the data.
        tree: folder of the repository that the script imports.
        ranks: number of processes.
        epochs: number of epochs.
        needs: modules of the script.
        exact: whether the script validates.
        mean, std: what the script normalises with.
    """

    script: str
    lines: Changes
    smaller: Changes
    options: str
    tree: str = "."
    changed: str = ""
    ranks: int = 2
    epochs: int = 2
    needs: tuple[str, ...] = ("torchvision", "PIL")
    exact: bool = True
    mean: tuple[float, ...] = MEAN
    std: tuple[float, ...] = STD


IMAGENET = Port(
    script="imagenet/main.py",
    lines=(
        ("import shutil\n", "import shardio\nimport shutil\n"),
        (
            "        train_dataset = datasets.ImageFolder(\n            traindir,\n",
            "        train_dataset = shardio.ShardDataset(traindir, shuffle=True, tail='even',\n"
            "            batch_size=args.batch_size, as_tuple=('image', 'label'), transform=\n",
        ),
        (
            "        val_dataset = datasets.ImageFolder(\n            valdir,\n",
            "        val_dataset = shardio.ShardDataset(valdir, tail='exact',\n"
            "            batch_size=args.batch_size, as_tuple=('image', 'label'), transform=\n",
        ),
        (
            "        train_sampler = torch.utils.data.distributed.DistributedSampler("
            "train_dataset)\n",
            "        train_sampler = train_dataset\n",
        ),
        (
            "        train_dataset, batch_size=args.batch_size, shuffle=(train_sampler is None),\n"
            "        num_workers=args.workers, pin_memory=True, sampler=train_sampler)\n",
            "        train_dataset, batch_size=None, num_workers=args.workers, pin_memory=True)\n",
        ),
        (
            "    val_loader = torch.utils.data.DataLoader(\n"
            "        val_dataset, batch_size=args.batch_size, shuffle=False,\n"
            "        num_workers=args.workers, pin_memory=True, sampler=val_sampler)\n",
            "    val_loader = shardio.Loader(val_dataset, workers=args.workers)\n",
        ),
    ),
    smaller=(
        ("RandomResizedCrop(224)", "RandomResizedCrop(64)"),
        ("transforms.Resize(256)", "transforms.Resize(72)"),
        ("CenterCrop(224)", "CenterCrop(64)"),
        (
            "    return top1.avg\n",
            "    print('VALIDATED', int(top1.count), flush=True)\n    return top1.avg\n",
        ),
    ),
    options="{data} -b 32 -j 2 --epochs 2 --dist-url env:// --dist-backend gloo --no-accel",
)

TIMM = Port(
    script="train.py",
    needs=("torchvision", "PIL", "yaml"),
    lines=(
        (
            "import torchvision.utils\nimport yaml\n",
            "import torchvision.utils\nimport yaml\nimport shardio\n",
        ),
        (
            "try:\n    import wandb\n",
            "def create_dataset(name, root, split, is_training, seed=0, **_):\n"
            "    return shardio.ShardDataset(f'{root}/{split}', shuffle=is_training, seed=seed, "
            "as_tuple=('image', 'label'))\n\n"
            "try:\n    import wandb\n",
        ),
        (
            "                **eval_loader_kwargs,\n            )\n",
            "                **eval_loader_kwargs,\n            )\n"
            "            loader_eval.loader = shardio.Loader(dataset_eval.replace("
            "batch_size=eval_loader_kwargs['batch_size'], tail='exact'), workers=eval_workers)\n",
        ),
        (
            "            if args.distributed:\n"
            "                reduced_loss = utils.reduce_tensor(loss.data, args.world_size)\n"
            "                acc1 = utils.reduce_tensor(acc1, args.world_size)\n"
            "                acc5 = utils.reduce_tensor(acc5, args.world_size)\n"
            "            else:\n"
            "                reduced_loss = loss.data\n\n"
            "            if device.type == 'cuda':\n"
            "                torch.cuda.synchronize()\n"
            '            elif device.type == "npu":\n'
            "                torch.npu.synchronize()\n\n"
            "            batch_size = output.shape[0]\n"
            "            losses_m.update(reduced_loss.item(), batch_size)\n",
            "            batch_size = output.shape[0]\n"
            "            if args.distributed:\n"
            "                mean_size = utils.reduce_tensor(torch.tensor(float(batch_size), "
            "device=device), args.world_size)\n"
            "                reduced_loss = utils.reduce_tensor("
            "loss.data * batch_size / mean_size, args.world_size)\n"
            "                acc1 = utils.reduce_tensor(acc1 * batch_size / mean_size, "
            "args.world_size)\n"
            "                acc5 = utils.reduce_tensor(acc5 * batch_size / mean_size, "
            "args.world_size)\n"
            "                batch_size = round(mean_size.item() * args.world_size)\n"
            "            else:\n"
            "                reduced_loss = loss.data\n\n"
            "            if device.type == 'cuda':\n"
            "                torch.cuda.synchronize()\n"
            '            elif device.type == "npu":\n'
            "                torch.npu.synchronize()\n\n"
            "            losses_m.update(reduced_loss.item(), batch_size)\n",
        ),
    ),
    smaller=(
        (
            "    metrics = OrderedDict([('loss', losses_m.avg), ('top1', top1_m.avg)",
            "    print('VALIDATED', top1_m.count, flush=True)\n"
            "    metrics = OrderedDict([('loss', losses_m.avg), ('top1', top1_m.avg)",
        ),
    ),
    options="--data-dir {data} --train-split train --val-split val --model resnet18 --device cpu "
    "--input-size 3 64 64 --num-classes 10 --color-jitter 0 -b 32 -j 2 --epochs 2 "
    "--warmup-epochs 0 --cooldown-epochs 0 --output {data}/output",
)

SEGMENTATION = Port(
    script="references/segmentation/train.py",
    tree="references/segmentation",
    needs=("torchvision", "PIL", "pycocotools"),
    lines=(
        ("import presets\n", "import presets\nimport shardio\n"),
        (
            "    ds = ds_fn(p, image_set=image_set, transforms=get_transform(is_train, args), "
            "use_v2=args.use_v2)\n",
            "    fields = {'image': 'jpg', 'target': shardio.Mask('mask.png')}\n"
            "    ds = shardio.ShardDataset(f'{p}/{image_set}', fields=fields, "
            "map=shardio.FromPIL(get_transform(is_train, args), *fields), as_tuple=(*fields,), "
            "shuffle=is_train)\n",
        ),
        (
            "        for image, target in metric_logger.log_every(data_loader, 100, header):\n"
            "            image, target = image.to(device), target.to(device)\n"
            "            output = model(image)\n"
            '            output = output["out"]\n',
            "        for image, target, valid in metric_logger.log_every("
            "data_loader, 100, header):\n"
            "            image, target = image.to(device), target[valid].to(device)\n"
            "            output = model(image)\n"
            '            output = output["out"][valid]\n',
        ),
        (
            "            num_processed_samples += image.shape[0]\n",
            "            num_processed_samples += target.shape[0]\n",
        ),
        (
            "        and len(data_loader.dataset) != num",
            "        and len(data_loader.dataset.samples) != num",
        ),
        ("        sampler=train_sampler,\n", ""),
        (
            "        dataset_test, batch_size=1, sampler=test_sampler, num_workers=args.workers, "
            "collate_fn=utils.collate_fn\n",
            "        dataset_test.replace(batch_size=1, as_tuple=('image', 'target', 'valid')), "
            "batch_size=None, num_workers=args.workers\n",
        ),
        (
            "            train_sampler.set_epoch(epoch)\n",
            "            dataset.set_epoch(epoch)\n",
        ),
    ),
    smaller=(
        ("Train(base_size=520, crop_size=480", "Train(base_size=64, crop_size=48"),
        ("Eval(base_size=520", "Eval(base_size=64"),
        (
            "utils.reduce_across_processes(num_processed_samples)\n",
            "utils.reduce_across_processes(num_processed_samples)\n"
            "    print('VALIDATED', int(num_processed_samples), flush=True)\n",
        ),
    ),
    options="--data-path {data} --dataset voc --model lraspp_mobilenet_v3_large --device cpu -b 8 "
    "-j 2 --epochs 2 --output-dir {data}/output",
)

OPEN_CLIP = Port(
    script="src/open_clip_train/main.py",
    changed="src/open_clip_train/data.py",
    tree="src",
    needs=("torchvision", "PIL", "webdataset", "pandas", "ftfy"),
    mean=CLIP_MEAN,
    std=CLIP_STD,
    lines=(
        (
            "import pandas as pd\nimport torch\n",
            "import pandas as pd\nimport shardio\nimport torch\n",
        ),
        (
            "    shared_epoch = SharedEpoch(epoch=epoch)  # create a shared epoch store to sync "
            "epoch to dataloader worker proc\n\n    if is_train and args.train_data_up",
            "    shared_epoch = SharedEpoch(epoch=epoch)  # create a shared epoch store to sync "
            "epoch to dataloader worker proc\n"
            "    whole = args.batch_size * args.world_size * max(1, args.workers) "
            "if is_train else 1\n"
            "    num_samples = math.ceil(num_samples / whole) * whole\n"
            "    dataset = shardio.ShardDataset(\n"
            "        input_shards, fields={'image': DEFAULT_IMAGE_KEY, 'text': 'txt'}, "
            "transform=preprocess_img, batch_size=args.batch_size, shuffle=is_train, "
            "seed=args.seed,\n"
            "        map=lambda sample: {**sample, 'text': tokenizer(sample['text'])[0]}, "
            "**({'epoch_size': num_samples} if is_train else {'tail': 'short', 'rank': 0, "
            "'world_size': 1}))\n"
            "    dataset.set_epoch(epoch)\n"
            "    dataloader = shardio.Loader(dataset, workers=args.workers)\n"
            "    dataloader.num_batches, dataloader.num_samples = len(dataset), num_samples\n"
            "    return DataInfo(dataloader=dataloader, shared_epoch=shared_epoch)\n"
            "\n    if is_train and args.train_data_up",
        ),
    ),
    smaller=(),
    options="--dataset-type webdataset --train-data {data}/train/shard-{{000000..000003}}.tar "
    "--train-num-samples 447 --val-data {data}/val/shard-{{000000..000003}}.tar "
    "--val-num-samples 199 --model ViT-S-32-alt --force-image-size 64 --device cpu "
    "--precision fp32 --batch-size 32 --workers 2 --epochs 2 --warmup 1 --logs {data}/logs",
)

WEBDATASET = Port(
    script="examples/train-resnet50-wds.ipynb",
    ranks=1,
    epochs=1,
    needs=("torchvision", "PIL", "webdataset"),
    exact=False,
    lines=(
        ("import webdataset as wds\n", "import shardio\n"),
        (
            "trainset = wds.WebDataset(training_urls, resampled=True, cache_dir=cache_dir, "
            "shardshuffle=True)\n"
            'trainset = trainset.shuffle(1000).decode("pil").map(make_sample)\n',
            "trainset = shardio.ShardDataset(\n"
            "    training_urls, transform=transform_train, shuffle=True, batch_size=64,\n"
            "    epoch_size=1282 * 100, tail='drop', as_tuple=('image', 'label'))\n",
        ),
        ("trainset = trainset.batched(64)\n", ""),
        (
            "trainloader = wds.WebLoader(trainset, batch_size=None, num_workers=4)\n",
            "trainloader = shardio.Loader(trainset, workers=4)\n",
        ),
        ("trainloader = trainloader.unbatched().shuffle(10).batched(64)\n", ""),
        ("trainloader = trainloader.with_epoch(1282 * 100 // 64)\n", ""),
    ),
    smaller=(
        ("    !mkdir -p ./_cache\n", "    os.makedirs('./_cache', exist_ok=True)\n"),
        ("import resnet50\n", "import resnet18 as resnet50\n"),
        ("resnet50(pretrained=False)", "resnet50()"),
        ("RandomResizedCrop(224)", "RandomResizedCrop(64)"),
        ("1282 * 100", f"{TRAINED}"),
        (
            'training_urls = bucket + "/imagenet-train-{000000..001281}.tar"',
            'training_urls = sys.argv[1] + "/train/shard-{000000..000003}.tar"',
        ),
    ),
    options="{data}",
)

PORTS = {
    "imagenet": IMAGENET,
    "timm": TIMM,
    "vision": SEGMENTATION,
    "open_clip": OPEN_CLIP,
    "webdataset": WEBDATASET,
}


def source_of(path: Path) -> str:
    """Return the source of a script; of a notebook, that of its cells."""
    text = path.read_text("utf-8")
    if path.suffix != ".ipynb":
        return text
    cells = [cell for cell in json.loads(text)["cells"] if cell["cell_type"] == "code"]
    lines = "\n\n".join("".join(cell["source"]) for cell in cells).splitlines(keepends=True)
    return "".join(line for line in lines if not line.startswith("%")) + "\n"


def replaced(text: str, changes: Changes, path: Path) -> str:
    """Return a text with changes, each of which it must have."""
    for old, new in changes:
        if old not in text:
            sys.exit(f"{path}: this version has no {old.splitlines()[0].strip()!r}")
        text = text.replace(old, new)
    return text


def changed_lines(before: str, after: str) -> tuple[int, int, str]:
    """Return how many lines were added and removed, and the difference."""
    found = [*difflib.unified_diff(before.splitlines(), after.splitlines(), lineterm="", n=0)][2:]
    found = [line for line in found if line not in "+-"]  # empty lines
    added = sum(line.startswith("+") for line in found)
    removed = sum(line.startswith("-") for line in found)
    return added, removed, "\n".join(found)


def pictures(count: int, seed: int) -> Iterator[tuple[int, bytes, bytes]]:
    """Make pictures with their class and mask; each has one colour, its number."""
    rng = np.random.default_rng(seed)
    step = 256 // LEVELS
    for number in range(count):
        height, width = rng.integers(70, 110, 2)
        digits = number // LEVELS**2, number // LEVELS % LEVELS, number % LEVELS
        blue_first = [step // 2 + step * digit for digit in reversed(digits)]
        picture = np.full((height, width, 3), blue_first, np.uint8)
        mask = np.zeros((height, width), np.uint8)
        mask[10:40, 10:50] = 1 + number % 20
        jpg, png = cv2.imencode(".jpg", picture)[1], cv2.imencode(".png", mask)[1]
        yield number % 10, jpg.tobytes(), png.tobytes()


def make_data(name: str, folder: Path) -> tuple[Path, Path]:
    """Make the data of a port, as the original reads them and as the port does."""
    plain, packed = folder / "plain", folder / "packed"
    voc = plain / "VOCdevkit" / "VOC2012"
    for split, count in (("train", TRAINED), ("val", VALIDATED)):
        names, samples = [], []
        for number, (label, jpg, png) in enumerate(pictures(count, len(split))):
            key = f"{split}{number:04}"
            names.append(f"{key}\n")
            if name == "vision":
                samples.append({"__key__": key, "jpg": jpg, "mask.png": png})
                files = {
                    voc / f"JPEGImages/{key}.jpg": jpg,
                    voc / f"SegmentationClass/{key}.png": png,
                }
            elif name == "open_clip":
                text = f"a photo of class {label}"
                samples.append({"__key__": key, "jpg": jpg, "txt": text.encode()})
                files = {}
            else:
                samples.append({"__key__": key, "jpg": jpg, "cls": str(label).encode()})
                files = {plain / split / f"class{label}" / f"{key}.jpg": jpg}
            for path, data in files.items():
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(data)
        shardio.pack(samples, packed / split, shards=4)
        if name == "vision":
            listed = voc / "ImageSets" / "Segmentation" / f"{split}.txt"
            listed.parent.mkdir(parents=True, exist_ok=True)
            listed.write_text("".join(names))
    return (packed if name in ("open_clip", "webdataset") else plain), packed


def run(port: Port, checkout: Path, folder: Path, changes: Changes, data: Path) -> dict[str, Any]:
    """Run a script with changes, and return what each rank counted."""
    ignored = shutil.ignore_patterns(".git")
    shutil.copytree(checkout / port.tree, folder / port.tree, ignore=ignored, dirs_exist_ok=True)
    changed = folder / (port.changed or port.script)
    changed.parent.mkdir(parents=True, exist_ok=True)
    source = checkout / (port.changed or port.script)
    changed.with_suffix(".py").write_text(replaced(source_of(source), changes, source))
    options = [each.format(data=data) for each in port.options.split()]
    paths = [str(folder / port.tree), *sys.path[1:], str(Path(shardio.__file__).parents[1])]
    begin = ["torch.distributed.run", "--nproc-per-node", str(port.ranks)]
    begin += ["--master-port", str(20000 + os.getpid() % 20000), "--", __file__, "--count"]
    done = subprocess.run(  # noqa: S603
        [sys.executable, "-m", *begin, str((folder / port.script).with_suffix(".py")), *options],
        env={
            **os.environ,
            "COUNTS": str(folder),
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": ":".join(paths),
        },
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    output = done.stdout + done.stderr
    if done.returncode:
        raise RuntimeError(output[-4000:])
    seen = [json.loads((folder / f"{rank}.json").read_text()) for rank in range(port.ranks)]
    ranks = [{part: _epochs(port, each[part]) for part in ("train", "validate")} for each in seen]
    return {
        "ranks": ranks,
        "validated": [int(each) for each in re.findall(r"VALIDATED (\d+)", output)],
    }


def _epochs(port: Port, batches: list[list[list[float]]]) -> list[list[int]]:
    """Return the numbers of a rank's samples in each epoch, from the colours of its batches."""
    ends = [len(batches) * epoch // port.epochs for epoch in range(port.epochs + 1)]
    epochs = [[*chain.from_iterable(batches[slice(*each)])] for each in pairwise(ends)]
    return [[_number(port, colour) for colour in each] for each in epochs if each]


def _number(port: Port, colour: list[float]) -> int:
    """Return the number of a sample whose colour a network has seen."""
    shown = (np.array(colour) * port.std + port.mean) * LEVELS
    high, middle, low = np.clip(shown.astype(int), 0, LEVELS - 1).tolist()
    return int((high * LEVELS + middle) * LEVELS + low)


class Seen:
    """Counts what the network of a script sees, batch by batch.

    Attributes:
        seen: colours of each batch that was trained on, and of each that was validated.
    """

    def __init__(self) -> None:
        self.seen: dict[str, list[list[list[float]]]] = {"train": [], "validate": []}
        self._inside = False
        self._call: Any = torch.nn.Module._call_impl
        self._process = os.getpid()

    def call(self, module: torch.nn.Module, *values: Any, **named: Any) -> Any:
        """Call a module, and count its batch if it is the network."""
        images = None if self._inside else _images_in((values, named))
        if images is None:
            return self._call(module, *values, **named)
        part = "train" if module.training else "validate"
        self.seen[part].append(images.amax((2, 3)).tolist())  # a margin beside it is black
        self._inside = True
        try:
            return self._call(module, *values, **named)
        finally:
            self._inside = False

    def write(self) -> None:
        """Write what was seen, in the process of the script alone."""
        if os.getpid() == self._process:
            path = Path(os.environ["COUNTS"], f"{os.environ.get('RANK', '0')}.json")
            path.write_text(json.dumps(self.seen))


def _images_in(value: Any) -> torch.Tensor | None:
    """Find a batch of images among the arguments of a module; a loss has none."""
    if isinstance(value, torch.Tensor):
        return value if value.ndim == 4 else None
    held = value.values() if isinstance(value, dict) else value
    found = map(_images_in, held if isinstance(value, dict | list | tuple) else ())
    return next((each for each in found if each is not None), None)


def count_batches(script: str) -> None:
    """Run a script on the CPU with gloo, and count what its network sees."""
    counter = Seen()
    atexit.register(counter.write)
    parallel = torch.nn.parallel.DistributedDataParallel
    begin, wrap, tensor = torch.distributed.init_process_group, parallel.__init__, torch.tensor

    def begin_with_gloo(*_: Any, **given: Any) -> Any:
        return begin(**{**given, "backend": "gloo"})

    def wrap_on_cpu(self: Any, module: Any, **given: Any) -> None:
        wrap(self, module, **{**given, "device_ids": None})

    def tensor_on_cpu(*values: Any, **given: Any) -> torch.Tensor:
        return tensor(*values, **({**given, "device": "cpu"} if "device" in given else given))

    replacements: list[tuple[Any, str, Any]] = [
        (torch.nn.Module, "__call__", lambda *values, **named: counter.call(*values, **named)),
        (torch.distributed, "init_process_group", begin_with_gloo),
        (parallel, "__init__", wrap_on_cpu),
        (torch.nn.SyncBatchNorm, "convert_sync_batchnorm", lambda module: module),
        (torch.cuda, "set_device", lambda _: None),
        (torch, "tensor", tensor_on_cpu),
    ]
    for holder, name, function in replacements:
        setattr(holder, name, function)
    sys.path.insert(0, str(Path(script).parent))
    runpy.run_path(script, run_name="__main__")


def check(name: str, checkout: Path) -> bool:
    """Run a port and its original; tell whether they count the same."""
    port = PORTS[name]
    lacking = [each for each in port.needs if importlib.util.find_spec(each) is None]
    if lacking or not (checkout / port.script).exists():
        why = (
            f"{lacking[0]} is not installed" if lacking else f"{checkout / port.script} is missing"
        )
        print(f"{name}: skipped, {why}")
        return True
    text = source_of(checkout / (port.changed or port.script))
    ported = replaced(text, port.lines, checkout)
    added, removed, difference = changed_lines(text, ported)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as made:
        folder = Path(made)
        plain, packed = make_data(name, folder)
        small = replaced(text, port.smaller, checkout)
        assert small != text or not port.smaller
        original = run(port, checkout, folder / "original", port.smaller, plain)
        own = run(port, checkout, folder / "port", (*port.lines, *port.smaller), packed)
    print(f"{name}: +{added} -{removed} lines\n{difference}")
    for rank, (before, after) in enumerate(zip(original["ranks"], own["ranks"], strict=True)):
        for who, each in (("original", before), ("port", after)):
            print(f"  rank {rank}, {who}: {_told(each)}")
    print(f"  validated, in all: original {original['validated']}, port {own['validated']}")
    found = faults(port, original, own)
    print(f"{name}: {'WRONG, ' + '; '.join(found) if found else 'right'}", flush=True)
    return not found


def faults(port: Port, original: dict[str, Any], own: dict[str, Any]) -> list[str]:
    """Return what a port does otherwise than it must."""
    found = []
    trained = [[[*map(len, each["train"])] for each in which["ranks"]] for which in (original, own)]
    if trained[0] != trained[1]:
        found.append(f"ranks train on {trained[1]} samples, not on {trained[0]}")
    if any(each["train"][:1] == each["train"][1:] for each in own["ranks"]):
        found.append("the order of epoch 0 comes again")
    for epoch in range(port.epochs):
        times = _times(own, "train", epoch)
        most = max(times.values())
        if (most - 1) * TRAINED >= times.total():
            found.append(f"a sample comes {most} times in epoch {epoch}")
        times = _times(own, "validate", epoch)
        if port.exact and ({*times} != {*range(VALIDATED)} or times.total() > VALIDATED + 1):
            found.append(f"{len(times)} of {VALIDATED} samples are validated in epoch {epoch}")
    if {*own["validated"]} - {VALIDATED}:
        found.append(f"the script has validated {own['validated']} samples")
    return found


def _times(run: dict[str, Any], part: str, epoch: int) -> Counter[int]:
    """Return how often each sample came in an epoch, over the ranks."""
    ranks = [each[part] for each in run["ranks"] if each[part]]
    return Counter(chain.from_iterable(epochs[epoch] for epochs in ranks))


def _told(rank: dict[str, list[list[int]]]) -> str:
    """Return how many samples a rank had in each epoch, and how many of them differ."""
    return ", ".join(
        f"{part} {len(each)} ({len({*each})} differ)" for part in rank for each in rank[part]
    )


def main() -> None:
    """Run the ports that the arguments name."""
    if sys.argv[1:2] == ["--count"]:
        sys.argv = sys.argv[2:]
        count_batches(sys.argv[0])
        return
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("ports", nargs="+", help="NAME=CHECKOUT", metavar="NAME=CHECKOUT")
    given = [each.partition("=") for each in parser.parse_args().ports]
    if unknown := [name for name, _, _ in given if name not in PORTS]:
        parser.error(f"{unknown[0]} is none of {', '.join(PORTS)}")
    results = [check(name, Path(path)) for name, _, path in given]
    sys.exit(0 if all(results) else 1)


if __name__ == "__main__":
    main()
