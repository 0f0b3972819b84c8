"""The report on a run: from data to the bytes of one HTML page and of one contact sheet; reads no files."""
