"""A store of ours as a registry to pull from: a server of its own, with no model in it."""
