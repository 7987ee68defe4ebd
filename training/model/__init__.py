"""The network and its files: encoder, user embedding, weights on disk, ONNX export, inference.

May import `data` and the packages below it.
"""
