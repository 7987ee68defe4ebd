"""Publishing: from a finished run to a release in the model repository, with gates, checks of the model file, signing,
traffic and pruning.

May import `evaluation` and the layers below; not `reports` or `derive`, its siblings.
"""
