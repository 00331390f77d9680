"""Run a recipe, in this process or with Ray Train.

The only room that may import Ray, and only `ray_trainer` and `ray_backend` in it do.
"""
