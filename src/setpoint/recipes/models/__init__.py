"""Small, plain models for the recipes, by name."""

from setpoint.recipes.models.registry import build_model, import_model, model_names

__all__ = ["build_model", "import_model", "model_names"]
