"""Small, plain models for the recipes, by name."""

from setpoint.recipes.models.registry import build_model, import_model, model_names
from setpoint.recipes.models.shapes import example_input

__all__ = ["build_model", "example_input", "import_model", "model_names"]
