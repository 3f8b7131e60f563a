"""YOLO's datasets: a folder `images`, and a folder `labels` with a text file for each image.

The text is packed as it is; shardio.fields.yolo has the rule of its lines. An image without a text
file is one without boxes, as in YOLO's rules.

The names of classes come from `data.yaml` or `classes.txt`. Of YAML only a plain list or mapping of
names is read, in one line or in several; anything else is refused.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, ClassVar, NamedTuple

from shardio.errors import CodecError, PackError, SituationError, argument, counted, quoted
from shardio.fields.annotations import Boxes
from shardio.fields.base import FieldType
from shardio.fields.yolo import parse_yolo
from shardio.packing.sources.base import (
    FromMemory,
    Problem,
    SourceField,
    SourceSample,
    UnpackableError,
    log_notice,
    place_in,
)
from shardio.packing.sources.folder import FolderSource, find_classes, images_in
from shardio.packing.sources.reader import read_small
from shardio.packing.sources.rules import FieldRule, check_classes, parse_fields

if TYPE_CHECKING:
    from shardio.packing.options import PackOptions

_FIELD = "txt"
_NAME_FILES = ("data.yaml", "data.yml", "classes.txt", "labels/classes.txt")
_TEXTS = parse_fields(_FIELD)
_SPLIT = re.compile(r"(train|val|valid|validation|test|dev)[_-]?\d*", re.IGNORECASE)


class _Part(NamedTuple):
    """A pair of folders, by their paths from the source's root.

    Attributes:
        images: folder of images.
        labels: folder of texts.
        prefix: beginning of the keys of its samples.
    """

    images: str
    labels: str
    prefix: str


@dataclass(frozen=True, slots=True, kw_only=True)
class YoloSource:
    """The images of a YOLO dataset with their boxes.

    Attributes:
        root: path of the folder that holds `images` and `labels`, or folders that do.
        parts: pairs of folders.
        classes: names of the classes by number; None if nothing lists them.
    """

    described: ClassVar[str] = "a YOLO dataset"
    options: ClassVar[tuple[str, ...]] = ("classes",)
    remedy: ClassVar[str] = "fix or remove the file"
    types: ClassVar[Mapping[str, FieldType]] = MappingProxyType(
        {_FIELD: Boxes(_FIELD, format="yolo")}
    )

    root: str
    parts: tuple[_Part, ...]
    classes: tuple[str, ...] | None

    @classmethod
    def claims(cls, path: str, options: PackOptions) -> bool:
        """See PathSource."""
        return options.labels and options.fields is None and _find_parts(path) is not None

    @classmethod
    def open(cls, path: str, options: PackOptions) -> YoloSource:
        """See PathSource."""
        root, parts = _find_parts(path) or (path, ())
        classes, named = check_classes(options.classes), argument("classes")
        if classes is None:
            classes, named = _find_names(root)
        names = (
            f"{counted(len(classes), 'class', 'classes')} named by {named}"
            if classes
            else f"classes without names, which {argument('classes')} gives them"
        )
        _tell_splits(root, parts)
        folders = ", ".join(part.images for part in parts)
        log_notice(
            path,
            f"taken for a YOLO dataset, {folders} beside texts of boxes, with {names}; name its "
            f"images with {argument('labels', False)} to pack them alone",
        )
        return cls(root=root, parts=parts, classes=classes)

    @property
    def name(self) -> str:
        """See Source."""
        return self.root

    def samples(self) -> Iterator[SourceSample | Problem]:
        """Yield all samples, in the order of the images' paths.

        Raises:
            PackError: a folder cannot be read.
        """
        empty = images = 0
        for part in self.parts:
            matched = 0
            for found in images_in(self.root, part.images):
                if isinstance(found, Problem):
                    yield found
                    continue
                images += 1
                path = _label_path(part, found.path)
                try:
                    data = self._read(path)
                except (UnpackableError, CodecError) as error:
                    matched += 1
                    yield Problem.of(path, error)
                    continue
                matched += data is not None
                empty += data is None
                text = SourceField(_FIELD, FromMemory(data or b""))
                yield found._replace(key=part.prefix + found.key, fields=(*found.fields, text))
            files = [*_files(self.root, part.labels)]
            if len(files) > matched:
                yield from self._strays(part, files)
        if empty:
            log_notice(
                self.root,
                f"{empty:,} of {counted(images, 'image')} have no text in labels, and are packed "
                "without boxes",
            )

    def _read(self, path: str) -> bytes | None:
        """Read a text of boxes; None if there is none."""
        if not os.path.lexists(place_in(self.root, path)):
            return None
        data = read_small(self.root, path)
        for box in parse_yolo(data):
            if self.classes is not None and box.label >= len(self.classes):
                raise UnpackableError(
                    f"line {box.line} names class {box.label}, and there are "
                    f"{len(self.classes)} classes, from 0"
                )
        return data

    def _strays(self, part: _Part, files: Sequence[str]) -> Iterator[Problem]:
        """Yield a problem for each file among the texts that belongs to no image."""
        owned = {_label_path(part, found.path) for found in images_in(self.root, part.images)}
        for path in files:
            if path not in owned:
                stem = path[len(part.labels) :].removesuffix(f".{_FIELD}")
                reason = f"it belongs to no image, as {part.images}{stem}.jpg would be"
                if not _is_text(path):
                    reason = "it is not a text of boxes"
                yield Problem(path=path, reason=reason, remedy="move it away, or add the image")


def _label_path(part: _Part, image: str) -> str:
    inside = image[len(part.images) :]
    match = FieldRule().match(inside)
    stem = inside if match is None or match.field is None else inside[: -len(match.field) - 1]
    return f"{part.labels}{stem}.{_FIELD}"


def _is_folder(root: str, path: str = "") -> bool:
    return os.path.isdir(place_in(root, path))  # noqa: PTH112  bytes


def _find_parts(path: str) -> tuple[str, tuple[_Part, ...]] | None:
    """Find pairs of folders: in a folder, in all folders inside, or beside a folder of images."""
    if not _is_folder(path):
        return None
    pairs: tuple[_Part, ...]
    if _is_folder(path, "images") and _is_folder(path, "labels"):
        root, pairs = path, (_Part("images", "labels", ""),)
    elif inside := _folders_of_pairs(path):
        root = path
        pairs = tuple(_Part(f"{each}/images", f"{each}/labels", f"{each}/") for each in inside)
    else:
        before, found, rest = _split_at_images(path)
        if not found or not _is_folder(before, f"labels{rest}"):
            return None
        root, pairs = before, (_Part(f"images{rest}", f"labels{rest}", ""),)
        paths = (_label_path(pairs[0], image.path) for image in images_in(root, pairs[0].images))
        if not any(os.path.lexists(place_in(root, path)) for path in paths):
            return None
    if not any(any(map(_is_text, _files(root, part.labels))) for part in pairs):
        return None
    return root, pairs


def _folders_of_pairs(path: str) -> tuple[str, ...]:
    """List the folders inside a folder if each of them has a pair."""
    try:
        inside = find_classes(path) or ()
    except PackError:
        return ()
    both = (_is_folder(path, f"{each}/{part}") for each in inside for part in ("images", "labels"))
    return inside if all(both) else ()


def _split_at_images(path: str) -> tuple[str, bool, str]:
    """Split a path at its last part `images`; what follows begins with a slash, or is empty."""
    whole = os.path.abspath(path)  # noqa: PTH100  text
    before, found, rest = f"{whole}/".rpartition("/images/")
    return before or "/", bool(found), f"/{rest}".rstrip("/")


def _files(root: str, folder: str) -> Iterator[str]:
    """Yield the paths of the files below a folder of texts, in order, without caches of YOLO."""
    for found in FolderSource.below(root, folder, _TEXTS).samples():
        path = f"{folder}/{found.path}"
        if path not in _NAME_FILES and not path.endswith(".cache"):
            yield path


def _is_text(path: str) -> bool:
    return path.endswith(f".{_FIELD}")


def _tell_splits(root: str, parts: Sequence[_Part]) -> None:
    """Log that folders of splits become one dataset, and how each becomes one of its own."""
    if len(parts) > 1:
        splits = [part.prefix.rstrip("/") for part in parts]
    else:
        images = parts[0].images
        inside = find_classes(os.fsdecode(place_in(root, images))) or ()
        splits = [f"{images}/{name}" for name in inside]
    splits = [each for each in splits if _SPLIT.fullmatch(each.rpartition("/")[2])]
    if len(splits) > 1:
        log_notice(
            root,
            f"{', '.join(splits)} are packed as one dataset; to keep them apart pack each alone, "
            f"as {os.path.join(root, splits[0])}",  # noqa: PTH118  text
        )


def _find_names(root: str) -> tuple[tuple[str, ...] | None, str]:
    """Find the names of the classes, and the file that lists them.

    They lie in the root, or above it if the root is one of several splits.
    """
    names, file = _names_in(root)
    above, name = os.path.split(os.path.abspath(root))  # noqa: PTH100  text
    if names is None and _SPLIT.fullmatch(name):
        names, file = _names_in(above)
        file = os.path.join(above, file)  # noqa: PTH118  text
    return names, file


def _names_in(root: str) -> tuple[tuple[str, ...] | None, str]:
    found: dict[str, tuple[str, ...]] = {}
    for file in _NAME_FILES:
        if not os.path.lexists(place_in(root, file)):
            continue
        try:
            text = read_small(root, file).decode("utf-8-sig")
            if file.endswith(".txt"):
                lines = [line.strip() for line in text.rstrip().splitlines()]
                names: tuple[str, ...] | None = tuple(lines)
            else:
                names = names_in_yaml(text)
            if names is not None:
                found[file] = _checked(names)
        except (UnpackableError, ValueError) as error:
            raise SituationError(
                f"the names of the classes in it are not read ({error})",
                where=os.path.join(root, file),  # noqa: PTH118  text
                remedy=f"list them with {argument('classes')}",
            ) from error
    if len({*found.values()}) > 1:
        raise SituationError(
            f"{' and '.join(found)} list different classes",
            where=root,
            remedy=f"remove one, or list them with {argument('classes')}",
        )
    return next(((names, file) for file, names in found.items()), (None, ""))


def _checked(names: tuple[str, ...]) -> tuple[str, ...]:
    if not names or not all(names) or len({*names}) < len(names):
        raise ValueError("there is none, one is empty, or one comes twice")
    return names


_SCALAR = (
    r"""'(?:[^']|'')*'|"[^"\\]*"|[^\s'"\[\]{},&*!|>%@`#:-](?:\s*[^\s:#,\[\]{}]|\s*:(?=\S)|\#)*"""
)
_IN_LIST = re.compile(rf"\s*({_SCALAR})\s*(,|$)")
_IN_MAP = re.compile(rf"\s*(\d+)\s*:\s+({_SCALAR})\s*(,|$)")
_ITEM = re.compile(rf"\s*-\s+({_SCALAR})\s*")
_PAIR = re.compile(rf"\s+(\d+)\s*:\s+({_SCALAR})\s*")
_ODD_SPACE = re.compile(r"[^\S \t\r\n]")
_QUOTE = r"""'(?:[^']|'')*'(?!')|"(?:[^"\\]|\\.)*\""""
_COMMENT = re.compile(
    rf"""^((?:[^'"#]|(?<![^\s\[{{,:])(?:{_QUOTE})|(?<=[^\s\[{{,:])['"]|(?<=\S)\#)*?)"""
    r"(?:(?:^|(?<=\s))#.*)?$"
)
"""Each character can be read in one way only, or lines with many quotes would take forever."""


