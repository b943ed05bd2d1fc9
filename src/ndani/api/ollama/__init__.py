"""Ollama's dialect: how its bodies are read, how its answers are written, and its routes."""
