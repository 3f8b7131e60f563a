"""The trial of the core: small pictures that it must decode as the Python path does.

A libjpeg may compute other pixels than that of simplejpeg: old ones, and those of other makers,
upsample colours and transform blocks in other ways. It takes a few milliseconds, once a process.
"""

from __future__ import annotations

import ctypes
import tempfile
import zlib
from base64 import b85decode
from contextlib import suppress
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from shardio.errors import CodecError
from shardio.fields.formats import probe_image
from shardio.fields.geometry import Crop
from shardio.fields.image import Scratch, decode_part, one_opencv_thread, write_part
from shardio.fields.limits import MAX_PIXELS
from shardio.native.table import DONE, PICTURE, VIEW, CoreField, SampleTable, Worker

_PICTURES = {
    "JPEG 4:2:0": (
        "|JeWF01!$>Nk#wx0RR9200961|JwjV01gTZ4GRel4Gaws4-"
        "OF)Bo`JG6c#KXAsQq!E;lwaE;2GYK~qLLJx)F{GDu=cPF7f5UR^jvW^H9!Y*SlZS^wJrLjeyE5Ec^_Di;?jSvxX2Sy@?"
        "GSy@?GSy@?GSy@?GSy@?GSy@?GSy@?GSy@?GSy@?GSy@?GSy@?GSy@?GSy}(U01*fPA^<G|0U`hb5di}c0sq7R8vp<T0"
        "s{d60000000000000C900RL61_%Gd04ERt0s;X71p@^D00000000010{{XM1ThjJB0*6TaiKCoVzJTx!~hrp00RL5000"
        "0000000000000|W&I0{_GSCJ_Ju0|NsB2LJ#700000000310s|2tF$5A5K~V)#agnj%@c-"
        "HX3<CiG0ucid06zfW61Z}gD@x<NAjX=5-}eDc#)-"
        "!0gs$365XoFME1S*GGU|vo!D4EKKZAy`&)tDseWDboWfjvhl|yK*n1iCK%t-"
        ">_boy)BqQbcciyZt6pNP#0V6ADv;BV)cmFW#?npB=+)a~Y=2*D=2RXNzK?ciX>d0sL4>uocqjFQIm?0nStx~`ggSZ863"
        "{Nfd-(V8?^+idd0u{9hZemMEeHFU|_yzi1jZ&ak(jaA!ATw|pz?zU9`-"
        "`*azbjoO(8k`Td!}%GlT{EUIyCFz1xy0@rmz*cGVwog^YTrzlCNNBrMp~szm?j>-rb#0WQl(%2*#"
    ),
    "JPEG 4:4:4": (
        "|JeWF01!$>Nk#wx0RR9200961|JwjV01gTZ4GRel4Gaws4-"
        "OF)Bo`JG6c#KXAsQq!E;lwaE;2GYK~qLLJx)F{GDu=cPF7f5UR^jvW^H9!Y*SlZS^wJrLjeyE5Ec^_Di;?jSvxX2Sy@?"
        "GSy@?GSy@?GSy@?GSy@?GSy@?GSy@?GSy@?GSy@?GSy@?GSy@?GSy@?GSy}(U01*fPA^<G|0TBQK5di}c0sq7R82|wR0"
        "RRI40000000000000C91_A>I|HJ?%5C8%K0RjaB1poj500000009F40ucl;5+Nc%Q4?{YGD2dp(f`B%8UX+T0|5a5000"
        "0000000000970tE&E0RO}QE)f6%0RjXA1_lEF000000003300R*O5+R{6L6HR$QE{>1BQipPqVQpo!T;I-"
        "3<CiG0ucid06zf0C2&k++MIHi0?}5d9F@T|S*gaQa4aItPB}_}Ws5RKQC%=aBIPC-"
        "E0+Y#+tZfxgBofNf7~)~mKb4bKu-"
        "B6#O8sQR6*7G3`ev@@XS2DM5>ia^0OZ48%1=;l#4P<E}u<%R9IIa@nfHXlkpiY0kQqO+*NvN#Yxvs$k=r<niRoW(}Td@"
        "&oL$|s*byHkQmx@*UK^frpK2f?Ga5qtTV92esLw=i`)0cboPRV%WZFOy|3Zn6{pdfG+5hg^2CX*tU7PPC112swLGA4w&"
        "zY<<uy<Z{oso)uH0oivRe1?+l+eE(<hP*l410QwM{BdG3s{nPy|_lCjMI)uEk+0HCAOBd_Tp>JqNU)lU^#E>{fR0FlUM"
        "}2g$cGy0!|jMge$=qnFgzUZdVAH5?#*IQh&dLz@2p&-"
        "rP`!#{hP+GfAoCB1ZwT{3p>IJBC>PD`=YATX5zC?l0Uj=du2n;M)Cw!`@(Xt4)QO}WwnrW&SFEy?#c5}MW19mx#Itn-"
        "BSmEv!nQA{X`JfN6S6nQ}~f++HWVMI~m*Yv^&vvHsQ*#"
    ),
    "progressive JPEG": (
        "|JeWF01!$>Nk#wx0RR9200961|JwjV01gTZ4GRel4Gaws4-"
        "OF)Bo`JG6c#KXAsQq!E;lwaE;2GYK~qLLJx)F{GDu=cPF7f5UR^jvW^H9!Y*SlZS^wJrLjeyE5Ec^_Di;?jSvxX2Sy@?"
        "GSy@?GSy@?GSy@?GSy@?GSy@?GSy@?GSy@?GSy@?GSy@?GSy@?GSy@?GSy}(W01*fPA^<G|0U-"
        "ba5di}c0sq7R7ytnQ0RaI30000000000000971p)^D!~hrp00RL50000000000000000|W&E0sq<n3<CiG0uTcb0005="
        "?mjz(XJD;`bGQ5JrK#3~g-I-;>lHpHVbO|8`dw-ueBC3vMFm!eDxd$v02>ei0RaF40{{R3000000000100I#)5+O4G+5"
        "iXv0RRC70tg_23y3WI$6;}2FgJ~ydmyvX5pe`WL`DC^03Z<n0{{U62LJ#700000000000RjUAArTTHGC{HM|Jncu0RsU"
        "6KLM#KN=7x*Wb9=j<e6pa7Y2v9mkn?ClJQrwk)q2e|HJ?p5di@J0|5X40000000000000335fU-"
        "~+5iXv0s#R(0jjYV#*--"
        ">y=l#3iXuP%!~ho%00RL400000000000000005Fk2|Jncu0RaF8KLW)_zyHJl9S{Hl0s;d80000000000000015g`yUA"
        "W?zv|Jncu0RaF3KOy53Dq_`*c$Ee<G1(C)6EX=%g#=Qsltxfm@IgFy$~k{S|Jncy0|5X600RI301(P4seF8@vQPiS03i"
        "_p009C81poj500000000015dg6eAwf}bAfdt0@c-HX2mu2D0Y4DNm=_hFg|-?cewe)`4(Giniz-"
        "V4N6OV9V_xGb5XrT=5C6mf9uWZn009F90000000000000315fC6TAwgl0@c-"
        "HX2mt~C0Y4CN(tU1eib+gHI7)N(dn4{)bK_+H!~h`>0RRC42LJ;A00000000000TBQ(5FjBzQE{PRvC;q900;pA00BP`"
        "&OzY8_xFL2#lr-LM!XXFM))%P>QNJ7C)lJlWa$)T`@u9$rw%|;kv3JhA)tZN*{NG^Oi*loV76uh|Je"
    ),
    "PNG": (
        "iBL{Q4GJ0x0000DNk~Le0000R0000I2m$~A042FH$^ZZW&q+i<R5;6HWRufkWM!ZtVqs)pXJlYNMog$&QbiCZ0)_m(O<"
        "*7woXaafF%e<|C4d!X4vHJ8Y$7$?$OL9l?nWl6yOD|N;fP`)6P4V^Om#OhQ#~A+sT<eKRCgmYW;h<_I>HPrJXjf+!H6^"
        "lnu$y>L*a-SM#2#baU|1+JLO<Q*`J*)2Zt&9?S17;V8+GuAO<r7`>_S(%wWczi692hIUAeGS-_0t#UKXI%X3o7S-"
        "}jTp$rgbGJqV#&V<SU8-&7Of#^YEu%a>m>@*s$J4!^@00000NkvXXu0mjf"
    ),
}
"""Colours and edges in base 85: JPEGs of 34 × 45 pixels, and a PNG of 18 × 27."""


