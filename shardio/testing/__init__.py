"""Helpers for tests and contract suites, for shardio and its users.

A contract suite is a class of pytest tests. A subclass names what to test, and pytest runs it:

    class TestPcm(shardio.testing.FieldTypeContract):
        field_type = Pcm("wav")
        values = (np.arange(4, dtype=np.int16), np.ones(4, np.int16))

Importing this module loads neither pytest nor torch nor OpenCV; the tests do that need them.
"""

from __future__ import annotations

import hashlib
import io
import multiprocessing
import os
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from unittest import mock

import numpy as np

from shardio.errors import CodecError, PackError, quoted
from shardio.fields.base import Dense, FieldType
from shardio.fields.geometry import Crop, View
from shardio.packing.pack import pack
from shardio.packing.sources import FromRange, Problem, Source, SourceSample
from shardio.testing.mapping import check_map as check_map
from shardio.testing.storage import StorageContract as StorageContract

if TYPE_CHECKING:
    from typing_extensions import Self

Damage = Literal["flip", "truncate", "swap", "double", "zero", "drop"]
_BLOCK = 512


def make_images(
    folder: Path, *, classes: int, per_class: int, size: int = 8, extension: str = "png"
) -> Path:
    """Write small images of random pixels, a subfolder a class.

    Args:
        folder: path of the folder, which is made.
        classes: number of subfolders; 0 puts the images into the folder itself.
        per_class: number of images in each.
        size: height and width in pixels.
        extension: "png", "jpg", "webp" or "bmp".

    Returns:
        The folder.
    """
    import cv2  # noqa: PLC0415  as above

    numbers = np.random.default_rng(0)
    for label in range(max(classes, 1)):
        inside = folder / f"class{label:02d}" if classes else folder
        inside.mkdir(parents=True, exist_ok=True)
        for number in range(per_class):
            pixels = numbers.integers(0, 256, (size, size, 3), dtype=np.uint8)
            cv2.imwrite(str(inside / f"image{number:04d}.{extension}"), pixels)
    return folder


def make_shard(path: Path, samples: Mapping[str, Mapping[str, bytes]]) -> Path:
    """Write a shard with Python's tarfile, as others make them.

    Args:
        path: path of the tar.
        samples: bytes by field, by key.

    Returns:
        The path.
    """
    with tarfile.open(path, "w") as archive:
        for key, sample in samples.items():
            for field, data in sample.items():
                info = tarfile.TarInfo(f"{key}.{field}")
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
    return path


def read_members(folder: Path) -> dict[str, bytes]:
    """Read the members of all shards in a folder with Python's tarfile, by name."""
    found = {}
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as archive:
            for member in archive.getmembers():
                stream = archive.extractfile(member)
                found[member.name] = stream.read() if stream is not None else b""
    return found


