"""A layout applied to a model: tensor, pipeline and data parallelism. Knows no optimizer."""
