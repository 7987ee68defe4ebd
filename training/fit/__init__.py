"""Training of the encoder with Lightning: batches, losses, optimizer, checkpoints, several processes.

May import `model` and what stands below it; not `ranking`, its sibling.
"""
