"""Any image file as one kind of pixels: 8-bit RGB in the sRGB colour space, upright, on white.

What a file is, its content says; the extension is not looked at. Every mode, colour space and kind of transparency of
the formats below ends in the same three channels, so that a model meets pictures and not file formats.
"""

import functools
import io
import re
import warnings

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageCms, UnidentifiedImageError

from kit_core.errors import DataError, Problems

# Pillow would also open what other programs draw (EPS starts Ghostscript) and dozens of formats nobody sends.
FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "TIFF", "WEBP")
MAX_PIXELS = 100_000_000
DRAFT_MARGIN = 2  # a JPEG is decoded at no less than twice the size that is wanted: smaller, and blocks show
ORIENTATION_TAG = 0x0112  # of EXIF
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
ICC_SPACES = {"RGB": "RGB", "L": "GRAY", "CMYK": "CMYK"}  # mode -> colour space that its profile must be of
BOMB = re.compile(r"\((\d+) pixels\)")
# What people and programs put among images; told apart by the first bytes, after white space for text.
OTHER_FILES = (
    (rb"%PDF", "a PDF document"),
    (rb"PK\x03\x04", "a zip archive or an office document"),
    (rb"Rar!|7z\xbc\xaf|\x1f\x8b", "an archive"),
    (rb"\s*<svg|\s*<\?xml[^>]*>\s*<svg", "an SVG drawing"),
    (rb"\s*<(!doctype|html|head|body|\?xml)", "a web page or XML, such as an error page saved as the image"),
    (rb"....ftyp(heic|heix|mif1|msf1)", "an HEIC photo"),
    (rb"....ftypavi[fs]", "the first bytes of an AVIF image, and no more that makes sense"),
    (rb"....ftyp", "a video"),
    (rb"8BPS", "a Photoshop document"),
    (rb"version https://git-lfs", "a Git LFS pointer in place of the file"),
)


class ImageError(DataError):
    """A file that gives no picture; `found` is the reason alone, for a list."""

    def __init__(self, name: str, found: str) -> None:
        """Note the name of the file and what was found in it."""
        super().__init__(name, found)  # kept as arguments, so that the error pickles
        self.name = name
        self.found = found

    def __str__(self) -> str:
        """Return the message in the words and order of `Problems`."""
        problems = Problems(
            self.name,
            expected=f"a whole image ({', '.join(FORMATS)}) of 8 or 16 bits a channel, not larger than the pixel limit",
            remedy="download or save the file again, as JPEG or PNG",
        )
        problems.add("the content", self.found)
        try:
            problems.raise_if_any()
        except DataError as error:
            return str(error)
        raise AssertionError("a problem was added, so raise_if_any has raised")


