"""OpenCV says what is wrong through exceptions alone, unless the user wants its messages."""

from __future__ import annotations

import os
import struct
import subprocess
import sys

import pytest

from shardio.errors import CodecError
from shardio.fields.image import decode_image

# A BMP of more colours than 8 bits can name, about which OpenCV prints.
BROKEN = b"BM" + struct.pack("<IHHI", 58, 0, 0, 54)
BROKEN += struct.pack("<IiiHHIIiiII", 40, 1, 1, 1, 8, 0, 0, 0, 0, 300, 0) + bytes(4)


def test_a_broken_image_is_an_error_and_no_message(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(CodecError, match="OpenCV does not decode the image"):
        decode_image(BROKEN)
    assert capfd.readouterr() == ("", "")


def messages(before: str, environment: dict[str, str]) -> str:
    code = f"""
import cv2, sys
{before}
from shardio.fields.image import decode_image
try:
    decode_image({BROKEN!r})
except ValueError:
    pass
"""
    known = {name: value for name, value in os.environ.items() if name != "OPENCV_LOG_LEVEL"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env=known | environment,
    )
    return f"{done.stdout}{done.stderr}"


def test_a_level_that_the_user_chose_stays() -> None:
    assert messages("", {}) == ""
    assert "grfmt_bmp" in messages("", {"OPENCV_LOG_LEVEL": "WARNING"})
    level = "cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_INFO)"
    assert "grfmt_bmp" in messages(level, {})
