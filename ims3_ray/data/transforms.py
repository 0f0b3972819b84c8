"""An encoded image as a person would see it: RGB, 8 bits, upright, on white, an animation's first picture."""

import io
import warnings

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

warnings.filterwarnings("ignore", module=r"PIL\.")  # what it says of a damaged file, the file's own line says
MAX_PIXELS = 64_000_000  # a larger image is a decompression bomb, or should be scaled down beforehand
# Told by content, whatever the file is called. Not among them: EPS, which Pillow hands to Ghostscript to run.
FORMATS = (
    *("AVIF", "BMP", "DIB", "GIF", "ICO", "JPEG", "JPEG2000"),
    *("PCX", "PNG", "PPM", "SGI", "TGA", "TIFF", "WEBP"),
)
BACKGROUND = (255, 255, 255, 255)  # behind what is transparent
DEEP = ("I", "I;16", "I;16L", "I;16B", "I;16N")  # Pillow's modes of 16 bits: convert("RGB") clips them to 255
LONGEST = 16  # times the short side: what is longer is cut to that around its centre before it is scaled


def decode(data: bytes, *, small: bool = False) -> Image.Image:
    """The image in `data` as RGB, upright by its EXIF orientation. ValueError says why it is none.

    Grey values of 16 bits are scaled to 8, those of floating point from 0 … 1; what is transparent shows
    white. `small` decodes a JPEG at an eighth of its sides: whether it can be read costs less to know than
    what it shows.
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
    except UnidentifiedImageError as error:
        raise ValueError("is no readable image (its content is of none of the known formats)") from error
    except Exception as error:  # Pillow's decoders raise whatever a malformed file leads them to
        raise ValueError(
            f"is no readable image ({' '.join(str(error).split())[:120] or type(error).__name__})"
        ) from error


def without_far_ends(image: Image.Image) -> Image.Image:
    """The same, or its middle where it is a strip: scaling one up takes its length squared."""
    most = LONGEST * min(image.size)
    if max(image.size) <= most:
        return image
    width, height = (min(side, most) for side in image.size)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


def square(image: Image.Image, size: int) -> np.ndarray:
    """The centre square scaled to `size`, (3, size, size) uint8.

    Halved by box filter while that fits, then bicubic, as the training images of ADM and DiT were prepared
    (Dhariwal & Nichol 2021).
    """
    image = without_far_ends(image)
    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = size / min(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    left, top = (image.width - size) // 2, (image.height - size) // 2
    return np.asarray(image.crop((left, top, left + size, top + size))).transpose(2, 0, 1).copy()


def resize_and_crop(image: Image.Image, size: int) -> np.ndarray:
    """The shorter side scaled to `size`, then the centre, (3, size, size) uint8.

    What evaluation protocols do to every image that a classifier sees, real or synthetic: torchvision's
    Resize(size) and CenterCrop(size) of a PIL image (bilinear, antialiased), with its rounding.
    """
    image = without_far_ends(image)
    shorter = min(image.size)
    width, height = (int(size * side / shorter) for side in image.size)
    image = image.resize((width, height), Image.Resampling.BILINEAR)
    left, top = round((width - size) / 2), round((height - size) / 2)
    return np.asarray(image.crop((left, top, left + size, top + size))).transpose(2, 0, 1).copy()


def encode_png(pixels: np.ndarray) -> bytes:
    """`pixels` (3, H, W) uint8 as a PNG, always the same bytes for the same pixels."""
    return png_of(Image.fromarray(pixels.transpose(1, 2, 0)))


def png_of(image: Image.Image) -> bytes:
    """An image of any mode as a PNG, always the same bytes for the same pixels."""
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
        shown = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", shown.size, BACKGROUND), shown).convert("RGB")
    return image.convert("RGB")
