"""Input and output behind the Protocols of `ports`: the Triton client, the history stores and their bulk load.

May import `core`.
"""
