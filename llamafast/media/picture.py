"""Pictures → red, green and blue. Sole user of Pillow."""

from __future__ import annotations

from contextlib import contextmanager
from io import BytesIO
from typing import TYPE_CHECKING, NamedTuple

from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from llamafast.errors import InvalidMedia

if TYPE_CHECKING:
    from collections.abc import Iterator

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
# What `detail: low` leaves of a picture, as OpenAI's API has it.
LOW_DETAIL = (512, 512)
# EXIF's orientations that exchange width and height.
_TURNED = (5, 6, 7, 8)
_SIXTEEN_BITS = ("I;16", "I;16B", "I;16L", "I;16N")

# The limit is ours, from the header, and an error; Pillow's own is a warning at first.
Image.MAX_IMAGE_PIXELS = None


class Picture(NamedTuple):
    """``rgb``: (height, width, 3), row by row."""

    width: int
    height: int
    rgb: bytes


def picture_size(data: bytes, max_pixels: int, *, low_detail: bool = False) -> tuple[int, int]:
    """Width and height that ``read_picture`` will give, from the header alone. Raises InvalidMedia."""
    with _opened(data, max_pixels) as image:
        width, height = image.size
        if image.getexif().get(ExifTags.Base.Orientation) in _TURNED:
            width, height = height, width
        return _reduced(width, height) if low_detail else (width, height)


def read_picture(data: bytes, max_pixels: int, *, low_detail: bool = False) -> Picture:
    """The first frame, upright, on white where it is transparent. Raises InvalidMedia."""
    with _opened(data, max_pixels) as image:
        if low_detail:
            # a JPEG is decoded at an eighth, a quarter or a half where that is enough
            image.draft("RGB", LOW_DETAIL)
        image.load()
        upright = ImageOps.exif_transpose(image)
        width, height = picture_size(data, max_pixels, low_detail=low_detail)
        rgb = _on_white(upright)
        if rgb.size != (width, height):
            rgb = rgb.resize((width, height), Image.Resampling.BICUBIC)
        return Picture(width, height, rgb.tobytes())


def _reduced(width: int, height: int) -> tuple[int, int]:
    scale = min(1.0, LOW_DETAIL[0] / width, LOW_DETAIL[1] / height)
    return max(1, round(width * scale)), max(1, round(height * scale))


@contextmanager
def _opened(data: bytes, max_pixels: int) -> Iterator[Image.Image]:
    """The picture, of which no pixel was read. Pillow raises nearly anything for what is not as it should be."""
    try:
        with Image.open(BytesIO(data), formats=FORMATS) as image:
            width, height = image.size
            if width * height > max_pixels:
                raise InvalidMedia(f"the image has {width * height} pixels; at most {max_pixels} are taken")
            if width * height == 0:
                raise InvalidMedia("the image has no pixels")
            yield image
    except InvalidMedia:
        raise
    except UnidentifiedImageError:
        raise InvalidMedia(f"the image cannot be read; formats: {', '.join(FORMATS)}") from None
    except MemoryError:
        raise
    except Exception as error:
        if "truncated" in str(error) or isinstance(error, EOFError):
            raise InvalidMedia("the image is cut off") from None
        raise InvalidMedia(f"the image cannot be read; formats: {', '.join(FORMATS)}") from None


def _on_white(image: Image.Image) -> Image.Image:
    """Without transparency, and of 16 bits the upper 8: Pillow's own conversion clips them."""
    if image.mode in _SIXTEEN_BITS or image.mode == "I":
        image = image.convert("I").point(lambda value: value * (1 / 256)).convert("L")
    elif image.mode == "F":
        raise InvalidMedia("the image's pixels are floating-point numbers")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, "white")
        image = Image.alpha_composite(white, rgba)
    return image.convert("RGB")
