"""Input and output behind the Protocols of `ports`: Triton, history stores, the bulk load.

May import `core`.
"""
