"""Trials on devices: the controller decides, Ray Tune places and restarts.

`controller` and `stop_signal` import no Ray; only `tuner` and `trainable` do.
"""
