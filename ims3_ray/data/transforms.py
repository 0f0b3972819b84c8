"""Decodes images to upright RGB of 8 bits on white (the first frame), scales and encodes them."""

import io
import warnings

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

warnings.filterwarnings("ignore", module=r"PIL\.")  # our error line reports a damaged file
MAX_PIXELS = 64_000_000  # a larger image may be a decompression bomb
# Recognised by content, not by name. EPS is excluded: Pillow has Ghostscript run it.
FORMATS = (
    *("AVIF", "BMP", "DIB", "GIF", "ICO", "JPEG", "JPEG2000"),
    *("PCX", "PNG", "PPM", "SGI", "TGA", "TIFF", "WEBP"),
)
BACKGROUND = (255, 255, 255, 255)  # of transparent images
DEEP = ("I", "I;16", "I;16L", "I;16B", "I;16N")  # 16 bits; convert("RGB") would clip to 255
DARK = 2**14  # images of 8 to 14 bits in 16 stay below it
MAX_ASPECT = 16  # a longer image is cropped to this around its centre before it is scaled


def decode(data: bytes, *, small: bool = False) -> Image.Image:
    """Returns the image in `data` as RGB, upright by its EXIF orientation. Raises ValueError if it is none.

    Grey values of 16 bits and floating-point values in 0 … 1 are scaled to 8 bits. Transparent pixels become
    white. `small` decodes a JPEG at an eighth of its sides, a cheaper check whether it is readable.
    """
    if not data:
        raise ValueError("is no readable image (the file is empty)")
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise ValueError(f"{image.width}×{image.height} pixels are more than {MAX_PIXELS:,}")
            if small:
                image.draft(image.mode, (1, 1))
            return _as_rgb(ImageOps.exif_transpose(image))
    except MemoryError:
        raise
    except UnidentifiedImageError as error:
        raise ValueError("is no readable image (its content is of none of the known formats)") from error
    except Exception as error:  # Pillow's decoders may raise anything for a malformed file
        raise ValueError(
            f"is no readable image ({' '.join(str(error).split())[:120] or type(error).__name__})"
        ) from error


def deep_maximum(data: bytes) -> int:
    """Returns the largest value of a readable image if it has 16 bits, or else 0."""
    with Image.open(io.BytesIO(data), formats=FORMATS) as image:
        return int(np.asarray(image).max()) if image.mode in DEEP else 0


def _crop_strip(image: Image.Image) -> Image.Image:
    """Returns the middle of a very long image: scaling it up would take memory with its length squared."""
    most = MAX_ASPECT * min(image.size)
    if max(image.size) <= most:
        return image
    width, height = (min(side, most) for side in image.size)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


def square(image: Image.Image, size: int) -> np.ndarray:
    """Returns the centre square scaled to `size`, (3, size, size) uint8.

    It is halved by box filters while it is twice too large, then scaled bicubically, as the training images
    of ADM and DiT were (Dhariwal & Nichol 2021).
    """
    image = _crop_strip(image)
    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = size / min(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    left, top = (image.width - size) // 2, (image.height - size) // 2
    return np.asarray(image.crop((left, top, left + size, top + size))).transpose(2, 0, 1).copy()


def resize_and_crop(image: Image.Image, size: int) -> np.ndarray:
    """Returns the centre after the shorter side is scaled to `size`, (3, size, size) uint8.

    Evaluation protocols do this to every image for a classifier. It equals torchvision's Resize(size) and
    CenterCrop(size) of a PIL image (bilinear, antialiased), including the rounding.
    """
    image = _crop_strip(image)
    shorter = min(image.size)
    width, height = (int(size * side / shorter) for side in image.size)
    image = image.resize((width, height), Image.Resampling.BILINEAR)
    left, top = round((width - size) / 2), round((height - size) / 2)
    return np.asarray(image.crop((left, top, left + size, top + size))).transpose(2, 0, 1).copy()


def encode_png(pixels: np.ndarray) -> bytes:
    """Returns pixels (3, H, W) uint8 as a PNG. Equal pixels give equal bytes."""
    return png_of(Image.fromarray(pixels.transpose(1, 2, 0)))


def png_of(image: Image.Image) -> bytes:
    """Returns an image of any mode as a PNG. Equal pixels give equal bytes."""
    sink = io.BytesIO()
    image.save(sink, "PNG", optimize=False, compress_level=6)
    return sink.getvalue()


def _as_rgb(image: Image.Image) -> Image.Image:
    if image.mode in DEEP:
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 65535:
            raise ValueError(
                f"its values from {values.min()} to {values.max()} are not of 16 bits; save it with 8 or 16"
            )
        return Image.fromarray((values >> 8).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        values = np.asarray(image)
        if not (values.min() >= 0 and values.max() <= 1):
            raise ValueError(
                f"its values from {values.min():g} to {values.max():g} are not in 0 … 1; save it with 8 bits"
            )
        return Image.fromarray((255 * values).round().astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, BACKGROUND), rgba).convert("RGB")
    return image.convert("RGB")
