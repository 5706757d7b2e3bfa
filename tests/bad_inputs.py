"""Files that people upload by mistake or on purpose, and real pictures with something broken in them.

For tests of everything that takes a picture: `make_bad_inputs` says of each file whether it must be shown or refused,
`mutated_images` gives any number of damaged pictures.
"""

from __future__ import annotations

import io
import os
import random
import struct
import sys
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

RED, BLUE = (200, 30, 30), (30, 30, 200)  # left and right half of every picture that must be shown
HOSTILE = "<img src=x onerror=alert(1)>"  # as a file name and as a class name; Windows cannot write it


@dataclass(frozen=True)
class BadInput:
    path: Path
    what: str  # in words
    shown: bool  # True: must be shown, red on the left and blue on the right; False: must be refused in one line
    says: str = ""  # regular expression that the refusal must fit
    grey: bool = False  # the picture has no colours: dark on the left, light on the right


def halves(size: tuple[int, int] = (64, 48)) -> Image.Image:
    img = Image.new("RGB", size, RED)
    ImageDraw.Draw(img).rectangle((size[0] // 2, 0, *size), fill=BLUE)
    return img


def encoded(img: Image.Image, fmt: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    img.save(buffer, fmt, **options)
    return buffer.getvalue()


def _chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def huge_png(side: int = 20_000) -> bytes:
    """A valid PNG of side x side black pixels, one bit each, in a few kilobytes."""
    packer, row = zlib.compressobj(1), bytes(1 + (side + 7) // 8)
    rows = b"".join(packer.compress(row * 1000) for _ in range(side // 1000)) + packer.compress(row * (side % 1000))
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", rows + packer.flush()) + _chunk(b"IEND", b"")


def _exif(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def _refused() -> list[tuple[str, bytes, str, str]]:
    """Name, bytes, what it is, what must be said."""
    jpeg = encoded(halves((400, 300)), "JPEG")
    svg = b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg" onload="alert(1)"><circle r="9"/></svg>'
    return [
        ("wide.png", huge_png(), "a PNG of 20,000 x 20,000 pixels", r"20,000 x 20,000 pixels, more than"),
        ("cut.jpg", jpeg[: len(jpeg) // 2], "a truncated JPEG", "is cut off"),
        ("drawing.svg", svg, "an SVG", "is an SVG drawing"),
        ("svg.png", svg, "an SVG called PNG", "is an SVG drawing"),
        ("paper.jpg", b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n1 0 obj\n", "a PDF called JPEG", "is a PDF"),
        ("page.jpg", b"<!DOCTYPE html><title>404</title>", "a web page called JPEG", "is a web page"),
        ("empty.jpg", b"", "an empty file", "is empty"),
        ("office.png", b"PK\x03\x04" + bytes(40), "a zip archive called PNG", "is a zip archive"),
        ("phone.heic.jpg", b"\0\0\0\x18ftypheic" + bytes(40), "a HEIC called JPEG", "is a HEIC"),
        ("text.jpg", b"not a picture\n", "text called JPEG", "is plain text"),
        ("noise.jpg", random.Random(0).randbytes(4000), "random bytes", "is of no known kind"),
    ]


def _shown() -> list[tuple[str, bytes, str]]:
    img = halves()
    grey16 = np.where(np.arange(64) < 32, 5_000, 60_000).astype(np.uint16)[None].repeat(48, 0)
    frames = [halves(), Image.new("RGB", (64, 48), "green")]
    clear = img.convert("RGBA")
    clear.putalpha(255)
    named = [
        ("cmyk.jpg", encoded(img.convert("CMYK"), "JPEG", quality=95), "a CMYK JPEG"),
        ("sixteen.png", encoded(Image.fromarray(grey16), "PNG"), "a 16-bit PNG"),
        ("palette.png", encoded(img.quantize(8), "PNG"), "a palette PNG"),
        ("clear.png", encoded(clear, "PNG"), "a PNG with an alpha channel"),
        ("animated.gif", encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]), "an animated GIF"),
        ("animated.webp", encoded(frames[0], "WEBP", save_all=True, append_images=frames[1:]), "an animated WebP"),
        ("turned.jpg", encoded(img.transpose(Image.Transpose.ROTATE_90), "JPEG", exif=_exif(6)), "a photo turned by EXIF"),
        ("really-a-png.jpg", encoded(img, "PNG"), "a PNG called JPEG"),
        ("Größe 猫 (1).JPG", encoded(img, "JPEG"), "a name with spaces and other scripts"),
    ]
    hostile = [(f"{HOSTILE}.png", encoded(img, "PNG"), "a file name with HTML in it"),
               ("a\nb\x1b[31m.png", encoded(img, "PNG"), "a file name with control characters")]
    return named + (hostile if sys.platform != "win32" else [])


def make_bad_inputs(
    folder: str | os.PathLike,  # made when missing
) -> list[BadInput]:
    """Write every file of DESIGN's and the issues' lists into a folder."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    found = [BadInput(folder / name, what, False, says) for name, data, what, says in _refused()]
    found += [BadInput(folder / name, what, True, grey=name == "sixteen.png") for name, data, what in _shown()]
    for name, data, *_ in [*_refused(), *_shown()]:
        (folder / name).write_bytes(data)
    with open(folder / "huge.jpg", "wb") as f:  # sparse: it takes no space
        f.write(encoded(halves(), "JPEG"))
        f.truncate(500 * 2**20)
    found.append(BadInput(folder / "huge.jpg", "a file of 500 MB", False, r"524\.3 MB, more than"))
    return found


def make_hostile_classes(
    folder: str | os.PathLike,  # made when missing
    n: int = 6,  # pictures a class
    size: tuple[int, int] = (48, 40),  # pixels
) -> Path:  # the folder: two classes, one called <img src=x onerror=alert(1)>, red ones and blue ones
    for c, (label, colour) in enumerate({HOSTILE: RED, "plain": BLUE}.items()):
        (Path(folder) / label).mkdir(parents=True, exist_ok=True)
        for i in range(n):
            img = Image.new("RGB", size, colour)
            img.putpixel((i, c), (9, 9, 9))  # no two with the same bytes
            img.save(Path(folder) / label / f"{i}.png")
    return Path(folder)


# ------------------------------------------------------------------------------------------------- mutated pictures


def photo(size: tuple[int, int] = (96, 72), seed: int = 0) -> Image.Image:
    """Shapes, shades and noise: something for every part of a file format to do."""
    rng = np.random.default_rng(seed)
    x, y = np.meshgrid(np.linspace(0, 1, size[0]), np.linspace(0, 1, size[1]))
    a = np.stack([x, y, (x + y) / 2], 2) * 200 + rng.random((size[1], size[0], 3)) * 55
    img = Image.fromarray(a.astype(np.uint8))
    ImageDraw.Draw(img).ellipse((10, 10, 60, 50), fill=(240, 200, 20))
    return img


def real_images() -> list[tuple[str, bytes]]:
    """One file of every format and variant that is decoded, with names."""
    img = photo()
    grey16 = Image.fromarray(np.asarray(img.convert("L")).astype(np.uint16) * 257)
    exif = _exif(6)
    exif[0x010F] = "a camera"
    found = [
        ("plain.jpg", encoded(img, "JPEG", exif=exif)), ("progressive.jpg", encoded(img, "JPEG", progressive=True)),
        ("cmyk.jpg", encoded(img.convert("CMYK"), "JPEG")), ("plain.png", encoded(img, "PNG")),
        ("palette.png", encoded(img.quantize(32), "PNG")), ("grey16.png", encoded(grey16, "PNG")),
        ("alpha.png", encoded(img.convert("RGBA"), "PNG")), ("plain.gif", encoded(img, "GIF")),
        ("animated.gif", encoded(img, "GIF", save_all=True, append_images=[photo(seed=1)])),
        ("lossy.webp", encoded(img, "WEBP")), ("lossless.webp", encoded(img, "WEBP", lossless=True)),
        ("plain.bmp", encoded(img, "BMP")), ("palette.bmp", encoded(img.quantize(16), "BMP")),
        ("plain.tif", encoded(img, "TIFF")), ("lzw.tif", encoded(img, "TIFF", compression="tiff_lzw")),
        ("deflate.tif", encoded(img, "TIFF", compression="tiff_adobe_deflate")), ("jpeg.tif", encoded(img, "TIFF", compression="jpeg")),
        ("packbits.tif", encoded(img.convert("L"), "TIFF", compression="packbits")), ("plain.ppm", encoded(img, "PPM")),
    ]  # fmt: skip
    Image.init()
    return found + ([("plain.avif", encoded(img, "AVIF"))] if "AVIF" in Image.SAVE else [])


def _sizes(data: bytearray, rng: random.Random) -> None:
    """Edit width and height where the format keeps them: absurd sizes are what readers fall over."""
    value = rng.choice([0, 1, 255, 65_535, 65_536, 2**31 - 1, 2**32 - 1])
    if data[:4] == b"\x89PNG":
        struct.pack_into(">I", data, rng.choice([16, 20]), value)
        struct.pack_into(">I", data, 29, zlib.crc32(bytes(data[12:29])))  # the sum fits, so that the size is believed
    elif data[:3] == b"GIF":
        struct.pack_into("<H", data, rng.choice([6, 8]), value & 0xFFFF)
    elif data[:2] == b"BM":
        struct.pack_into("<I", data, rng.choice([18, 22]), value)
    elif data[:2] == b"\xff\xd8":
        at = max(data.find(b"\xff\xc0"), data.find(b"\xff\xc2"))
        if at > 0:
            struct.pack_into(">H", data, at + rng.choice([5, 7]), value & 0xFFFF)
    elif data[:2] == b"II":  # an entry of the first directory: type, count or value
        at = struct.unpack_from("<I", data, 4)[0] + 2 + 12 * rng.randrange(10)
        struct.pack_into("<I", data, min(at + rng.choice([4, 8]), len(data) - 4), value)
    else:
        struct.pack_into("<I", data, rng.randrange(4, min(60, len(data) - 4)), value)


def mutate(data: bytes, rng: random.Random, other: bytes = b"") -> bytes:
    """One to three things broken: bits, bytes, a cut, an insertion, a hole, a splice with another file, the sizes."""
    out = bytearray(data)
    for _ in range(rng.randint(1, 3)):
        at = rng.randrange(len(out))
        kind = rng.choice(["bits", "bytes", "cut", "insert", "delete", "zero", "repeat", "splice", "header", "sizes"])
        if kind == "bits":
            for _ in range(rng.randint(1, 20)):
                out[rng.randrange(len(out))] ^= 1 << rng.randrange(8)
        elif kind == "bytes":
            out[at : at + 8] = rng.randbytes(len(out[at : at + 8]))
        elif kind == "cut":
            del out[max(at, 16) :]
        elif kind == "insert":
            out[at:at] = rng.randbytes(rng.randint(1, 64))
        elif kind == "delete":
            del out[max(at, 16) : max(at, 16) + rng.randint(1, 64)]
        elif kind == "zero":
            out[at : at + 64] = bytes(len(out[at : at + 64]))
        elif kind == "repeat":
            out[at:at] = out[at : at + rng.randint(1, 2000)]
        elif kind == "splice":
            out[at:] = (other or data)[rng.randrange(len(other or data)) :]
        elif kind == "header":
            for _ in range(rng.randint(1, 8)):
                out[rng.randrange(min(64, len(out)))] = rng.randrange(256)
        elif len(out) > 64:
            _sizes(out, rng)
        if len(out) < 2:
            break
    return bytes(out)


def mutated_images(
    n: int = 100,  # how many
    seed: int = 0,
    *,
    extra: Sequence[tuple[str, bytes]] = (),  # further real pictures: name and bytes
) -> Iterator[tuple[str, bytes]]:  # name and bytes; the same ones for the same arguments
    """Damaged pictures of every format in turn. Some are still readable."""
    rng, originals = random.Random(seed), [*real_images(), *extra]
    for i in range(n):
        name, data = originals[i % len(originals)]
        yield f"{i:03}-{name}", mutate(data, rng, other=rng.choice(originals)[1])
