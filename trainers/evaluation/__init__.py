"""How good a model is: held-out predictions, intervals, baselines, thresholds, and a verdict.

Knows no model and no Ray. scikit-learn and SciPy are imported by the functions that need them.
"""
