"""Ranking of items: the weight of personal scores, the items of segments, and the trend.

May import `model` and the packages below it, but not its sibling `fit`.
"""
