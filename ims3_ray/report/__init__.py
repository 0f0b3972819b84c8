"""The report on a run: from data to the bytes of one HTML page and of one contact sheet; reads no files."""

from .images import contact_sheet
from .inputs import ReportData
from .page import looked_at, render

__all__ = ["ReportData", "contact_sheet", "looked_at", "render"]
