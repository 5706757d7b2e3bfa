"""Widgets for notebooks and small applications: upload and predict, clean a dataset, explore learning rates."""

from coursekit.widgets.cleaner import ImageClassifierCleaner
from coursekit.widgets.edits import read_edits
from coursekit.widgets.explorer import lr_explorer
from coursekit.widgets.upload import upload_and_predict

__all__ = ["ImageClassifierCleaner", "lr_explorer", "read_edits", "upload_and_predict"]
