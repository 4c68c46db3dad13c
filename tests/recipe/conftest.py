"""The fixtures of recipes."""

from recipes import make_recipe, model_folder  # noqa: F401
