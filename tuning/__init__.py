"""Hyperparameter search: which settings of a recipe are best, and which model to deploy.

Every trial is a run of `trainers`; the best trial becomes a bundle for `serving`.
"""
