"""What people read about segments and releases: a run's report, the difference of two releases, drift, members.

May import `evaluation` and what stands below it; not `publish` or `derive`, its siblings.
"""