def digests(folder: Path) -> dict[str, str]:
    """Compute the hexadecimal SHA-256 of all files below a folder, by path relative to it."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def damaged(data: bytes, damage: Damage, numbers: np.random.Generator) -> bytes:
    """Damage the contents of a file at a random place.

    Args:
        data: the contents, at least 1,024 bytes where blocks are changed.
        damage: "flip" one bit; "truncate" at any byte; "swap" two blocks of 512 bytes, "double",
            "zero" or "drop" one.
        numbers: generator of the place.

    Returns:
        Other contents, but for blocks that are swapped with equal ones or zero already.
    """
    changed = bytearray(data)
    if damage == "flip":
        changed[numbers.integers(len(data))] ^= 1 << int(numbers.integers(8))
        return bytes(changed)
    if damage == "truncate":
        return data[: numbers.integers(len(data))]
    one, other = (int(at) * _BLOCK for at in numbers.integers(len(data) // _BLOCK, size=2))
    block = data[one : one + _BLOCK]
    if damage == "swap":
        changed[one : one + _BLOCK] = data[other : other + _BLOCK]
        changed[other : other + _BLOCK] = block
    else:
        changed[one : one + _BLOCK] = {"double": 2 * block, "zero": bytes(_BLOCK), "drop": b""}[
            damage
        ]
    return bytes(changed)


_DAMAGES = 200


class FieldTypeContract:
    """Tests of a field type.

    Attributes:
        field_type: type to test, with the name of a field.
        values: two or more values that one batch can hold.
        files: data that decode to the values; needed only if the type encodes no values.
        picture: height and width of the picture that values without a size of their own follow.
    """

    field_type: FieldType
    values: Sequence[Any]
    files: Sequence[bytes] = ()
    picture: tuple[int, int] = (48, 64)

    def test_an_encoded_value_decodes_to_itself(self) -> None:
        """Whatever buffer holds the data, verified or not."""
        type_, buffers = self.field_type, (bytes, bytearray, memoryview)
        assert len(self.values) > 1
        for value, data in zip(self.values, self._data(), strict=True):
            for buffer in buffers:
                assert _is_same(type_.decode(buffer(data)), value)
                assert _is_same(type_.decode_verified(buffer(data)), value)
            assert not type_.magic or type_.name_of(data) is not None

    def test_a_value_keeps_nothing_of_the_buffer(self) -> None:
        """The buffer belongs to the caller, who fills it anew while the value is in use."""
        for value, data in zip(self.values, self._data(), strict=True):
            for decode in (self.field_type.decode, self.field_type.decode_verified):
                buffer = bytearray(data)
                found = decode(memoryview(buffer).toreadonly())
                buffer[:] = bytes(255 - byte for byte in data)
                assert _is_same(found, value)

    def test_sound_data_pass_checks_and_have_a_preview(self) -> None:
        """The preview gets as many bytes as the type asks for."""
        for data in self._data():
            self.field_type.check(data, deep=False)
            self.field_type.check(data, deep=True)
            assert isinstance(self.field_type.preview(data[: self.field_type.preview_bytes]), str)

    def test_workers_receive_an_equal_type(self) -> None:
        """With the same hash, as it was sent to them."""
        received = ForkingPickler.loads(ForkingPickler.dumps(self.field_type))
        assert received == self.field_type
        assert hash(received) == hash(self.field_type)
        assert received.alternatives == self.field_type.alternatives

    def test_damaged_data_raise_codec_errors_alone(self) -> None:
        """Every method that looks at data is called with damaged and with random bytes."""
        type_ = self.field_type
        looks: tuple[Callable[[bytes], object], ...] = (
            type_.decode,
            type_.decode_verified,
            type_.probe,
            type_.preview,
            type_.name_of,
            lambda data: type_.check(data, deep=False),
        )
        for data in self._damaged():
            for look in looks:
                with suppress(CodecError):
                    look(data)

    def test_values_that_are_no_values_of_the_type_are_not_encoded(self) -> None:
        """An object of no known class is refused."""
        try:
            encoded = self.field_type.encode(object())
        except Exception:  # of whichever kind, it stops the pack with the sample's name
            return
        raise AssertionError(f"an object is encoded as {quoted(encoded)}")

    def test_many_at_once_are_decoded_as_one_by_one(self) -> None:
        """Damaged members among them are not decoded, or as they are alone."""
        if not self.field_type.in_rows:
            return
        assert any(self._decode_rows([data, data]) for data in self._data())
        self._decode_rows(self._data())
        for data in self._damaged():
            if data:
                self._decode_rows([self._data()[0], data])

    def test_a_batch_holds_what_the_type_promises(self, tmp_path: Path) -> None:
        """In order, of the promised dtype and shape, without a change to any value."""
        from shardio.reading.dataset import ShardDataset  # noqa: PLC0415  as above

        type_, count = self.field_type, len(self.values)
        field = type_.alternatives[0]
        samples = {f"{number:03d}": {field: data} for number, data in enumerate(self._data())}
        shard = make_shard(tmp_path / "a.tar", samples)
        (batch,) = ShardDataset(shard, fields={"entry": type_}, batch_size=count)
        found, batching = batch["entry"], type_.batching
        if batching == "list":
            assert isinstance(found, list)
        elif batching != "found":
            found = np.asarray(found)
        if isinstance(batching, Dense):
            assert found.dtype == batching.dtype
            assert found.shape == (count, *batching.shape)
        if batching == "padded":
            lengths = batch["entry_lengths"].tolist()
            found = [one[..., :length] for one, length in zip(found, lengths, strict=True)]
        for one, value in zip(found, self.values, strict=True):
            expected = np.moveaxis(value, -1, 0) if type_.geometry == "leads" else value
            assert _is_same(one, expected)

    def test_values_follow_the_crop_of_a_picture(self) -> None:
        """The whole picture changes nothing, and neither does mirroring it twice."""
        type_ = self.field_type
        if type_.geometry != "follows":
            return
        for data in self._data():
            value, info = type_.decode(data), type_.probe(data)
            height, width = (info.height, info.width) if info else self.picture
            whole, mirrored = (
                View(
                    height=height,
                    width=width,
                    size=(height, width),
                    crop=Crop(0, 0, height, width, flip=flip),
                )
                for flip in (False, True)
            )
            assert _is_same(type_.follow(value, whole), value)
            if type_.mirrors:
                assert _is_same(type_.follow(type_.follow(value, mirrored), mirrored), value)

    def _data(self) -> list[bytes]:
        return [*self.files] or [self.field_type.encode(value) for value in self.values]

    def _damaged(self) -> Iterator[bytes]:
        numbers = np.random.default_rng(0)
        yield from (b"", b"\0", b"\xff" * 100)
        for data in filter(None, self._data()):
            for _ in range(_DAMAGES):
                yield numbers.bytes(int(numbers.integers(1, 100)))
                yield damaged(data, "flip", numbers)
                yield damaged(data, "truncate", numbers)

    def _decode_rows(self, rows: Sequence[bytes]) -> bool:
        """Decode data at once and compare; False if they are not decoded at once."""
        sizes = np.array([len(row) for row in rows], np.int64)
        block = np.zeros((len(rows), int(sizes.max())), np.uint8)
        for number, row in enumerate(rows):
            block[number, : len(row)] = np.frombuffer(row, np.uint8)
        found = self.field_type.decode_rows(block, sizes)
        if found is None:
            return False
        assert len(found) == len(rows)
        for value, row in zip(found, rows, strict=True):
            assert _is_same(value, self.field_type.decode(row))
        return True


def _is_same(one: Any, other: Any) -> bool:
    """Tell whether values are equal, arrays and tensors in shape and dtype too."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_is_same(one[key], other[key]) for key in one)
    if not hasattr(one, "shape") and not hasattr(other, "shape"):
        return type(one) is type(other) and bool(one == other)
    first, second = np.asarray(one), np.asarray(other)
    same_type = first.dtype == second.dtype or not hasattr(other, "dtype")
    return same_type and bool(np.array_equal(first, second, equal_nan=first.dtype.kind in "fc"))


