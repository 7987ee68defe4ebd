"""Observes the server: Prometheus metrics, figures of each release, shadow comparisons, and the guard of a canary.

May import `releases`, `serving` and the packages that these may import.
"""
