"""Types of fields that a user gives for files are checked, recorded, and used by every reader."""

from __future__ import annotations

import json
import logging
import re
import sys
from collections.abc import Callable, Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import soundfile

import shardio
from shardio.cli import main
from shardio.testing import digests, make_images, make_shard, read_members

Command = Callable[..., tuple[int, str]]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    def run(*arguments: object) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["shardio", *map(str, arguments)])
        capsys.readouterr()
        try:
            main()
        except SystemExit as end:
            return int(end.code or 0), "".join(capsys.readouterr())
        return 0, "".join(capsys.readouterr())

    return run


def sound(seconds: float, rate: int = 8000, format_: str = "WAV") -> bytes:
    stream = BytesIO()
    wave = np.sin(np.arange(round(seconds * rate)) / 9) / 2
    soundfile.write(stream, wave, rate, format=format_)
    return stream.getvalue()


def png(pixels: np.ndarray[Any, Any]) -> bytes:
    return cv2.imencode(".png", pixels)[1].tobytes()


COLOURS = np.arange(24 * 30 * 3, dtype=np.uint16).reshape(24, 30, 3) * 30
GRAY = np.arange(24 * 30, dtype=np.uint16).reshape(24, 30) * 90
PICTURE = png((COLOURS >> 8).astype(np.uint8))


def folder_of(path: Path, files: Mapping[str, bytes]) -> Path:
    for name, data in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)
    return path


def manifest(folder: Path) -> Any:
    return json.loads((folder / "shardio.json").read_text())["shardio"]


@pytest.fixture
def speech(tmp_path: Path) -> Path:
    names = ("no/a", "no/b", "yes/a", "yes/b")
    return folder_of(
        tmp_path / "speech", {f"{name}.wav": sound(at + 1) for at, name in enumerate(names)}
    )


def test_sounds_of_a_folder_are_packed_and_read_by_their_type(
    speech: Path, tmp_path: Path, command: Command
) -> None:
    out = tmp_path / "out"
    shardio.pack(speech, out, shards=2, types={"wav": shardio.Audio(rate=16000)})
    assert manifest(out)["version"] == 2
    assert manifest(out)["types"]["wav"] == {"type": "Audio", "rate": 16000}
    batch = next(iter(shardio.ShardDataset(out, batch_size=4)))
    assert sorted(batch["wav_lengths"].tolist()) == [16000, 32000, 48000, 64000]
    (found,) = (each for each in shardio.verify(out, deep=True).statistics if each.name == "wav")
    assert (found.values, found.unit, found.low, found.high) == (4, "sounds (seconds)", 1.0, 4.0)
    assert found.counts == {"silent": 0}
    code, text = command("verify", "--deep", out)
    assert code == 0
    assert "4 sounds (seconds)   1 to 4\n" in text
    code, text = command("info", out)
    assert code == 0
    assert "audio (rate=16000)" in text
    assert "WAV, 8000 Hz" in text


def test_the_command_takes_the_words_of_python(
    speech: Path, tmp_path: Path, command: Command
) -> None:
    types = {"wav": shardio.Audio(rate=16000, mono=False)}
    shardio.pack(speech, tmp_path / "python", shards=2, types=types)
    code, _ = command(
        *("pack", speech, tmp_path / "command", "--shards", 2),
        *("--type", "wav=Audio(rate=16000, mono=False)"),
    )
    assert code == 0
    assert digests(tmp_path / "command") == digests(tmp_path / "python")


@pytest.mark.usefixtures("measured_here")
def test_a_profile_decodes_sounds_by_their_recorded_type(speech: Path, tmp_path: Path) -> None:
    shardio.pack(speech, tmp_path / "out", shards=2, types={"wav": shardio.Audio(rate=16000)})
    found = shardio.profile(tmp_path / "out", seconds=0.1, workers=(0,), batch_size=2)
    assert found.runs[0].samples_per_second > 0


def test_a_preview_draws_pictures_by_their_recorded_type(tmp_path: Path) -> None:
    source = folder_of(tmp_path / "in", {"a.png": png(GRAY)})
    shardio.pack(source, tmp_path / "bytes", shards=1, types={"png": shardio.Bytes()})
    with pytest.raises(shardio.SituationError, match="no image to preview"):
        shardio.info(tmp_path / "bytes", preview=tmp_path / "bytes.png")
    shardio.pack(source, tmp_path / "depth", shards=1, types={"png": shardio.Depth()})
    shardio.info(tmp_path / "depth", preview=tmp_path / "depth.png")
    assert (tmp_path / "depth.png").exists()


