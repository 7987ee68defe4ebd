"""From a log file to event sequences: reading, cleaning, the split, encoder inputs; item texts and the demo log.

May import `kmeans`, `profiles` and the packages below them; no torch.
"""
