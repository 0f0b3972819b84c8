"""Images of the distilled set: as data URIs of a page, and all together on one contact sheet."""

import base64
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import matplotlib
from PIL import Image, ImageDraw, ImageFont

from .inputs import PAGE_CLASSES, ReportData, Uncovered, shortened, shown_classes

SMALL = 64  # pixels: up to here an image is shown enlarged, its pixels as squares
THUMBNAIL = 160  # pixels a side of a larger image on the page
PAGE_IMAGES = 240  # the page shows at most these, so that it stays below 3 MB
SHEET_CLASSES, SHEET_COLUMNS, SHEET_CELL = 40, 20, 64
GAP, MARGIN = 3, 16
PAPER, INK, MUTED = "#ffffff", "#1b1f24", "#6b7280"


@dataclass(frozen=True)
class Strip:
    """The images of one class as data URIs, and how many there are beyond those shown."""

    name: str
    distilled: list[str]
    before: list[str]
    real: list[str]
    hidden: int


def strips(data: ReportData) -> list[Strip]:
    """The distilled and the real images of the classes that the page shows."""
    names = [data.classes[label] for label in shown_classes(data.classes, PAGE_CLASSES)]
    limit, shown = max(1, PAGE_IMAGES // len(names)), []
    for name in names:
        images = data.contact[name]
        kinds = ("distilled", "before", "real")
        distilled, before, real = (list(map(data_uri, images.get(kind, ())[:limit])) for kind in kinds)
        shown.append(Strip(name, distilled, before, real, len(images["distilled"]) - len(distilled)))
    return shown


def missed_strips(data: ReportData) -> list[tuple[str, Uncovered, list[str]]]:
    """Classes with images that the set does not cover, the worst covered first; these as data URIs."""
    classes = sorted(data.uncovered.items(), key=lambda item: -item[1].count / item[1].total)
    return [
        (name, of_class, list(map(data_uri, of_class.images)))
        for name, of_class in classes
        if of_class.images
    ]


def is_small(data: ReportData) -> bool:
    """Whether the set's images are so small that a page should enlarge them."""
    return is_enlarged(data.contact[data.classes[0]]["distilled"][0])


def is_enlarged(encoded: bytes) -> bool:
    """Whether an image is so small that a page shows its pixels as squares."""
    return max(_decoded(encoded).size) <= SMALL


def data_uri(encoded: bytes) -> str:
    """A data URI: PNG of a small image, else a JPEG thumbnail. OSError for what is no image."""
    image, buffer = _decoded(encoded), BytesIO()
    kind = "png" if max(image.size) <= THUMBNAIL // 2 else "jpeg"
    if kind == "jpeg":
        image.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
    image.save(buffer, kind, quality=85, optimize=True)
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def contact_sheet(data: ReportData) -> bytes:
    """The distilled set as one PNG: a named row a class, a column an image; the same bytes every time.

    Beyond 40 classes or 20 images a class a part is shown, and a line at the foot says so.
    """
    classes = [data.classes[i] for i in shown_classes(data.classes, SHEET_CLASSES)]
    counts = [len(data.contact[name]["distilled"]) for name in data.classes]
    columns = min(max(counts), SHEET_COLUMNS)
    font, names = _font(15), [shortened(name) for name in classes]
    left = MARGIN + max(int(font.getlength(name)) for name in names) + 14
    step = SHEET_CELL + GAP
    note = _note(len(classes), len(counts), columns, max(counts))
    size = (
        left + columns * step - GAP + MARGIN,
        2 * MARGIN + len(classes) * step - GAP + (24 if note else 0),
    )
    sheet = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(sheet)
    for row, (name, shown) in enumerate(zip(classes, names, strict=True)):
        top = MARGIN + row * step
        draw.text((left - 14, top + SHEET_CELL // 2), shown, fill=INK, font=font, anchor="rm")
        for column, encoded in enumerate(data.contact[name]["distilled"][:columns]):
            image = _cell(encoded)
            at = ((SHEET_CELL - image.width) // 2, (SHEET_CELL - image.height) // 2)
            sheet.paste(image, (left + column * step + at[0], top + at[1]))
    if note:
        draw.text((left, size[1] - MARGIN), note, fill=MUTED, font=_font(12), anchor="ls")
    buffer = BytesIO()
    sheet.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def _note(classes: int, all_classes: int, columns: int, all_columns: int) -> str:
    parts = []
    if classes < all_classes:
        parts.append(f"{classes} of {all_classes:,} classes")
    if columns < all_columns:
        parts.append(f"{columns} of {all_columns:,} images a class")
    return ", ".join(parts)


def _cell(encoded: bytes) -> Image.Image:
    """Enlarged by whole pixels where it is small, reduced where it is large."""
    image = _decoded(encoded)
    factor = SHEET_CELL // max(image.size)
    if factor:
        return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
    image.thumbnail((SHEET_CELL, SHEET_CELL), Image.Resampling.LANCZOS)
    return image


def _decoded(encoded: bytes) -> Image.Image:
    with Image.open(BytesIO(encoded)) as image:
        return image.convert("RGB")


def _font(size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(str(Path(matplotlib.get_data_path(), "fonts/ttf/DejaVuSans.ttf")), size)