class _Case(NamedTuple):
    """A crop of a picture.

    Attributes:
        picture: name of the picture.
        crop: top, left, height and width.
        size: height and width of the slot.
        channels: channels of the slot.
        shrink: divisor of the size at which it is decoded.
    """

    picture: str
    crop: tuple[int, int, int, int]
    size: tuple[int, int]
    channels: int = 3
    shrink: int = 1

    @property
    def most(self) -> int:
        """Grey levels that pixels may differ by: 1 where OpenCV, whose builds differ, resizes."""
        return int(self.crop[2:] != self.size)

    def __str__(self) -> str:
        return f"a {self.picture}" + f" at 1/{self.shrink} of its size" * (self.shrink > 1)


_CASES = (
    _Case("JPEG 4:2:0", (0, 0, 34, 45), (34, 45)),
    _Case("JPEG 4:2:0", (9, 11, 14, 21), (14, 21)),
    _Case("JPEG 4:2:0", (3, 5, 20, 31), (17, 12)),
    _Case("JPEG 4:2:0", (0, 0, 34, 45), (9, 12), shrink=2),
    _Case("JPEG 4:4:4", (0, 0, 34, 45), (34, 45)),
    _Case("JPEG 4:4:4", (20, 30, 14, 15), (14, 15), channels=1),
    _Case("progressive JPEG", (0, 0, 34, 45), (34, 45)),
    _Case("progressive JPEG", (17, 1, 16, 20), (16, 20)),
    _Case("PNG", (0, 0, 18, 27), (18, 27)),
)


