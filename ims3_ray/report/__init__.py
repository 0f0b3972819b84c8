"""The report on a run: from data to the bytes of one HTML page and of one contact sheet. Reads no files of the run."""

from .images import contact_sheet
from .inputs import ClassImages, Features, ReportData
from .page import render

__all__ = ["ClassImages", "Features", "ReportData", "contact_sheet", "render"]
