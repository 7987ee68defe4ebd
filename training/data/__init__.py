"""From a log file to sequences of events: reading, cleaning, splitting, encoding; item texts and the demo log.

May import `kmeans`, `profiles` and what stands below them; no torch.
"""
