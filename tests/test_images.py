"""vision.images: what loads, what is refused, and that nothing but ImageError ever comes out."""

import contextlib
import datetime
import io
import random
import subprocess
import sys
import threading
import time
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from coursekit.vision import images
from coursekit.vision.images import (
    ImageError,
    check_images,
    load_image,
    to_pil,
    to_uint8_tensor,
    verify_images,
)
from coursekit.vision.pil import PILImage, PILMask

HEADS = [b"", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"BM", b"II*\0", b"RIFF\x20\0\0\0WEBP", b"P6\n"]
FILES = [
    ("JPEG", "RGB", {}),
    ("JPEG", "CMYK", {}),
    ("JPEG", "RGB", {"progressive": True}),
    ("PNG", "RGB", {}),
    ("PNG", "P", {}),
    ("PNG", "I;16", {}),
    ("PNG", "RGBA", {}),
    ("WEBP", "RGB", {}),
    ("GIF", "P", {}),
    ("BMP", "RGB", {}),
    ("TIFF", "RGB", {}),
    ("TIFF", "F", {}),
    ("TIFF", "RGB", {"compression": "tiff_lzw"}),
    ("PPM", "RGB", {}),
    ("AVIF", "RGB", {}),
]
IDS = [f"{f}-{m}{'-' if k else ''}{''.join(map(str, k.values()))}" for f, m, k in FILES]


def picture(mode="RGB", size=(48, 32), seed=0):
    rng = np.random.default_rng(seed)
    x, y = np.meshgrid(np.linspace(0, 1, size[0]), np.linspace(0, 1, size[1]))
    a = np.stack([x, y, (x + y) / 2], 2) * 200 + rng.random((size[1], size[0], 3)) * 55
    img = Image.fromarray(a.astype(np.uint8))
    if mode == "I;16":
        return Image.fromarray(np.asarray(img.convert("L")).astype(np.uint16) * 257)
    if mode == "F":
        return Image.fromarray(np.asarray(img.convert("L")).astype(np.float32) / 255)
    return img.convert(mode)


def file_bytes(fmt, mode="RGB", size=(48, 32), **options):
    if fmt == "AVIF" and "AVIF" not in Image.SAVE:
        Image.init()
        if "AVIF" not in Image.SAVE:
            pytest.skip("this Pillow has no AVIF")
    buffer = io.BytesIO()
    picture(mode, size).save(buffer, fmt, **options)
    return buffer.getvalue()


@pytest.mark.parametrize(("fmt", "mode", "options"), FILES, ids=IDS)
def test_every_format_gives_the_picture(fmt, mode, options):
    img = load_image(file_bytes(fmt, mode, **options))
    assert type(img) is Image.Image and img.mode == "RGB" and img.size == (48, 32)
    grey = mode in ("I;16", "F")
    want = np.asarray(picture().convert("L") if grey else picture()).astype(int)
    got = np.asarray(img.convert("L") if grey else img).astype(int)
    assert np.abs(got - want).mean() < 16


def mutate(data: bytes, rng: random.Random) -> bytes:
    data = bytearray(data)
    kind = rng.choice(["flip", "cut", "zero", "insert", "header", "swap"])
    at = rng.randrange(len(data))
    if kind == "flip":
        for _ in range(rng.randint(1, 20)):
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    elif kind == "cut":
        del data[at:]
    elif kind == "zero":
        data[at : at + rng.randint(1, 64)] = bytes(8)
    elif kind == "insert":
        data[at:at] = rng.randbytes(rng.randint(1, 64))
    elif kind == "header":
        for _ in range(rng.randint(1, 8)):
            data[rng.randrange(min(64, len(data)))] = rng.randrange(256)
    else:
        to = rng.randrange(len(data))
        data[at : at + 16], data[to : to + 16] = data[to : to + 16], data[at : at + 16]
    return bytes(data)


