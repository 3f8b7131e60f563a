"""Field types: values that say what the bytes of a field mean.

A type is asked for everything that depends on the meaning of bytes: how they decode, what a batch
of them holds, how values are encoded for packing, what `info` shows of them, what the crop of the
sample's picture does to them. No other part of shardio knows one type from another.

Which type a field has by default is a table by name, in shardio.fields.defaults. A user passes
types of their own as values, which workers receive with the dataset. Types use NumPy alone: making
tensors of what they decode is the task of shardio.reading.columns.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import wraps
from inspect import isfunction
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

from shardio.fields.boundary import decoder
from shardio.fields.probe import ImageInfo

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import numpy as np
    from numpy.typing import DTypeLike, NDArray

    from shardio.fields.geometry import View
    from shardio.fields.probe import Buffer
    from shardio.fields.summary import FieldSummary

LABEL_FIELD = "cls"
"""Name of the field that holds the class number of a sample, in text."""

PIXELS_FIELD = "rgb.npy"
"""Name, or end of the name, of fields that hold decoded pictures, uint8 [H, W, 3]."""

SHOWN_CHARACTERS = 60
"""Number of characters of a value that `info` shows."""

Geometry = Literal["leads", "follows"]


class Dense(NamedTuple):
    """A batch of numbers whose dtype and shape are the same for all members of a type.

    Attributes:
        dtype: dtype of the batch.
        shape: shape of one value.
    """

    dtype: DTypeLike
    shape: tuple[int, ...] = ()


Batching = Literal["found", "stack", "list", "padded"] | Dense
_LOOKING = (
    *("decode", "decode_verified", "decode_rows", "follow", "probe", "check", "preview", "picture"),
    "summarize",
)
_NATIVELY = ("decode", "decode_verified", "probe", "follow")
_OF_DATA = ("decode", "decode_verified", "probe", "check", "preview")


def _given_bytes(method: Callable[..., Any]) -> Callable[..., Any]:
    """Pass data as bytes, whose methods a user knows, in place of a view of memory."""

    @wraps(method)
    def call(self: FieldType, data: Buffer, *args: Any, **options: Any) -> Any:
        return method(self, data if isinstance(data, bytes) else bytes(data), *args, **options)

    return call


def split_names(fields: str) -> tuple[tuple[str, ...], bool]:
    """Return the names of alternative fields, and whether a sample may lack all of them.

    Args:
        fields: names with semicolons between them, and a question mark at the end of those that
            may be lacking, as "depth.png;depth.npy?".
    """
    text = fields.strip()
    names = text.removesuffix("?").split(";")
    return tuple(name for part in names if (name := part.strip().lower())), text.endswith("?")


@dataclass(frozen=True)
class FieldType:
    """The meaning of a field's bytes.

    A subclass needs `decode` alone:

        class Pcm(shardio.FieldType):
            def decode(self, data):
                with wave.open(io.BytesIO(data)) as file:
                    return np.frombuffer(file.readframes(file.getnframes()), np.int16)

        ds = shardio.ShardDataset("speech", fields={"audio": Pcm("wav"), "text": "txt"})

    A type is a value: it is hashable, pickles, and equals others of its class with the same
    attributes. A type with parameters is a frozen dataclass. Whatever exception its methods raise
    for the bytes that they look at becomes a CodecError, which names shard, key and field.

    Attributes:
        fields: names of the fields that are read, alternatives with semicolons between them. A
            question mark at the end means that a sample may lack them.
        name: name of the type, as `info` shows it; by default the name of the class.
        names: last dot components (or longer ends) of the names of fields that have this type by
            default; used for the types of shardio.fields.defaults alone.
        magic: field names by the bytes that data of this type start with.
        holds: description of what a batch holds.
        batching: way in which the values of a batch are joined. "stack" makes one tensor of arrays
            of one shape and dtype, and Dense one of known shape and dtype; "list" makes a list;
            "padded" makes a tensor of arrays that differ in their last axis, with zeros behind the
            shorter ones, and adds their lengths as `NAME_lengths`; arrays whose attributes `rate`
            differ are refused. "found" stacks arrays and
            tensors of numbers, does so for each value of a dictionary, and makes a list of
            anything else.
        geometry: part in the geometry of a sample. "leads" is for pictures, uint8
            [H, W, channels]: the first one of a sample decides its crop. "follows" is for values
            that `follow` crops.
        channels: channels of pictures: 1 for gray, 3 for RGB, 4 for RGBA.
        crop: "shared" gives pictures of the type the crop of the sample's first one; "own" gives
            them a random crop of their own.
        image_file: whether the data are a JPEG, PNG, WebP or BMP file that decodes as an image.
        preview_bytes: number of bytes that `preview` needs; None if it needs all.
        mirrors: whether `follow` can mirror values.
        fills: whether `follow` has a value for the margin that a transform leaves beside a picture.
        sized: whether indexes record what `probe` finds, so that crops are chosen before the data
            are read. It must follow from the data alone, so a subclass with a `probe` of its own
            is not sized unless it says so.
        native: kind of data that the native core decodes to what `decode` and `follow` make of
            them: "picture" for image files, "values" for masks, "rows" for
            arrays, "number" for whole numbers in text; None for others. A subclass with a method
            of its own for that has none unless it says so.
    """

    fields: str = ""

    name: ClassVar[str] = "field"
    names: ClassVar[frozenset[str]] = frozenset()
    magic: ClassVar[Mapping[bytes, str]] = {}
    holds: ClassVar[str] = "values"
    batching: ClassVar[Batching] = "found"
    geometry: ClassVar[Geometry | None] = None
    channels: ClassVar[int] = 3
    crop: ClassVar[Literal["shared", "own"]] = "shared"
    image_file: ClassVar[bool] = False
    preview_bytes: ClassVar[int | None] = None
    mirrors: ClassVar[bool] = True
    fills: ClassVar[bool] = True
    sized: ClassVar[bool] = False
    native: ClassVar[Literal["picture", "values", "rows", "number"] | None] = None

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        own = vars(cls)
        if "name" not in own:
            cls.name = cls.__name__.lower()
        if "holds" not in own:
            listed = cls.batching in ("found", "list")
            cls.holds = f"values of {cls.name}" if listed else "a tensor"
        if "probe" in own and "sized" not in own:
            cls.sized = False
        if "native" not in own and not own.keys().isdisjoint(_NATIVELY):
            cls.native = None
        ours = cls.__module__.partition(".")[0] == "shardio"
        for method in _LOOKING:
            found = own.get(method)
            if isinstance(found, staticmethod):
                setattr(cls, method, staticmethod(decoder(found.__func__)))
            elif isfunction(found):
                takes_bytes = not ours and method in _OF_DATA
                setattr(cls, method, decoder(_given_bytes(found) if takes_bytes else found))

    @property
    def alternatives(self) -> tuple[str, ...]:
        """The names of the fields that are read, in order of preference."""
        return split_names(self.fields)[0]

    @property
    def optional(self) -> bool:
        """Whether a sample may lack the field."""
        return split_names(self.fields)[1]

    @property
    def in_rows(self) -> bool:
        """Whether `decode_rows` may decode many members at once."""
        return type(self).decode_rows is not FieldType.decode_rows

    def limited(self, max_pixels: int) -> FieldType:
        """Return the type with a limit on the number of pixels of an image, if it has one."""
        del max_pixels
        return self

    def decode(self, data: Buffer) -> Any:
        """Decode one member.

        Args:
            data: data of the member. A type of yours gets bytes. A type of shardio gets a buffer
                that is valid during the call, so that the value must not refer to it.

        Raises:
            CodecError: the bytes do not decode.
        """
        raise NotImplementedError(f"{type(self).__name__} has no method decode")

    def decode_verified(self, data: Buffer) -> Any:
        """Decode one member whose data have the checksum that an index recorded.

        Raises:
            CodecError: the bytes do not decode.
        """
        return self.decode(data)

    def decode_rows(
        self, block: NDArray[np.uint8], sizes: NDArray[np.int64]
    ) -> NDArray[np.generic] | None:
        """Decode many members at once, to the same values as one by one.

        Args:
            block: data of the members, uint8 [n, w], a member a row, padded behind its end.
            sizes: number of bytes of each member, int64 [n].

        Returns:
            Values [n, …], with those of a member contiguous, or None if the members are not alike.
        """
        del block, sizes
        return None

    def contradiction(self, recorded: FieldType) -> str | None:
        """Say why data that were packed with another type cannot be read with this one.

        Args:
            recorded: type that the manifest records.

        Returns:
            Reason, or None if the data can be read.
        """
        del recorded
        return None

    def follow(self, value: Any, view: View | None) -> Any:
        """Apply the crop of the sample's picture to a decoded value.

        Args:
            value: result of `decode`.
            view: part of the picture that is shown, which may be all of it; None if the sample
                has no picture.

        Raises:
            CodecError: the value does not belong to a picture of this size.
        """
        del view
        return value

    def resized(self, data: Buffer, view: View) -> bytes | None:
        """Return what is stored instead of data whose picture is stored at another size.

        Args:
            data: data of a member.
            view: part of the picture that is stored; without a crop it keeps its size.

        Returns:
            The new data, or None if the data stay as they are.

        Raises:
            NotImplementedError: the data cannot follow exactly.
            CodecError: they do not belong to a picture of this size.
        """
        del data
        if self.geometry == "follows" and view.crop is not None:
            raise NotImplementedError(f"{type(self).__name__} has no method resized")
        return None

    def blank(self, view: View | None) -> NDArray[np.generic] | None:
        """Return zeros in place of the value of a sample that lacks the field.

        A batch in which no sample has the field holds them. None if their shape is not known
        without a value; the batch then holds an empty tensor, [B, 0].

        Args:
            view: see follow.
        """
        del view
        return None

    def probe(self, data: Buffer) -> ImageInfo | None:
        """Read height, width and orientation of a picture from its header; None for other data.

        Raises:
            CodecError: the header is not sound.
        """
        del data
        return None

    def check(self, data: Buffer, *, deep: bool) -> None:
        """Check data, as `verify` does.

        Args:
            data: data of a member.
            deep: whether to decode the data; otherwise only what costs little is checked.

        Raises:
            CodecError: the data are not sound.
        """
        if deep:
            self.decode(data)

    def for_field(self, field: str) -> FieldType:
        """Return the type as it encodes the values of one of its fields.

        Args:
            field: name of the field, whose end may choose the format of the data.
        """
        del field
        return self

    def summarize(self, value: Any, view: View | None) -> FieldSummary | None:
        """Summarize a value for `verify --deep`.

        If a type has this method, its data are checked without `deep`, decoded and summarized.

        Args:
            value: result of `decode`, or of `follow` with the whole picture.
            view: whole picture of the sample; None if the sample has none, or one that is not
                sound.

        Returns:
            Summary, or None if there is nothing to tell.

        Raises:
            CodecError: the value is not sound.
        """
        del value, view
        return None

    def encode(self, value: Any) -> bytes:
        """Encode a value for packing: the inverse of `decode`.

        Raises:
            NotImplementedError: the type encodes no values.
            Exception: the type cannot hold the value.
        """
        raise NotImplementedError(f"{type(self).__name__} has no method encode")

    def preview(self, data: Buffer) -> str:
        """Describe data in one line: dtype and shape of an array, otherwise the value, cut short.

        Args:
            data: data of a member, at most the first `preview_bytes`.

        Raises:
            CodecError: the bytes do not decode.
        """
        value = self.decode(data)
        if hasattr(value, "dtype") and hasattr(value, "shape"):
            return f"{value.dtype} {[*value.shape]}"
        return repr(value)[:SHOWN_CHARACTERS]

    @property
    def is_drawn(self) -> bool:
        """Whether `picture` draws data."""
        return self.geometry == "leads" or type(self).picture is not FieldType.picture

    def picture(self, data: Buffer) -> NDArray[np.uint8]:
        """Draw data as a picture, uint8 [H, W, 3], for the contact sheet of `info`.

        Raises:
            CodecError: the bytes do not decode.
        """
        found: NDArray[np.uint8] = self.decode(data)
        return np.repeat(found, 3, axis=2) if self.channels == 1 else found[..., :3]

    @classmethod
    def name_of(cls, data: Buffer) -> str | None:
        """Name the field that holds such data, by their magic bytes; None if they have none."""
        head = bytes(data[:16])
        return next((name for magic, name in cls.magic.items() if head.startswith(magic)), None)


def picture_info(type_: FieldType, data: Buffer) -> ImageInfo:
    """Read the size of a picture from its header, or decode one whose type has no `probe`.

    Raises:
        CodecError: the header is not sound, or the bytes do not decode to rows and columns.
    """
    info = type_.probe(data)
    return _decoded_info(type_, data) if info is None else info


@decoder
def _decoded_info(type_: FieldType, data: Buffer) -> ImageInfo:
    height, width = type_.decode(data).shape[:2]
    return ImageInfo(format=type_.name, height=height, width=width)


class Bytes(FieldType):
    """Bytes as they are; the type of fields whose names tell nothing."""

    holds = "bytes"
    batching = "list"
    preview_bytes = 16

    def decode(self, data: Buffer) -> bytes:
        """Copy the bytes."""
        return bytes(data)

    def check(self, data: Buffer, *, deep: bool) -> None:
        """Accept any bytes."""

    def preview(self, data: Buffer) -> str:
        """Show the first bytes in hexadecimal."""
        return bytes(data).hex(" ")


BYTES = Bytes()
