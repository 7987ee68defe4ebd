"""The network and its file forms: encoder, user embedding, weights on disk, ONNX export, inference.

May import `data` and what stands below it.
"""