class SourceContract:
    """Tests of what a source promises to `shardio.pack`.

    Subclass it in a module of tests, as `class TestMine(SourceContract)`, and define `write`,
    `write_faulty` and `open`.
    """

    def write(self, folder: Path) -> Mapping[str, bytes]:
        """Write the data of at least three samples.

        Args:
            folder: empty folder for the data.

        Returns:
            Members of a shard of all samples, by name, in the source's order.
        """
        raise NotImplementedError

    def write_faulty(self, folder: Path) -> str:
        """Write the data of some samples, one of which cannot be packed.

        Args:
            folder: empty folder for the data.

        Returns:
            A text that an error must contain to name the place of that sample.
        """
        raise NotImplementedError

    def open(self, folder: Path) -> Source:
        """Open the source of the data in a folder, with labels if it has any."""
        raise NotImplementedError

    def test_it_says_what_it_is(self, tmp_path: Path) -> None:
        """Name, root and classes are what the protocol asks for."""
        self.write(tmp_path)
        source = self.open(tmp_path)
        assert isinstance(source, Source)
        assert source.name
        assert Path(source.root).is_dir()
        assert source.classes is None or len({*source.classes}) == len(source.classes) > 0

    def test_each_listing_has_the_same_samples(self, tmp_path: Path) -> None:
        """Their order is the same too, and no two have one key."""
        self.write(tmp_path)
        first = self._list(tmp_path)
        keys = {sample.key for sample in first if isinstance(sample, SourceSample)}
        assert len(keys) == len(first) >= 3
        assert self._list(tmp_path) == first

    def test_the_order_in_which_folders_are_listed_does_not_matter(self, tmp_path: Path) -> None:
        """A file system may list a folder in any order."""
        self.write(tmp_path)
        first = self._list(tmp_path)
        for backwards in (False, True):
            with _sorted_listings(backwards=backwards):
                assert self._list(tmp_path) == first

    def test_locale_and_process_do_not_matter(self, tmp_path: Path) -> None:
        """Another process has another hash of each text, and perhaps another encoding."""
        self.write(tmp_path)
        other = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONHASHSEED": "17"}
        with (
            mock.patch.dict(os.environ, other),
            multiprocessing.get_context("spawn").Pool(1) as pool,
        ):
            elsewhere = pool.apply(self._list, (tmp_path,))
        assert elsewhere == self._list(tmp_path)

    def test_members_are_the_data_byte_for_byte(self, tmp_path: Path) -> None:
        """So are their names and their order."""
        data, out = _made(tmp_path / "data"), tmp_path / "out"
        members = self.write(data)
        pack(self.open(data), out, shards=1, shuffle=False, jobs=1)
        assert [*read_members(out).items()] == [*members.items()]

    def test_tasks_of_its_samples_run_in_other_processes(self, tmp_path: Path) -> None:
        """They pickle, and the shards are the same."""
        self.write(_made(tmp_path / "data"))
        for jobs in (1, 2):
            pack(self.open(tmp_path / "data"), tmp_path / f"{jobs}", shards=3, jobs=jobs)
        assert digests(tmp_path / "1") == digests(tmp_path / "2")

    def test_a_problem_names_its_place(self, tmp_path: Path) -> None:
        """The error that stops a pack says where it is."""
        place = self.write_faulty(_made(tmp_path / "data"))
        try:
            pack(self.open(tmp_path / "data"), tmp_path / "out", shards=1, jobs=1)
        except PackError as error:
            assert place in (error.where or "")  # noqa: PT017  without pytest
        else:
            raise AssertionError("the sample is packed")

    def test_a_change_of_what_it_lists_is_noticed(self, tmp_path: Path) -> None:
        """Parts of files have a checksum or a stamp; of whole files the time of change tells."""
        self.write(tmp_path)
        for sample in self._list(tmp_path):
            for _, origin in getattr(sample, "fields", ()):
                if isinstance(origin, FromRange):
                    assert (origin.checksum, origin.stamp) != (None, None)

    def _list(self, folder: Path) -> list[SourceSample | Problem]:
        return [*self.open(folder).samples()]


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


@contextmanager
def _sorted_listings(*, backwards: bool) -> Iterator[None]:
    """Have the functions of `os`, which pathlib and glob use, list folders in order of names."""
    scandir, listdir = os.scandir, os.listdir

    class Entries(list[Any]):
        def __enter__(self) -> Self:
            return self

        def __exit__(self, *_: object) -> None:
            self.clear()

    def scan(path: Any = ".") -> Entries:
        return Entries(sorted(scandir(path), key=lambda entry: entry.name, reverse=backwards))

    def list_(path: Any = ".") -> list[Any]:
        return sorted(listdir(path), reverse=backwards)

    with mock.patch("os.scandir", scan), mock.patch("os.listdir", list_):
        yield
