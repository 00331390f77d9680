"""From a source of rows to encoded, split, labelled batches.

Imports `config`, `storage` and the planner's arithmetic in `cluster`; knows no model and no Ray.
"""
