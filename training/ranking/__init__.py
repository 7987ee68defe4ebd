"""What turns scores into recommendations: the weight of the hybrid, items of segments, items in demand.

May import `model` and what stands below it; not `fit`, its sibling.
"""
