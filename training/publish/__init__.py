"""From a finished run to a release in the model repository: gates, checks of the model file, signing, traffic,
pruning.

May import `evaluation` and what stands below it; not `reports` or `derive`, its siblings.
"""
