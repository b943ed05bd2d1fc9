"""The media types of bodies. `json_response` adds its charset to that of JSON."""

from __future__ import annotations

JSON = "application/json"
NDJSON = "application/x-ndjson"
EVENTS = "text/event-stream"
TEXT = "text/plain"
BYTES = "application/octet-stream"
