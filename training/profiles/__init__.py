"""What describes a segment: traits, activity in time, labels, names by a language model.

May import `runs`, `config`, `errors` and `metrics`; no torch.
"""
