"""Checkpoints that any layout can read, on a shared disk or in an object store. Knows no model."""