def names_in_yaml(text: str) -> tuple[str, ...] | None:
    """Read the names of classes in the YAML of a YOLO dataset; None if it has none.

    Raises:
        ValueError: they are written in a way that is not read, or do not match `nc`.
    """
    if odd := _ODD_SPACE.search(text):
        raise ValueError(f"it has the space {quoted(odd[0])}, which may be part of a name")
    lines = [_COMMENT.sub(r"\1", line).rstrip() for line in text.splitlines()]
    starts = [
        at for at, line in enumerate(lines) if re.match(r"""(names|"names"|'names')\s*:""", line)
    ]
    if not starts:
        if text.lstrip().startswith(("{", "?", "!", "&", "%")):
            raise ValueError("it is not written one name and value a line")
        return None
    if len(starts) > 1:
        raise ValueError("names comes twice")
    first = lines[starts[0]].partition(":")[2].strip()
    rest = []
    for line in lines[starts[0] + 1 :]:
        if line and not line[0].isspace() and not line.startswith(("-", "]", "}")):
            break
        rest.append(line)
    names = _flow([first, *rest]) if first else _block([line for line in rest if line])
    count = [found[1] for line in lines if (found := re.fullmatch(r"nc\s*:\s*(\S+)", line))]
    if count and count != [str(len(names))]:
        raise ValueError(f"nc is {count[0]}, and it names {len(names)}")
    return names


