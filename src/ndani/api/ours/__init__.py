"""The routes that no dialect owns."""