SPELLED = {
    "Mask": shardio.Mask(),
    "Mask()": shardio.Mask(),
    " Mask ( dtype = 'int32' ) ": shardio.Mask(dtype="int32"),
    "Depth(scale=1/256)": shardio.Depth(scale=1 / 256),
    "Depth(scale=0.001)": shardio.Depth(scale=0.001),
}


@pytest.mark.parametrize("text", SPELLED)
def test_a_spelled_type_is_the_type(tmp_path: Path, command: Command, text: str) -> None:
    files = {"a.png": PICTURE, "a.depth.png": png((GRAY >> 9).astype(np.uint8))}
    source, out = folder_of(tmp_path / "in", files), tmp_path / "out"
    code, said = command("pack", source, out, "--shards", 1, "--type", f"depth.png={text}")
    assert code == 0, said
    types = {"depth.png": SPELLED[text]}
    shardio.pack(source, tmp_path / "python", shards=1, types=types)
    assert digests(out) == digests(tmp_path / "python")


WRONG = {
    "png": "'png' is not FIELD=TYPE",
    "=Mask": "'=Mask' is not FIELD=TYPE",
    "png=": "'' is not a type with parameters by name; write it as",
    "png=Mask(": "is not a type with parameters by name",
    "png=Mask, Depth": "is not a type with parameters by name",
    "png=Depth(0.5)": "is not a type with parameters by name",
    "png=Depth(**{'scale': 2})": "is not a type with parameters by name",
    "png=Depth(scale=print('run'))": "is not a type with parameters by name",
    "png=Depth(scale=1/0)": "is not a type with parameters by name",
    "png=Depth(scale=1/'a')": "is not a type with parameters by name",
    "png=Depth(scale=2**9**9)": "is not a type with parameters by name",
    "png=shardio.Mask": "is not a type with parameters by name",
    "png=" + "(" * 9999: "is not a type with parameters by name",
    "png=Pcm": r"'Pcm' is not a type of shardio \(Array, .*; pass a type of your own in Python",
    "png=Pixels": "'Pixels' is not a type of shardio",
    "png=Depth(size=2)": r"Depth has no parameter 'size' that a manifest records \(scale\)",
    "png=Text(fields='a')": "Text has no parameter 'fields' that a manifest records",
    "png=Depth(scale=-1)": "Depth: scale=-1: it must be a number above 0",
    "wav=Audio(rate='a')": "a parameter has a value of the wrong type",
    "png=Mask(dtype=[])": r"Mask: dtype=\[\]: it must be",
}


@pytest.mark.parametrize("text", WRONG)
def test_a_wrong_spelling_is_one_sentence(tmp_path: Path, command: Command, text: str) -> None:
    source = folder_of(tmp_path / "in", {"a.png": PICTURE})
    code, said = command("pack", source, tmp_path / "out", "--shards", 1, "--type", text)
    assert code == 2
    (line,) = (line for line in said.splitlines() if line.startswith(("shardio: ", "Error: ")))
    assert re.search(WRONG[text], line)
    assert "run\n" not in said
    assert not (tmp_path / "out").exists()


def test_a_field_has_one_type_on_the_command_line(tmp_path: Path, command: Command) -> None:
    source = folder_of(tmp_path / "in", {"a.png": PICTURE})
    types = ("--type", "png=Mask", "--type", "PNG=Depth")
    code, said = command("pack", source, tmp_path / "out", "--shards", 1, *types)
    assert code == 2
    assert "two types" in said


@pytest.mark.parametrize(
    ("types", "said"),
    [
        ([shardio.Mask("png")], "must be a mapping"),
        ({"png": "Mask"}, "'Mask' for 'png' is not a field type"),
        ({"png": shardio.Mask}, "is not a field type"),
        ({1: shardio.Mask()}, "1 is not the name of a field"),
        ({"png": shardio.Mask("mask.png")}, "the type for 'png' names 'mask.png'"),
        ({"png": shardio.Mask(), "PNG": shardio.Depth()}, "'png' has two types"),
    ],
)
def test_what_is_no_mapping_of_types_is_refused(tmp_path: Path, types: Any, said: str) -> None:
    source = folder_of(tmp_path / "in", {"a.png": PICTURE})
    with pytest.raises(shardio.UsageError, match=said):
        shardio.pack(source, tmp_path / "out", shards=1, types=types)


