"""Data sets for the recipes: loading, checking and batching, with no dependency on an image library beyond Pillow."""

from setpoint.recipes.data.batches import Batches
from setpoint.recipes.data.dataset import DataError, Dataset, Split
from setpoint.recipes.data.sources import dataset_names, load_dataset

__all__ = ["Batches", "DataError", "Dataset", "Split", "dataset_names", "load_dataset"]
