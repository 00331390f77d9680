"""The search space: ranges and choices of a recipe's settings. Imports neither torch nor Ray."""