def test_a_type_for_a_field_that_no_sample_has_is_refused(tmp_path: Path) -> None:
    files = {"a.png": PICTURE, "a.depth.png": png(GRAY)}
    source = folder_of(tmp_path / "in", files)
    types = {"depht.png": shardio.Depth(scale=0.1)}
    with pytest.raises(
        shardio.SituationError, match=r"no sample has the field 'depht.png'; name one of depth.png,"
    ):
        shardio.pack(source, tmp_path / "out", shards=1, types=types)
    assert not (tmp_path / "out").exists()


def test_types_that_the_names_say_anyway_change_no_byte(tmp_path: Path) -> None:
    source = make_images(tmp_path / "in", classes=2, per_class=3, size=20)
    types = {"png": shardio.Image(), "cls": shardio.Label()}
    shardio.pack(source, tmp_path / "given", shards=1, types=types)
    shardio.pack(source, tmp_path / "plain", shards=1)
    assert digests(tmp_path / "given") == digests(tmp_path / "plain")
    assert manifest(tmp_path / "given")["version"] == 1


BAD: dict[str, tuple[str, shardio.FieldType | None, bytes, bytes, str]] = {
    "sound": ("wav", shardio.Audio(), sound(1), b"RIFF" + bytes(40), "libsndfile"),
    "cut sound": (
        *("flac", shardio.Audio(), sound(1, format_="FLAC")),
        *(sound(1, format_="FLAC")[:-500], ""),
    ),
    "large class": (
        *("m.png", shardio.Mask(), png((GRAY >> 9).astype(np.uint8)), png(GRAY)),
        "dtype='int32'",
    ),
    "colours as depth": ("d.png", shardio.Depth(), png(GRAY), PICTURE, "holds colours, not depth"),
    "array": ("npy", None, b"", b"\x93NUMPX", "not a .npy file"),
    "boxes": (
        *("json", shardio.Boxes(), b'{"boxes": [[0, 0, 2, 2]]}', b'{"boxes": [[0, 0]]}'),
        "",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_data_that_the_type_does_not_decode_are_not_packed(tmp_path: Path, name: str) -> None:
    field, type_, good, bad, said = BAD[name]
    if name == "array":
        stream = BytesIO()
        np.save(stream, np.arange(3))
        good = stream.getvalue()
    source = folder_of(tmp_path / "in", {f"a.{field}": good, f"b.{field}": bad})
    types = None if type_ is None else {field: type_}
    options: dict[str, Any] = {"shards": 1, "fields": field, "types": types}
    with pytest.raises(shardio.PackError, match=rf"b\.{field}: its field '{field}': .*{said}"):
        shardio.pack(source, tmp_path / "out", **options)
    summary = shardio.pack(source, tmp_path / "out", on_error="skip", **options)
    assert (summary.samples, summary.skipped) == (1, 1)
    assert read_members(tmp_path / "out") == {f"a.{field}": good}


def test_no_sample_is_skipped_for_want_of_a_package(
    speech: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "soundfile", None)
    with pytest.raises(shardio.PackError, match=r"'wav': Audio needs the package soundfile; pip"):
        shardio.pack(
            *(speech, tmp_path / "out"),
            shards=1,
            jobs=1,
            on_error="skip",
            types={"wav": shardio.Audio()},
        )


def test_an_image_that_is_named_by_its_format_has_the_type_of_that_field(tmp_path: Path) -> None:
    source = folder_of(tmp_path / "in", {"a.picture": png(COLOURS)})
    with pytest.raises(shardio.PackError, match=r"types={'png': Image\(bits=8\)}"):
        shardio.pack(source, tmp_path / "out", shards=1)
    types = {"png": shardio.Image(bits=8)}
    shardio.pack(source, tmp_path / "out", shards=1, types=types)
    assert shardio.verify(tmp_path / "out", deep=True).sound


def test_a_rerun_with_other_types_keeps_no_shard(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    files = {f"{name}.wav": sound(1) for name in "abc"}
    source, out = folder_of(tmp_path / "in", files | {"d.wav": b"RIFF"}), tmp_path / "out"
    options: dict[str, Any] = {"shards": 2, "shuffle": False, "jobs": 1}
    with pytest.raises(shardio.PackError, match=r"d\.wav"):
        shardio.pack(source, out, **options, types={"wav": shardio.Audio()})
    folder_of(source, {"d.wav": sound(1)})
    with caplog.at_level(logging.WARNING):
        shardio.pack(source, out, **options, types={"wav": shardio.Audio(rate=4000)})
    assert "which had finished 1 shard" in caplog.text
    assert manifest(out)["types"]["wav"] == {"type": "Audio", "rate": 4000}


@pytest.mark.parametrize("options", [{}, {"store": "raw"}, {"resize": 12}])
def test_a_picture_of_16_bits_is_packed_if_its_type_says_how_it_is_read(
    tmp_path: Path, command: Command, options: dict[str, Any]
) -> None:
    source, out = folder_of(tmp_path / "in", {"a.png": png(COLOURS)}), tmp_path / "out"
    with pytest.raises(
        shardio.PackError,
        match=r"a\.png: the image has 16 bits per channel.*types={'png': Image\(bits=8\)}.*Depth",
    ):
        shardio.pack(source, out, shards=1, **options)
    if not options:
        code, said = command("pack", source, out, "--shards", 1)
        assert (code, "--type 'png=Image(bits=8)'" in said) == (1, True)
    shardio.pack(source, out, shards=1, types={"png": shardio.Image(bits=8)}, **options)
    (sample,) = shardio.ShardDataset(out)
    if "resize" not in options:
        high = (COLOURS[..., ::-1] >> 8).transpose(2, 0, 1)
        image = sample["image"] if "image" in sample else sample["png"]
        assert np.array_equal(np.asarray(image), high)
    assert shardio.verify(out, deep=True).sound


def test_16_bits_stay_as_depth_by_name_or_type_and_as_bytes(tmp_path: Path) -> None:
    files = {"a.png": PICTURE, "a.depth.png": png(GRAY), "a.mask.png": png(GRAY >> 9)}
    source = folder_of(tmp_path / "named", files)
    shardio.pack(source, tmp_path / "by name", shards=1)
    source = folder_of(tmp_path / "in", {"a.png": png(GRAY)})
    shardio.pack(source, tmp_path / "depth", shards=1, types={"png": shardio.Depth(scale=0.5)})
    (sample,) = shardio.ShardDataset(tmp_path / "depth")
    assert np.array_equal(np.asarray(sample["png"])[0], GRAY / 2)
    shardio.pack(source, tmp_path / "bytes", shards=1, types={"png": shardio.Bytes()})
    (sample,) = shardio.ShardDataset(tmp_path / "bytes")
    assert sample["png"] == png(GRAY)


def test_text_of_another_encoding_is_kept_as_bytes(tmp_path: Path) -> None:
    latin = "café".encode("latin-1")
    source = folder_of(tmp_path / "in", {"a.png": PICTURE, "a.txt": latin})
    with pytest.raises(shardio.PackError, match=r"types={'txt': Bytes\(\)}"):
        shardio.pack(source, tmp_path / "out", shards=1)
    shardio.pack(source, tmp_path / "out", shards=1, types={"txt": shardio.Bytes()})
    (sample,) = shardio.ShardDataset(tmp_path / "out", fields={"text": "txt"})
    assert sample["text"] == latin


class TestFilesBeside:
    def test_files_beside_sounds_belong_to_them(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        files = {f"{name}.wav": sound(1) for name in "ab"} | {"a.txt": b"1", "b.txt": b"2"}
        source = folder_of(tmp_path / "in", files)
        shardio.pack(source, tmp_path / "out", shards=1, types={"wav": shardio.Audio()})
        assert read_members(tmp_path / "out") == files
        assert len(shardio.ShardDataset(tmp_path / "out")) == 2
        assert "each file is packed with the files beside it, txt" in caplog.text

    def test_sounds_with_and_without_a_text_are_refused(self, tmp_path: Path) -> None:
        files = {"a.wav": sound(1), "a.txt": b"1", "b.wav": sound(1)}
        source = folder_of(tmp_path / "in", files)
        with pytest.raises(shardio.PackError, match=r"fields='wav,txt\?'"):
            shardio.pack(source, tmp_path / "out", shards=1, types={"wav": shardio.Audio()})

    def test_a_sound_beside_an_image_belongs_to_it(self, tmp_path: Path) -> None:
        files = {"a.png": PICTURE, "a.wav": sound(1), "b.png": PICTURE, "b.wav": sound(1)}
        source = folder_of(tmp_path / "in", files)
        shardio.pack(source, tmp_path / "out", shards=1, types={"wav": shardio.Audio()})
        assert len(shardio.ShardDataset(tmp_path / "out")) == 2

    def test_a_picture_whose_type_follows_belongs_to_an_image(self, tmp_path: Path) -> None:
        files = {"a.png": PICTURE, "a.gt.png": png((GRAY >> 9).astype(np.uint8))}
        source = folder_of(tmp_path / "in", files)
        shardio.pack(source, tmp_path / "out", shards=1, types={"gt.png": shardio.Mask()})
        assert read_members(tmp_path / "out") == files

    @pytest.mark.parametrize(
        ("other", "said"),
        [
            ("readme.pdf", r"readme\.pdf: it is no image, of no field with a given type, and"),
            ("b.mask.png", r"b\.mask\.png: its name says that it belongs to an image"),
        ],
    )
    def test_other_files_are_refused(self, tmp_path: Path, other: str, said: str) -> None:
        source = folder_of(tmp_path / "in", {"a.wav": sound(1), other: b"x"})
        with pytest.raises(shardio.PackError, match=said):
            shardio.pack(source, tmp_path / "out", shards=1, types={"wav": shardio.Audio()})


class TestOtherSources:
    def test_a_table_of_paths(self, tmp_path: Path) -> None:
        source = folder_of(
            tmp_path / "in", {"one.wav": sound(1), "t.csv": b"clip,label\none.wav,3\n"}
        )
        shardio.pack(
            *(source / "t.csv", tmp_path / "out"),
            shards=1,
            path_columns=["wav=clip"],
            types={"wav": shardio.Audio(rate=8000)},
        )
        (sample,) = shardio.ShardDataset(tmp_path / "out")
        assert sample["wav"].shape == (1, 8000)

    def test_tars(self, tmp_path: Path) -> None:
        (tmp_path / "in").mkdir()
        make_shard(tmp_path / "in/a.tar", {"a": {"flac": sound(1, format_="FLAC")}})
        types = {"flac": shardio.Audio()}
        shardio.pack(tmp_path / "in", tmp_path / "out", shards=1, types=types)
        (sample,) = shardio.ShardDataset(tmp_path / "out")
        assert sample["flac"].shape == (1, 8000)

    def test_a_type_that_contradicts_what_the_source_records_is_refused(
        self, tmp_path: Path
    ) -> None:
        data = b'{"boxes": [[0, 0, 2, 2]]}'
        types = {"json": shardio.Boxes(format="xywh")}
        shardio.pack([{"json": data}], tmp_path / "one", shards=1, types=types)
        with pytest.raises(shardio.UsageError, match=r"'json': .*format='xywh', not 'xyxy'"):
            shardio.pack(
                *(tmp_path / "one", tmp_path / "two"),
                shards=1,
                types={"json": shardio.Boxes(format="xyxy")},
            )

    def test_samples_of_a_program_are_encoded_by_them(self, tmp_path: Path) -> None:
        types = {"depth.png": shardio.Depth(scale=0.5)}
        shardio.pack([{"depth.png": GRAY}], tmp_path / "out", shards=1, types=types)
        (sample,) = shardio.ShardDataset(tmp_path / "out")
        assert np.array_equal(np.asarray(sample["depth.png"])[0], GRAY / 2)

    def test_a_field_with_a_type_in_fields_and_in_types_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(shardio.UsageError, match="'wav' has a type in fields and one in types"):
            shardio.pack(
                *([{"wav": sound(1)}], tmp_path / "out"),
                shards=1,
                fields={"audio": shardio.Audio("wav")},
                types={"wav": shardio.Audio(rate=16000)},
            )

    def test_a_mapping_of_fields_for_files_names_types(self, tmp_path: Path, speech: Path) -> None:
        with pytest.raises(shardio.UsageError, match="and types with types="):
            shardio.pack(speech, tmp_path / "out", shards=1, fields={"audio": shardio.Audio("wav")})


class Latin(shardio.FieldType):
    """Text in Latin-1."""

    def decode(self, data: Any) -> str:
        if b"\x00" in data:
            raise ValueError("a zero byte")
        return str(data, "latin-1")


def test_a_type_of_a_user_checks_files_and_is_recorded_by_name(tmp_path: Path) -> None:
    source = folder_of(tmp_path / "in", {"a.lat": "café".encode("latin-1"), "b.lat": b"\x00"})
    types = {"lat": Latin()}
    with pytest.raises(shardio.PackError, match=r"b\.lat: its field 'lat': .*a zero byte"):
        shardio.pack(source, tmp_path / "out", shards=1, types=types)
    shardio.pack(source, tmp_path / "out", shards=1, types=types, on_error="skip")
    assert manifest(tmp_path / "out")["types"] == {"lat": {"own": "Latin"}}
