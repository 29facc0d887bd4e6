"""Data sets for the recipes: loading, checking and batching, with no dependency on an image library beyond Pillow."""

from setpoint.recipes.data.batches import Batches
from setpoint.recipes.data.dataset import DataError, Dataset, Split, Task
from setpoint.recipes.data.sources import dataset_names, is_text, load_dataset

__all__ = ["Batches", "DataError", "Dataset", "Split", "Task", "dataset_names", "is_text", "load_dataset"]