def _flow(lines: Sequence[str]) -> tuple[str, ...]:
    """Read [a, b] or {0: a, 1: b}."""
    whole = " ".join(line.strip() for line in lines).strip()
    bounds = whole[:1] + whole[-1:]
    if bounds not in ("[]", "{}") or len(whole) < 2:
        raise ValueError(f"it is neither a list nor a mapping of names: {quoted(whole)}")
    return _all_of(whole[1:-1].rstrip().removesuffix(","), _IN_LIST if bounds == "[]" else _IN_MAP)


def _all_of(text: str, item: re.Pattern[str]) -> tuple[str, ...]:
    at, found = 0, []
    while at < len(text):
        match = item.match(text, at)
        if match is None:
            raise ValueError(f"it does not read as a list of names: {quoted(text[at:])}")
        found.append(match.groups()[:-1])
        at = match.end()
    return _in_order(found)


def _block(lines: Sequence[str]) -> tuple[str, ...]:
    """Read an item or pair a line."""
    for kind in (_ITEM, _PAIR):
        matches = [kind.fullmatch(line) for line in lines]
        if lines and all(matches):
            if len({len(line) - len(line.lstrip()) for line in lines}) > 1:
                break
            return _in_order([match.groups() for match in matches if match])
    raise ValueError("it is neither a list nor a mapping of names, one a line")


def _in_order(found: Sequence[tuple[str, ...]]) -> tuple[str, ...]:
    """Return names in the order of their numbers, where they have some."""
    if any(len(each) == 2 and int(each[0]) != at for at, each in enumerate(found)):
        raise ValueError("its numbers are not 0, 1, 2 and so on")
    return tuple(_plain(each[-1]) for each in found)


def _plain(scalar: str) -> str:
    if scalar[0] == "'":
        return scalar[1:-1].replace("''", "'")
    return scalar[1:-1] if scalar[0] == '"' else scalar.strip()
