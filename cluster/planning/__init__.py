"""Compares hardware for a training or serving workload, and reports it.

Imports the cost model and the hardware tables, but no torch and no recipes: trainers.planning turns
a recipe into a Workload and has the `plan` command.
"""
