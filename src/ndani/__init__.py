"""ndani: small language models inside your own walls.

Nothing happens on import. `ndani.cli` is the way in at a terminal, `ndani.api.app` over HTTP.
"""

__version__ = "0.1.0"

#: The level of Ollama's API that `/api/version` states: clients compare it before they use a route.
OLLAMA_API = "0.32.15"
