"""Predicted memory and seconds of training steps: arithmetic on values, no torch and no files.

Imports cluster.hardware.types alone of the other rooms.
"""
