"""Runs that are made from other runs: compressed runs and fused runs.

May import `evaluation` and the layers below; not `publish` or `reports`, its siblings.
"""