@pytest.mark.parametrize(("fmt", "mode", "options"), FILES, ids=IDS)
def test_mutated_files_load_or_raise_image_error(fmt, mode, options):
    original, rng, refused = file_bytes(fmt, mode, **options), random.Random(f"{fmt}{mode}"), 0
    for _ in range(100):
        data = mutate(original, rng)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            try:
                img, error = load_image({"name": "mutated.bin", "content": data}), None
            except ImageError as e:
                img, error = None, str(e)
        refused += error is not None
        assert img.mode == "RGB" if img else "\n" not in error and error.startswith("mutated.bin ") and len(error) < 400
    assert refused > 0


@settings(max_examples=80, deadline=None)
@given(st.binary(max_size=200), st.sampled_from(HEADS))
def test_any_bytes_load_or_raise_image_error(data, head):
    with contextlib.suppress(ImageError):
        load_image(head + data)


def test_a_truncated_file_is_named(tmp_path):
    path = tmp_path / "cut.jpg"
    path.write_bytes(file_bytes("JPEG")[:700])
    with pytest.raises(ImageError, match=r"cut\.jpg is cut off .*verify_images\(files\)"):
        load_image(path)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(orientation):
    "Whatever way the camera was held, the picture comes out as it was seen."
    # what the sensor did to the picture, as numbers of Image.Transpose
    undo = {1: None, 2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}[orientation]
    seen, exif, buffer = picture(), Image.Exif(), io.BytesIO()
    exif[0x0112] = orientation
    (seen if undo is None else seen.transpose(Image.Transpose(undo))).save(buffer, "PNG", exif=exif)
    img = load_image(buffer.getvalue())
    assert img.size == seen.size and img.tobytes() == seen.tobytes()
    assert load_image(img).tobytes() == seen.tobytes() and not img.getexif()


def test_transparency_is_composed_on_white():
    img = Image.new("RGBA", (2, 2), (0, 0, 200, 128))
    assert load_image(img).getpixel((0, 0)) == (127, 127, 227)
    key = Image.new("P", (2, 2), 3)
    key.putpalette([9, 9, 9] * 256)
    buffer = io.BytesIO()
    key.save(buffer, "PNG", transparency=3)
    assert load_image(buffer.getvalue()).getpixel((0, 0)) == (255, 255, 255)


def test_sixteen_bits_are_scaled_not_cut():
    a = np.linspace(0, 65535, 1024).astype(np.uint16).reshape(32, 32)
    for fmt in ("PNG", "TIFF"):
        buffer = io.BytesIO()
        Image.fromarray(a).save(buffer, fmt)
        got = np.asarray(load_image(buffer.getvalue()).convert("L")).astype(float)
        assert np.abs(got - a / 257).max() <= 0.51


def test_an_animation_gives_its_first_frame():
    frames = [Image.new("RGB", (8, 8), c) for c in ("red", "blue")]
    for fmt in ("GIF", "WEBP", "PNG", "TIFF"):
        buffer = io.BytesIO()
        frames[0].save(buffer, fmt, save_all=True, append_images=frames[1:])
        r, g, b = load_image(buffer.getvalue()).getpixel((4, 4))
        assert r > 240 and g < 15 and b < 15


def test_caps_come_before_decoding(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    path.write_bytes(file_bytes("PNG"))
    monkeypatch.setattr(images.Path, "read_bytes", lambda self: pytest.fail("a file over the cap was read"))
    with pytest.raises(ImageError, match="pass a larger max_bytes"):
        load_image(path, max_bytes=10)
    monkeypatch.undo()
    Image.init()
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("a picture over the cap was decoded"))
    with pytest.raises(ImageError, match=r"48 x 32 pixels, more than the 0.001 million"):
        load_image(path, max_pixels=1000)


@pytest.mark.parametrize(("fmt", "mode", "options", "fits"), [
    ("PNG", "RGB", {}, True), ("PNG", "RGBA", {}, True), ("PNG", "I;16", {}, True), ("PNG", "L", {}, True), ("JPEG", "RGB", {}, True), ("JPEG", "CMYK", {}, True),
    ("PNG", "LA", {}, False), ("PNG", "P", {}, False), ("WEBP", "RGB", {}, False), ("TIFF", "F", {}, False), ("JPEG", "RGB", {"progressive": True}, False)])  # fmt: skip
