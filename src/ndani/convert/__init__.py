"""Weights of one form made into another: what training programs publish into GGUF, and GGUF into smaller kinds of numbers.

Files in, a file out, and how far it is, as a generator. Nothing here knows of a store's names, of a network or of a
request. To add a family of models, copy `llama.py` and name it in `checkpoint.py`.
"""
