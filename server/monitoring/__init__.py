"""What is observed while answering: metrics, figures of each release, shadow comparisons, the guard of a canary.

May import `releases`, `serving` and what stands below them.
"""
