"""Describe, price, launch and examine the hardware a run needs. Imports no other package."""
