"""Accelerators, machines, their prices and power, and the network interfaces of this machine.

Imports no model, layout or recipe.
"""
