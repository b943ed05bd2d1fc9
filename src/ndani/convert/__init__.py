"""Weights of other forms, made into one GGUF file. Files in, a file out; what they are part of is not known here."""
