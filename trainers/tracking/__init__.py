"""What a run leaves behind: its directory, metrics, plots, and the lines printed on the way.

Knows no model and no Ray.
"""
