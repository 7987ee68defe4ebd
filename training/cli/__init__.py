"""The commands of `segrec-train`: options, progress on the terminal, exit codes, tables of results.

The top of `training`: may import all of it, and nothing imports it.
"""
