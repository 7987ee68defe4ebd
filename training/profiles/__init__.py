"""Segment profiles: traits, activity over time, labels, names by a language model.

May import `runs`, `config`, `errors` and `metrics`; no torch.
"""
