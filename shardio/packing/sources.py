"""From a folder of images to the list of samples, sorted by path.

Each file is a sample. Its key is its path without extension; other dots of its name become
underscores, since the first dot of a member name ends the key. In a folder with subfolders the
first one on a file's path is its class. Names are bytes throughout, as the file system has them,
so that no locale takes part.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass

from shardio.codecs.registry import IMAGE_FIELDS
from shardio.errors import PackError
from shardio.naming import join_member_name, split_member_name


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceSample:
    """One image file.

    Attributes:
        path: relative to the source folder.
        key: of the sample.
        field: of its image; None if the file's name has no image extension, so that the field
            is named after the format found in it.
        label: position of its class, None without classes.
    """

    path: bytes
    key: str
    field: str | None
    label: int | None

    @property
    def name(self) -> str:
        """The path as text."""
        return text_of(self.path)

    @property
    def renamed(self) -> bool:
        """Whether the key is not simply the path without its extension."""
        extension = self.name.rpartition(".")[2] if self.field else ""
        return self.name != (f"{self.key}.{extension}" if extension else self.key)


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """A file that cannot be packed, and why."""

    path: str
    reason: str


def text_of(name: bytes) -> str:
    """A name of the file system as text, the same under every locale."""
    return name.decode("utf-8", "surrogateescape")


def list_files(folder: str) -> tuple[list[bytes], list[Problem]]:
    """Paths of all files below a folder, relative to it, sorted, and what is no file.

    Links are followed, dot files are left out.

    Raises:
        PackError: the folder does not exist, has no files, or a folder in it cannot be read.
    """
    root = os.fsencode(folder)
    if not os.path.isdir(root):  # noqa: PTH112  pathlib has no bytes paths
        raise PackError(f"{folder}: no such folder; name the folder that holds the images")
    problems: list[Problem] = []
    files = sorted(_walk(root, b"", (), problems))
    if not files:
        raise PackError(f"{folder}: the folder has no files; name the folder that holds the images")
    return files, sorted(problems, key=lambda problem: problem.path)


def find_classes(folder: str) -> tuple[str, ...] | None:
    """Names of the folders inside a folder, sorted, empty ones too; None if there are none."""
    with os.scandir(os.fsencode(folder)) as entries:
        names = sorted(e.name for e in entries if _is_class(e))
    return tuple(map(text_of, names)) or None


def make_samples(
    files: list[bytes], classes: tuple[str, ...] | None
) -> tuple[list[SourceSample], list[Problem]]:
    """One sample a file, and the files without a class, or a key of their own."""
    labels = {name: label for label, name in enumerate(classes or ())}
    samples: dict[str, SourceSample] = {}
    problems = []
    for path in files:
        key, field = _key_and_field(text_of(path))
        label = labels.get(text_of(path.partition(b"/")[0]))
        if classes and label is None:
            reason = "it lies beside the class folders; --no-labels packs without classes"
            problems.append(Problem(path=text_of(path), reason=reason))
            continue
        sample = SourceSample(path=path, key=key, field=field, label=label)
        if split_member_name(join_member_name(key, "x")) != (key, "x"):
            reason = f"readers of shards pass over a member with the key {key!r}"
            problems.append(Problem(path=sample.name, reason=reason))
            continue
        first = samples.setdefault(key, sample)
        if first is not sample:
            reason = f"its key would be {key!r}, as that of {first.name}"
            problems.append(Problem(path=sample.name, reason=reason))
    return list(samples.values()), problems


def _is_class(entry: os.DirEntry[bytes]) -> bool:
    try:
        return entry.is_dir() and not entry.name.startswith(b".")
    except OSError:  # list_files names it as a problem
        return False


def _key_and_field(name: str) -> tuple[str, str | None]:
    folder, slash, base = name.rpartition("/")
    stem, dot, extension = base.rpartition(".")
    field = extension.lower()
    if not (dot and field in IMAGE_FIELDS):
        return folder + slash + base.replace(".", "_"), None
    return folder + slash + stem.replace(".", "_"), field


def _walk(
    root: bytes, relative: bytes, parents: tuple[tuple[int, int], ...], problems: list[Problem]
) -> Iterator[bytes]:
    folder = os.path.join(root, relative) if relative else root  # noqa: PTH118  bytes
    try:
        status = os.stat(folder)  # noqa: PTH116  bytes
        entries = [entry for entry in os.scandir(folder) if not entry.name.startswith(b".")]
    except OSError as error:
        raise PackError(
            f"{text_of(folder)}: {error.strerror}; make the folder readable or remove it"
        ) from error
    if (identity := (status.st_dev, status.st_ino)) in parents:
        raise PackError(f"{text_of(folder)}: a link leads back to a folder above; remove it")
    for entry in entries:
        path = relative + b"/" + entry.name if relative else entry.name
        try:
            is_folder, is_file = entry.is_dir(), entry.is_file()
        except OSError as error:
            problems.append(Problem(path=text_of(path), reason=error.strerror or str(error)))
            continue
        if is_folder:
            yield from _walk(root, path, (*parents, identity), problems)
        elif is_file:
            yield path
        else:
            reason = "a link to nothing" if entry.is_symlink() else "neither a file nor a folder"
            problems.append(Problem(path=text_of(path), reason=reason))
