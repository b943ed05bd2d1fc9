"""Prompts: what is made of a conversation before an engine reads it.

`template/` is Go's text/template as Ollama uses it, `fit` has a conversation fit a context. Nothing here knows an engine:
what tokens a text has, and what its own chat template makes of messages, are handed in as callables.
"""
