"""Run a recipe with Ray Train: the only room that may import Ray, and `worker` in it must not."""