def decode(data: bytes, *, name: str, target: int | None = None, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Return the picture of a file as an RGB image in sRGB, of its first frame or page, turned upright.

    Transparent parts (alpha, a transparent palette entry or colour) stand on white; 16-bit gray is rounded to 8 bits;
    an embedded colour profile is applied, and one that cannot be used is left aside. `name` is for messages.

    `target` (pixels) says that both sides will be scaled to this length: a large JPEG is then decoded at 1/2, 1/4 or
    1/8 of its size, but no side below twice `target`. Other formats are not scaled. `max_pixels` limits the size that
    the file declares, before anything is unfolded; above 178,956,970 Pillow's own limit holds.

    Not for several threads at once: Pillow's remarks are silenced through the warning filters of the process.

    Raises:
        ImageError: no image, one that is truncated or damaged or too large, or one of 32-bit pixels.
    """
    if not data:
        raise ImageError(name, "no bytes at all")
    with warnings.catch_warnings(action="ignore"):  # all that Pillow remarks on is either dealt with here or fails
        try:
            with _open(data, name) as image:
                _check_size(image, name, max_pixels)
                if target is not None and image.format == "JPEG":
                    wanted = DRAFT_MARGIN * target
                    image.draft(None, (wanted, wanted))
                image.load()
                return _upright(_to_rgb(image, name), _orientation(image))
        except (ImageError, MemoryError):
            raise
        except Exception as error:  # Pillow's readers raise whatever a broken file leads them to, such as SyntaxError
            raise ImageError(name, f"a damaged image ({_words(error)})") from error


def squash(image: Image.Image, size: int) -> npt.NDArray[np.uint8]:
    """Return an RGB image as uint8[size, size, 3], its sides scaled apart so that nothing is cut off.

    Bicubic with antialiasing; large images are first reduced by whole factors, to no less than three times `size`.
    """
    small = image.resize((size, size), Image.Resampling.BICUBIC, reducing_gap=3.0)
    return np.asarray(small, dtype=np.uint8)


def _open(data: bytes, name: str) -> Image.Image:
    try:
        return Image.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError:
        raise ImageError(name, _other_file(data)) from None
    except Image.DecompressionBombError as error:
        size = BOMB.search(str(error))
        found = f"an image of {int(size[1]):,} pixels" if size else str(error)
        raise ImageError(name, f"{found}, more than can be read safely") from None


def _other_file(data: bytes) -> str:
    for pattern, kind in OTHER_FILES:
        if re.match(pattern, data[:1000], flags=re.DOTALL | re.IGNORECASE):
            return kind
    if data.startswith((b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"RIFF")):
        return "the first bytes of an image, and no more that makes sense"
    try:
        data[:1000].decode("utf-8")
    except UnicodeDecodeError:
        return "bytes of no known image format"
    return "bytes of no known image format" if b"\0" in data[:1000] else "text, not an image"


def _check_size(image: Image.Image, name: str, max_pixels: int) -> None:
    width, height = image.size
    if width * height > max_pixels:
        raise ImageError(name, f"an image of {width:,} x {height:,} pixels, above the limit of {max_pixels:,}")
    if not width * height:
        raise ImageError(name, f"an image of {width} x {height} pixels")


def _orientation(image: Image.Image) -> int:
    try:
        value: object = image.getexif().get(ORIENTATION_TAG, 1)
    except Exception:  # broken EXIF, of any of the kinds that Pillow's reader trips over, harms no pixel
        return 1
    return value if isinstance(value, int) else 1


def _upright(image: Image.Image, orientation: int) -> Image.Image:
    return image.transpose(UPRIGHT[orientation]) if orientation in UPRIGHT else image


def _to_rgb(image: Image.Image, name: str) -> Image.Image:
    profile: bytes | None = image.info.get("icc_profile")
    if image.mode.startswith("I;16"):
        image = _from_16_bits(image)
    elif image.mode in ("I", "F"):
        raise ImageError(name, f"32-bit pixels (mode {image.mode}), which have no agreed white")
    if not image.has_transparency_data:
        plain = image if image.mode in ICC_SPACES else image.convert("L" if image.mode == "1" else "RGB")
        return _to_srgb(plain, profile)
    layers = image.convert("RGBA")
    on_white = Image.new("RGB", image.size, "white")
    on_white.paste(_to_srgb(layers.convert("RGB"), profile), mask=layers.getchannel("A"))
    return on_white


def _from_16_bits(image: Image.Image) -> Image.Image:
    """16-bit gray as 8-bit gray, with alpha where the file names a transparent value."""
    values = np.asarray(image).astype(np.uint32)
    gray = Image.fromarray(((values + 128) // 257).astype(np.uint8))
    transparent = image.info.get("transparency")
    if not isinstance(transparent, int):
        return gray
    alpha = Image.fromarray(np.where(values == transparent, 0, 255).astype(np.uint8))
    return Image.merge("LA", (gray, alpha))


def _to_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    transform = _transform(profile, image.mode) if profile else None
    if transform is not None:
        return transform.apply(image)
    return image.convert("RGB")


@functools.lru_cache(maxsize=16)  # a collection has few different profiles, and building takes longer than applying
def _transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """Way from an embedded profile to sRGB, or None where the pixels are sRGB already or the profile is of no use."""
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if source.profile.xcolor_space.strip() != ICC_SPACES[mode] or "srgb" in _description(source):
            return None
        return ImageCms.buildTransform(
            source,
            ImageCms.createProfile("sRGB"),
            mode,
            "RGB",
            renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC,
            flags=ImageCms.Flags.BLACKPOINTCOMPENSATION,
        )
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return None


def _description(profile: ImageCms.ImageCmsProfile) -> str:
    return (profile.profile.profile_description or "").lower()


def _words(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return (text if text.isprintable() else ascii(text))[:120]
