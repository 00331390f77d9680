"""Meshes, collectives, DTensor arithmetic and schedules: what ranks share. Knows no model."""
