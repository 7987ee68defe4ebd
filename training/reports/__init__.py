"""Reports about segments and releases: the report of a run, the difference of two releases, drift, members.

May import `evaluation` and the layers below; not `publish` or `derive`, its siblings.
"""
