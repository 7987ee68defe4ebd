"""Runs made of other runs: compressed ones and fused ones.

May import `evaluation` and what stands below it; not `publish` or `reports`, its siblings.
"""
