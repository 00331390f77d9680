"""Trackers over the events of a run: TensorBoard, MLflow and Weights & Biases, one sink each.

The libraries are imported by the sinks alone, when a run asks for them.
"""