def test_memory_is_limited_before_decoding(monkeypatch, fmt, mode, options, fits):
    """The same number of pixels takes more memory in some modes and formats than in others: 8 bytes for each are allowed."""
    data = file_bytes(fmt, mode, **options)
    if fits and Image.open(io.BytesIO(data)).mode == mode:  # Pillow before 10.3 reads 16-bit PNGs as 32 bits, which take more
        assert load_image(data, max_pixels=48 * 32).size == (48, 32)
        return
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("an image over the limit was decoded"))
    with pytest.raises(ImageError, match=r"48 x 32 pixels in \w+ of mode .+ MB to decode.*pass a larger max_pixels"):
        load_image(data, max_pixels=48 * 32)


PEAKS = """
import io, os, resource, sys
from PIL import Image
from coursekit.vision import images
turned = Image.Exif()
turned[0x0112] = 6
for fmt, mode, options in (("PNG", "RGB", {}), ("PNG", "RGBA", {}), ("PNG", "LA", {}), ("PNG", "P", {"transparency": 0}), ("PNG", "I;16", {}), ("TIFF", "F", {}),
                           ("WEBP", "RGB", {}), ("JPEG", "RGB", {}), ("JPEG", "RGB", {"progressive": True, "subsampling": 0}), ("JPEG", "RGB", {"exif": turned})):
    buffer = io.BytesIO()
    Image.new(mode, (3000, 3000)).save(buffer, fmt, **options)
    data = buffer.getvalue()
    del buffer
    r, w = os.pipe()
    if not os.fork():
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        need = 3000 * 3000 * images._check_size(images._open(data, "x"), "x", images.MAX_PIXELS)
        images.load_image(data)
        used = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
        os.write(w, f"{fmt} {mode} {sorted(options)} {need} {used}".encode())
        os._exit(0)
    os.wait()
    print(os.read(r, 200).decode())
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="measures memory as Linux counts it")
def test_decoding_takes_no_more_memory_than_was_counted():
    """Files of a few kB with 9 million pixels, each decoded in a process of its own."""
    said = subprocess.run([sys.executable, "-c", PEAKS], capture_output=True, text=True, check=True).stdout.splitlines()
    assert len(said) == 10
    for line in said:
        need, used = map(int, line.split()[-2:])
        assert used <= 1.1 * need, line


def test_large_images_are_decoded_one_at_a_time(monkeypatch, tmp_path):
    """However many threads ask, so that a folder of them takes no more memory than one."""
    now, most, upright = [], [], images._upright

    def slow(img):
        now.append(1)
        most.append(len(now))
        time.sleep(0.005)
        now.pop()
        return upright(img)

    files = [tmp_path / f"{i}.png" for i in range(12)]
    for f in files:
        f.write_bytes(file_bytes("PNG"))
    monkeypatch.setattr(images, "_upright", slow)
    monkeypatch.setattr(images, "cpu_cores", lambda: 8)
    monkeypatch.setattr(images, "_LARGE", 0)
    assert check_images(files) == [] and max(most) == 1
    monkeypatch.setattr(images, "_LARGE", 2**40)
    assert check_images(files) == [] and max(most) > 1  # small ones are not held up


def test_pillows_own_limit_is_neither_hit_nor_changed():
    buffer, limit = io.BytesIO(), Image.MAX_IMAGE_PIXELS
    Image.new("1", (9500, 9500)).save(buffer, "PNG")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load_image(buffer.getvalue()).size == (9500, 9500)
    assert limit == Image.MAX_IMAGE_PIXELS


def test_warning_filters_survive_threads():
    before, data = list(warnings.filters), file_bytes("JPEG")
    threads = [threading.Thread(target=lambda: [load_image(data) for _ in range(20)]) for _ in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert list(warnings.filters) == before


def test_draft_is_never_smaller_than_twice_what_is_needed():
    data = file_bytes("JPEG", size=(640, 480))
    for need in (10, 31, 60, 100, 121, (40, 130), 300, 2000):
        w, h = load_image(data, draft_size=need).size
        assert min(w, h) >= min(480, 2 * (need if isinstance(need, int) else max(need)))
        assert abs(w / h - 4 / 3) < 0.05
    assert load_image(data, draft_size=30).size == (80, 60)


def test_file_upload_of_ipywidgets():
    widgets = pytest.importorskip("ipywidgets")
    upload = widgets.FileUpload()
    with pytest.raises(ImageError, match="choose one file"):
        PILImage.create(upload)
    content, now = memoryview(file_bytes("PNG")), datetime.datetime.now()
    upload.value = ({"name": "a.png", "type": "image/png", "size": 9, "content": content, "last_modified": now},)
    for source in (upload, upload.value, upload.value[0], upload.value[0]["content"]):
        assert PILImage.create(source).tobytes() == picture().tobytes()
    upload.value = ({**upload.value[0], "name": "<img onerror=x>\n.png", "content": memoryview(b"%PDF")},)
    with pytest.raises(ImageError, match=r"^<img onerror=x>\?\.png is a PDF"):
        PILImage.create(upload)


def test_the_picture_is_a_copy():
    img = picture()
    load_image(img).putpixel((0, 0), (1, 2, 3))
    assert img.tobytes() == picture().tobytes()


@pytest.mark.parametrize(
    "source",
    [
        None,
        3,
        2.5,
        object(),
        ["a.jpg", "b.jpg"],
        {},
        {"name": "x"},
        np.zeros((2, 2, 2, 3)),
        np.zeros((0, 4)),
        np.array(["a"]),
        np.full((4, 4), np.inf),
        torch.zeros(5, 4, 4),
        torch.full((3, 4, 4), -2.0),
        "no/such/file.jpg",
        "bad\0name",
        "",
        ".",
        "https://example.org/cat.jpg",
    ],
)
def test_what_is_no_picture_is_refused_in_one_line(source):
    with pytest.raises(ImageError) as e:
        load_image(source)
    assert "\n" not in str(e.value) and ";" in str(e.value)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.sampled_from([1, 3]))
def test_tensor_round_trip(h, w, c):
    x = torch.randint(0, 256, (c, h, w), dtype=torch.uint8, generator=torch.Generator().manual_seed(h * 41 + w))
    assert torch.equal(to_uint8_tensor(to_pil(x)), x)
    assert torch.equal(to_uint8_tensor(to_pil(x.float() / 255)), x)
    y = to_uint8_tensor(load_image(x))
    assert y.permute(1, 2, 0).is_contiguous() and torch.equal(y, x.expand(3, -1, -1))


def test_masks_keep_their_numbers():
    a = np.random.default_rng(0).integers(0, 256, (16, 24), dtype=np.uint8)
    pal = Image.fromarray(a).convert("P")
    pal.putpalette(list(range(256))[::-1] * 3)
    for img in (Image.fromarray(a), pal, Image.fromarray(np.stack([a] * 3, 2)), Image.fromarray(a.astype(np.uint16))):
        buffer = io.BytesIO()
        img.save(buffer, "PNG")
        assert np.array_equal(np.asarray(PILMask.create(buffer.getvalue())), a)
    assert np.array_equal(np.asarray(PILMask.create(torch.tensor(a)[None])), a)
    for wrong in (
        picture(),
        picture("CMYK"),
        np.int64([[-1]]),
        np.float32([[0.5]]),
        Image.fromarray(np.uint16([[300]])),
    ):
        with pytest.raises(ImageError):
            PILMask.create(wrong)


def test_verify_images_finds_all_bad_ones_in_order(tmp_path):
    good, bad = file_bytes("JPEG"), [b"", b"<html>", file_bytes("JPEG")[:400], file_bytes("PNG")[:-200]]
    files = []
    for i in range(240):
        files.append(tmp_path / f"{i:03}.jpg")
        files[-1].write_bytes(bad[i // 60] if i % 60 == 7 else good)
    files.append(tmp_path / "missing.jpg")
    assert verify_images(files) == [files[7], files[67], files[127], files[187], files[-1]]
    reasons = [why for _, why in check_images(iter(files))]
    assert (
        reasons[0] == "is empty"
        and "web page" in reasons[1]
        and "cut off" in reasons[2]
        and reasons[4] == "does not exist"
    )
