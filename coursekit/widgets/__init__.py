"""Widgets for notebooks and small applications: upload and predict, clean a dataset."""

from coursekit.widgets.cleaner import ImageClassifierCleaner
from coursekit.widgets.edits import read_edits
from coursekit.widgets.upload import upload_and_predict

__all__ = ["ImageClassifierCleaner", "read_edits", "upload_and_predict"]
