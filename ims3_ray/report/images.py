"""Images of the distilled set as data URIs for a page, and on one contact sheet."""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path

import matplotlib
from PIL import Image, ImageDraw, ImageFont

from .inputs import PAGE_CLASSES, SHEET_CLASSES, ReportData, Uncovered, shortened, shown_classes

SMALL = 64  # pixels per side: a page enlarges images up to this size, with square pixels
THUMBNAIL = 160  # pixels per side of a larger image on the page
PAGE_IMAGES = 240  # maximum number of images on a page, which stays below 3 MB
SHEET_COLUMNS, SHEET_CELL = 20, 64
GAP, MARGIN = 3, 16
PAPER, INK, MUTED = "#ffffff", "#1b1f24", "#6b7280"


@dataclass(frozen=True)
class Strip:
    """Images of one class as data URIs, and the number of distilled images that are not shown."""

    name: str
    distilled: list[str]
    hidden: int
    unpacked: list[str] = field(default_factory=list)  # of a packed set
    before: list[str] = field(default_factory=list)  # refinement
    real: list[str] = field(default_factory=list)
    label: int = -1
    is_small: bool = False  # shown enlarged


def strips(data: ReportData) -> list[Strip]:
    """Distilled and real images of the classes on the page."""
    names = [data.classes[label] for label in shown_classes(data.classes, PAGE_CLASSES)]
    limit, result = max(1, PAGE_IMAGES // len(names)), list[Strip]()
    for name in names:
        images = data.contact[name]
        kinds = ("distilled", "unpacked", "before", "real")
        distilled, tiles, before, real = (list(map(data_uri, images.get(kind, ())[:limit])) for kind in kinds)
        result.append(Strip(name, distilled, len(images["distilled"]) - len(distilled), tiles, before, real))
    return result


def uncovered_strips(data: ReportData) -> list[tuple[str, Uncovered, list[str]]]:
    """Classes with uncovered real images, worst covered first: name, counts, and images as data URIs."""
    classes = sorted(data.uncovered.items(), key=lambda item: -item[1].count / item[1].total)
    return [
        (name, uncovered, list(map(data_uri, uncovered.images)))
        for name, uncovered in classes
        if uncovered.images
    ]


def is_enlarged(encoded: bytes) -> bool:
    """Whether an image is small enough for a page to enlarge it, with square pixels."""
    return max(_decoded(encoded).size) <= SMALL


def data_uri(encoded: bytes) -> str:
    """An image as data URI: PNG if it is small, else a JPEG thumbnail. Raises OSError for other bytes."""
    image, buffer = _decoded(encoded), BytesIO()
    kind = "png" if max(image.size) <= THUMBNAIL // 2 else "jpeg"
    if kind == "jpeg":
        image.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
    image.save(buffer, kind, quality=85, optimize=True)
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def contact_sheet(data: ReportData) -> bytes:
    """The distilled set as one PNG: at most 40 classes and 20 images per class; a note says what it omits."""
    classes = [data.classes[i] for i in shown_classes(data.classes, SHEET_CLASSES)]
    columns = min(max(data.counts), SHEET_COLUMNS)
    note = _note(len(classes), len(data.classes), columns, max(data.counts))
    return sheet({name: data.contact[name]["distilled"][:columns] for name in classes}, note)


def sheet(images: Mapping[str, Sequence[bytes]], note: str = "") -> bytes:
    """One PNG, deterministic: one labelled row per class, one column per image, the note at the bottom."""
    columns, font, names = max(map(len, images.values())), _font(15), [shortened(name) for name in images]
    left = MARGIN + max(int(font.getlength(name)) for name in names) + 14
    step = SHEET_CELL + GAP
    size = (left + columns * step - GAP + MARGIN, 2 * MARGIN + len(names) * step - GAP + (24 if note else 0))
    paper = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(paper)
    for row, (short, cells) in enumerate(zip(names, images.values(), strict=True)):
        top = MARGIN + row * step
        draw.text((left - 14, top + SHEET_CELL // 2), short, fill=INK, font=font, anchor="rm")
        for column, encoded in enumerate(cells):
            image = _cell(encoded)
            at = ((SHEET_CELL - image.width) // 2, (SHEET_CELL - image.height) // 2)
            paper.paste(image, (left + column * step + at[0], top + at[1]))
    if note:
        draw.text((left, size[1] - MARGIN), note, fill=MUTED, font=_font(12), anchor="ls")
    buffer = BytesIO()
    paper.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def _note(classes: int, all_classes: int, columns: int, all_columns: int) -> str:
    parts = []
    if classes < all_classes:
        parts.append(f"{classes} of {all_classes:,} classes")
    if columns < all_columns:
        parts.append(f"{columns} of {all_columns:,} images per class")
    return ", ".join(parts)


def _cell(encoded: bytes) -> Image.Image:
    """An image that fits a cell: enlarged by an integer factor, or reduced."""
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
