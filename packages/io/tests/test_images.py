"""kit_io.images: every mode, colour space, orientation and transparency gives the expected pixels; bad files, words."""

import io
import pickle
import struct
import warnings
import zlib
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms

from kit_core.errors import DataError
from kit_io.images import FORMATS, ImageError, decode, squash

RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (6, 9, 3), dtype=np.uint8)  # pixels that differ everywhere, and no symmetry
GRAY = RNG.integers(0, 256, (6, 9), dtype=np.uint8)
ALPHA = RNG.integers(0, 256, (6, 9), dtype=np.uint8)
Pixels = npt.NDArray[np.uint8]


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def pixels(data: bytes, **options: object) -> Pixels:
    image = decode(data, name="x", **options)  # type: ignore[arg-type]  # the tests pass what they mean
    assert image.mode == "RGB"
    return np.asarray(image)


def gray_rgb(gray: npt.NDArray[np.generic]) -> Pixels:
    return np.repeat(np.asarray(gray, dtype=np.uint8)[..., None], 3, axis=2)


def on_white(color: Pixels, alpha: Pixels) -> npt.NDArray[np.float64]:
    share = alpha[..., None] / 255
    return color * share + 255 * (1 - share)


def png(width: int, height: int, depth: int, color_type: int, rows: bytes, *chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG made by hand, for what Pillow cannot write."""
    header = struct.pack(">IIBBBBB", width, height, depth, color_type, 0, 0, 0)
    parts = [(b"IHDR", header), *chunks, (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    body = [struct.pack(">I", len(d)) + t + d + struct.pack(">I", zlib.crc32(t + d)) for t, d in parts]
    return b"\x89PNG\r\n\x1a\n" + b"".join(body)


def patterned(width: int, height: int) -> Image.Image:
    """A picture with edges, gradients and texture, as photos have them."""
    y, x = np.mgrid[0:height, 0:width]
    waves = [127 + 80 * np.sin(x / a) * np.cos(y / b) for a, b in ((37, 53), (91, 29), (17, 71))]
    image = np.stack(waves, axis=2) + 40 * ((x // 64 + y // 64) % 2)[..., None]
    return Image.fromarray(np.clip(image + np.random.default_rng(1).normal(0, 6, image.shape), 0, 255).astype(np.uint8))


# --- modes


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF"])
def test_rgb_stays_as_it_is(kind: str):
    assert np.array_equal(pixels(encoded(Image.fromarray(RGB), kind)), RGB)


@pytest.mark.parametrize("kind", ["WEBP", "JPEG2000"])
def test_rgb_of_formats_that_can_be_exact(kind: str):
    options = {"lossless": True} if kind == "WEBP" else {}
    assert np.array_equal(pixels(encoded(Image.fromarray(RGB), kind, **options)), RGB)


@pytest.mark.parametrize("kind", ["JPEG", "AVIF"])
def test_rgb_of_formats_that_lose(kind: str):
    flat = np.full((32, 32, 3), (200, 120, 40), np.uint8)
    assert np.abs(pixels(encoded(Image.fromarray(flat), kind, quality=95)).astype(int) - flat).max() <= 4


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "JPEG"])
def test_gray(kind: str):
    result = pixels(encoded(Image.fromarray(GRAY), kind, **({"quality": 100} if kind == "JPEG" else {})))
    assert np.abs(result.astype(int) - gray_rgb(GRAY)).max() <= (4 if kind == "JPEG" else 0)
    assert (result == result[..., :1]).all()


def test_one_bit():
    bits = GRAY > 128
    for kind in ("PNG", "TIFF", "BMP"):
        assert np.array_equal(pixels(encoded(Image.fromarray(bits), kind)), gray_rgb(bits * 255))


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
def test_alpha_stands_on_white(kind: str):
    image = Image.fromarray(np.dstack([RGB, ALPHA]))
    result = pixels(encoded(image, kind, **({"lossless": True, "exact": True} if kind == "WEBP" else {})))
    assert np.abs(result - on_white(RGB, ALPHA)).max() <= 1


def test_gray_with_alpha_stands_on_white():
    image = Image.merge("LA", (Image.fromarray(GRAY), Image.fromarray(ALPHA)))
    assert np.abs(pixels(encoded(image)) - on_white(gray_rgb(GRAY), ALPHA)).max() <= 1


def test_color_under_full_transparency_never_shows():
    image = Image.fromarray(np.dstack([RGB, np.zeros_like(GRAY)]))
    assert (pixels(encoded(image)) == 255).all()


def palette_image() -> tuple[Image.Image, Pixels, Pixels]:
    indices = RNG.integers(0, 4, (6, 9), dtype=np.uint8)
    colors = np.array([(10, 20, 30), (200, 0, 0), (0, 250, 5), (90, 90, 250)], np.uint8)
    image = Image.fromarray(indices, "L")
    image.putpalette(colors.tobytes())
    assert image.mode == "P"
    return image, indices, colors


@pytest.mark.parametrize("kind", ["PNG", "GIF", "TIFF", "BMP"])
def test_palette(kind: str):
    image, indices, colors = palette_image()
    assert np.array_equal(pixels(encoded(image, kind)), colors[indices])


def test_palette_with_a_share_of_transparency_for_each_color():
    image, indices, colors = palette_image()
    shares = np.array([255, 0, 128, 40], np.uint8)
    result = pixels(encoded(image, transparency=shares.tobytes()))
    assert np.abs(result - on_white(colors[indices], shares[indices])).max() <= 1


@pytest.mark.parametrize("kind", ["PNG", "GIF"])
def test_palette_with_one_transparent_color(kind: str):
    image, indices, colors = palette_image()
    expected = np.where((indices == 1)[..., None], 255, colors[indices])
    assert np.array_equal(pixels(encoded(image, kind, transparency=1)), expected)


def test_transparent_color_of_images_without_palette():
    color = RGB.copy()
    color[2, 3] = color[4, 4] = (1, 2, 3)
    expected = np.where((color == (1, 2, 3)).all(axis=2, keepdims=True), 255, color)
    assert np.array_equal(pixels(encoded(Image.fromarray(color), transparency=(1, 2, 3))), expected)
    gray = GRAY.copy()
    gray[1, 1] = 77
    expected = gray_rgb(np.where(gray == 77, 255, gray))
    assert np.array_equal(pixels(encoded(Image.fromarray(gray), transparency=77)), expected)


def test_sixteen_bits_are_rounded():
    values = RNG.integers(0, 65536, (6, 9)).astype(np.uint16)
    values[0, :4] = (0, 128, 129, 65535)
    expected = gray_rgb(np.round(values / 257))
    for kind in ("PNG", "TIFF"):
        assert np.array_equal(pixels(encoded(Image.fromarray(values), kind)), expected)
    with_white = np.where((values == 129)[..., None], 255, expected)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    assert np.array_equal(pixels(png(9, 6, 16, 0, rows, (b"tRNS", struct.pack(">H", 129)))), with_white)


def test_sixteen_bits_a_channel():
    values = RNG.integers(0, 65536, (6, 9, 4)).astype(np.uint16)
    rows = b"".join(b"\0" + row[:, :3].astype(">u2").tobytes() for row in values)
    assert np.abs(pixels(png(9, 6, 16, 2, rows)) - values[..., :3] / 257).max() <= 1
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    expected = on_white(values[..., :3] / 257, values[..., 3] / 257)
    assert np.abs(pixels(png(9, 6, 16, 6, rows)) - expected).max() <= 2


def test_32_bits_have_no_agreed_white():
    with pytest.raises(ImageError, match="32-bit pixels"):
        decode(encoded(Image.fromarray(GRAY.astype(np.float32)), "TIFF"), name="x")


INK = (40, 90, 160, 30)  # cyan, magenta, yellow, black
INK_RGB = [round((255 - ink) * (255 - INK[3]) / 255) for ink in INK[:3]]


@pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
def test_cmyk(kind: str):
    image = Image.new("CMYK", (32, 32), INK)
    result = pixels(encoded(image, kind, **({"quality": 100} if kind == "JPEG" else {})))
    assert np.abs(result.astype(int) - INK_RGB).max() <= 2


def test_ycck():
    """Planes that are luma and chroma of the inks; the byte of the Adobe marker tells a reader to turn them back."""
    c, m, y = INK[:3]
    luma = 0.299 * c + 0.587 * m + 0.114 * y
    stored = (luma, 128 + (y - luma) / 1.772, 128 + (c - luma) / 1.402)
    planes = (*(255 - round(value) for value in stored), INK[3])
    data = encoded(Image.new("CMYK", (32, 32), planes), "JPEG", quality=100)
    marker = data.index(b"Adobe")
    assert data[marker + 11] == 0
    data = data[: marker + 11] + b"\x02" + data[marker + 12 :]
    assert np.abs(pixels(data).astype(int) - INK_RGB).max() <= 3


# --- frames, orientation, colour profiles


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF", "AVIF"])
def test_the_first_frame_counts(kind: str):
    frames = [Image.new("RGB", (40, 30), color) for color in ("red", "blue", "lime")]
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:])
    assert np.abs(pixels(data).astype(int) - (255, 0, 0)).max() <= 3


# What the standard says of each value, written with NumPy: from the stored picture to the upright one.
STORED_TO_UPRIGHT: dict[int, Callable[[Pixels], Pixels]] = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: np.rot90(a),
}


def with_orientation(image: Image.Image, value: int, kind: str) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = value
    return encoded(image, kind, exif=exif, **({"lossless": True} if kind == "WEBP" else {"quality": 100}))


@pytest.mark.parametrize("value", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF", "JPEG"])
def test_pictures_are_turned_upright(kind: str, value: int):
    stored = RGB if kind != "JPEG" else np.asarray(patterned(48, 80))
    expected = STORED_TO_UPRIGHT[value](stored)
    result = pixels(with_orientation(Image.fromarray(stored), value, kind))
    assert result.shape == expected.shape
    assert np.abs(result.astype(int) - expected).mean() <= (6 if kind == "JPEG" else 0)  # JPEG: chroma at half size


@pytest.mark.parametrize("value", [0, 9, 1000])
def test_an_orientation_that_does_not_exist_changes_nothing(value: int):
    assert np.array_equal(pixels(with_orientation(Image.fromarray(RGB), value, "PNG")), RGB)


def test_broken_exif_harms_no_pixel():
    data = encoded(Image.fromarray(RGB), exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff" + bytes(7))
    assert np.array_equal(pixels(data), RGB)


def profile(space: str) -> bytes:
    """An ICC profile (v2) with the primaries of sRGB, or gray, but linear values."""

    def fixed(*values: float) -> bytes:
        return b"".join(struct.pack(">i", round(value * 65536)) for value in values)

    curve = b"curv" + bytes(4) + struct.pack(">I", 0)  # no points: identity
    text = b"linear\0"
    tags = {
        b"desc": b"desc" + bytes(4) + struct.pack(">I", len(text)) + text + bytes(78),
        b"cprt": b"text" + bytes(4) + b"none\0",
        b"wtpt": b"XYZ " + bytes(4) + fixed(0.9642, 1, 0.8249),
    }
    if space == "GRAY":
        tags[b"kTRC"] = curve
    else:
        primaries = {b"r": (0.4361, 0.2225, 0.0139), b"g": (0.3851, 0.7169, 0.0971), b"b": (0.1431, 0.0606, 0.7141)}
        for letter, primary in primaries.items():
            tags[letter + b"XYZ"] = b"XYZ " + bytes(4) + fixed(*primary)
            tags[letter + b"TRC"] = curve
    table, content, position = b"", b"", 128 + 4 + 12 * len(tags)
    for tag, value in tags.items():
        padded = value + bytes(-len(value) % 4)
        table += tag + struct.pack(">II", position + len(content), len(value))
        content += padded
    body = struct.pack(">I", len(tags)) + table + content
    header = struct.pack(
        ">I4sI4s4s4s", 128 + len(body), bytes(4), 0x02100000, b"mntr", space.encode().ljust(4), b"XYZ "
    )
    header += bytes(12) + b"acsp" + bytes(28) + fixed(0.9642, 1, 0.8249)
    return header.ljust(128, b"\0") + body


def srgb_of_linear(values: npt.NDArray[np.generic]) -> npt.NDArray[np.float64]:
    """The transfer function of IEC 61966-2-1."""
    x = values.astype(np.float64) / 255
    return 255 * np.where(x <= 0.0031308, 12.92 * x, 1.055 * x ** (1 / 2.4) - 0.055)


def test_color_profiles_are_applied():
    result = pixels(encoded(Image.fromarray(RGB), icc_profile=profile("RGB")))
    assert np.abs(result - srgb_of_linear(RGB)).max() <= 3
    result = pixels(encoded(Image.fromarray(GRAY), icc_profile=profile("GRAY")))
    difference = np.abs(result - srgb_of_linear(gray_rgb(GRAY)))
    assert difference[GRAY >= 16].max() <= 3
    assert difference.max() <= 12  # LittleCMS goes by a table, and near black the curve is as steep as 13 to 1


def test_color_profiles_with_palette_and_alpha():
    image, indices, colors = palette_image()
    result = pixels(encoded(image, icc_profile=profile("RGB")))
    assert np.abs(result - srgb_of_linear(colors[indices])).max() <= 3
    image = Image.fromarray(np.dstack([RGB, ALPHA]))
    result = pixels(encoded(image, icc_profile=profile("RGB")))
    assert np.abs(result - on_white(srgb_of_linear(RGB), ALPHA)).max() <= 4


@pytest.mark.parametrize("useless", [b"no profile", profile("RGB")[:200], profile("GRAY")])
def test_profiles_that_do_not_fit_are_left_aside(useless: bytes):
    assert np.array_equal(pixels(encoded(Image.fromarray(RGB), icc_profile=useless)), RGB)


def test_srgb_itself_changes_nothing():
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    assert np.array_equal(pixels(encoded(Image.fromarray(RGB), icc_profile=srgb)), RGB)


# --- size


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}])
def test_large_jpegs_are_decoded_smaller_with_nearly_the_same_result(options: dict[str, object]):
    data = encoded(patterned(1600, 1200), "JPEG", quality=90, **options)
    small = decode(data, name="x", target=128)
    assert small.size == (400, 300)  # a quarter; an eighth would be less than twice the target
    plain = np.asarray(Image.open(io.BytesIO(data)).resize((128, 128), Image.Resampling.BICUBIC)).astype(int)
    assert np.abs(squash(small, 128) - plain).mean() < 2


def test_orientation_and_draft_go_together():
    image = patterned(1600, 1200)
    upright = decode(with_orientation(image, 6, "JPEG"), name="x", target=64)
    assert upright.size == (150, 200)
    expected = squash(image.transpose(Image.Transpose.ROTATE_270), 64)
    assert np.abs(squash(upright, 64).astype(int) - expected).mean() < 3


def test_what_is_not_scaled():
    assert decode(encoded(patterned(250, 900), "JPEG"), name="x", target=128).size == (250, 900)
    assert decode(encoded(patterned(800, 900), "PNG"), name="x", target=16).size == (800, 900)


def test_squash_is_a_plain_resize():
    image = patterned(640, 360)
    expected = np.asarray(image.resize((96, 96), Image.Resampling.BICUBIC)).astype(int)
    result = squash(image, 96)
    assert result.shape == (96, 96, 3)
    assert np.abs(result - expected).mean() < 1.5
    assert np.abs(squash(Image.fromarray(RGB), 32).astype(int) - Image.fromarray(RGB).resize((32, 32))).max() <= 1


# --- bad files


def refused(data: bytes, *words: str, **options: object) -> None:
    with warnings.catch_warnings(action="error"), pytest.raises(ImageError) as caught:
        pixels(data, **options)
    message = str(caught.value)
    for word in (*words, "x: 1 problem", "expected: a whole image", "do: "):
        assert word in message
    assert caught.value.exit_code == 3
    assert isinstance(caught.value, DataError)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "no bytes at all"),
        (b"%PDF-1.7 ...", "a PDF document"),
        (b"PK\x03\x04" + bytes(30), "a zip archive"),
        (b"<!DOCTYPE html><html><body>404</body>", "a web page"),
        (b'<?xml version="1.0"?>\n<svg xmlns="x"></svg>', "an SVG drawing"),
        (b"\0\0\0\x18ftypheic" + bytes(40), "an HEIC photo"),
        (b"\0\0\0\x18ftypmp42" + bytes(40), "a video"),
        (b"\0\0\0\x18ftypavif" + bytes(40), "the first bytes of an AVIF image"),
        (b"Just some notes.\n", "text, not an image"),
        ("Заметки\n".encode("cp1251"), "bytes of no known image format"),
        (bytes(1000), "bytes of no known image format"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n", "text, not an image"),
        (b"\xff\xd8\xff\xe0", "the first bytes of an image"),
        (b"RIFF1234WAVEfmt ", "the first bytes of an image"),
    ],
)
def test_what_is_no_image_is_named(data: bytes, words: str):
    refused(data, f"the content: found {words}")


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF", "BMP"])
def test_truncated(kind: str):
    data = encoded(patterned(200, 150), kind)
    refused(data[: len(data) // 2], "")


def test_damaged_in_the_middle():
    data = bytearray(encoded(patterned(200, 150)))
    data[len(data) // 2] ^= 0xFF
    refused(bytes(data), "a damaged image")


@pytest.mark.parametrize("size", [(20_000, 10_000), (11_000, 10_000), (60_000, 60_000)])
def test_too_large_by_its_own_word(size: tuple[int, int]):
    refused(png(*size, 1, 0, b""), "00 pixels" if size[0] > 11_000 else "11,000 x 10,000 pixels, above the limit")


def test_the_pixel_limit_can_be_set():
    data = encoded(Image.fromarray(RGB))
    assert pixels(data, max_pixels=54).shape == RGB.shape
    refused(data, "9 x 6 pixels, above the limit of 53", max_pixels=53)
    allowed = encoded(Image.new("1", (9_600, 9_600)))  # Pillow itself would remark on this size
    with warnings.catch_warnings(action="error"):
        assert decode(allowed, name="x").size == (9_600, 9_600)


def test_errors_pickle():
    error = pickle.loads(pickle.dumps(ImageError("a.jpg", "no bytes at all")))
    assert (error.name, error.found) == ("a.jpg", "no bytes at all")
    assert str(error) == str(ImageError("a.jpg", "no bytes at all"))


SEEDS = [encoded(patterned(40, 30), kind) for kind in FORMATS]


@settings(deadline=None, max_examples=150)
@given(st.sampled_from(SEEDS), st.data())
def test_whatever_is_changed_gives_a_picture_or_words(seed: bytes, data: st.DataObject):
    """TIFF and JPEG 2000 readers in C remark on stderr; that is theirs."""
    changed = bytearray(seed[: data.draw(st.integers(1, len(seed)))])
    for _ in range(data.draw(st.integers(0, 5))):
        changed[data.draw(st.integers(0, len(changed) - 1))] = data.draw(st.integers(0, 255))
    with warnings.catch_warnings(action="error"):
        try:
            outcome = decode(bytes(changed), name="x", max_pixels=10**6).mode
        except ImageError as error:
            outcome = str(error)
    assert outcome == "RGB" or outcome.startswith("x: 1 problem\n  the content: found ")
    assert all(line.isprintable() for line in outcome.splitlines())