def find_fault(library: ctypes.CDLL) -> str:
    """Decode a few pictures in both ways.

    Args:
        library: library of the core.

    Returns:
        What the core does wrong, the rest of a sentence; empty if all is right.
    """
    worker = Worker(library)
    try:
        for case in _CASES:
            data = b85decode(_PICTURES[case.picture])
            ours, wanted = _by_core(worker, case, data), _by_python(case, data)
            if ours is None:
                return f"does not decode {case}"
            if wanted is None or np.abs(ours.astype(int) - wanted).max() > case.most:
                return f"decodes {case} to other pixels than Python does"
    except OSError as error:
        return f"cannot be tried without a temporary file: {error.strerror}"
    return ""


def _by_core(worker: Worker, case: _Case, data: bytes) -> NDArray[np.uint8] | None:
    out = np.zeros((1, *case.size, case.channels), np.uint8)
    view = np.zeros((1, 1, len(VIEW)), np.int32)
    info = probe_image(data)
    shown = info.height, info.width, info.orientation
    view[0, 0] = *shown, *case.crop, *case.size, 0, 0, 0, 0, *case.size, 0, 0, case.shrink
    places = [np.array([[number]], np.int64) for number in (0, 0, len(data))]
    sums = [np.array([[zlib.crc32(data)]], np.uint32), None]
    field = CoreField(kind=PICTURE, out=out, leads=True, max_pixels=MAX_PIXELS)
    with tempfile.TemporaryFile(buffering=0) as file:
        file.write(data)
        files, status = np.array([file.fileno()], np.int32), np.array([DONE], np.uint8)
        SampleTable(files, [*places, *sums], view, [field], status).fill(0, 1, worker)
    return out[0] if status[0] == DONE else None


def _by_python(case: _Case, data: bytes) -> NDArray[np.uint8] | None:
    out, crop, info = np.empty((*case.size, case.channels), np.uint8), Crop(*case.crop), None
    with suppress(CodecError), one_opencv_thread():
        info = probe_image(data)
        part = decode_part(
            data,
            info,
            crop,
            case.size,
            scratch=Scratch(),
            reduced=case.shrink > 1,
            verified=True,
            channels=case.channels,
        )
        write_part(part, info, crop, out, with_core=False)
        return out
    return None
