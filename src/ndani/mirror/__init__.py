"""Serves the models of a store as a registry to pull from: a separate server that runs no model."""
