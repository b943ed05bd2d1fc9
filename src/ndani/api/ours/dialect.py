"""The routes that no other API has. Their errors look as in Ollama's."""

from __future__ import annotations

from ndani.api.edge.dialect import Context, Dialect, delete, get, post
from ndani.api.ours.admin import AdminRoutes
from ndani.api.ours.handover import HandoverRoutes
from ndani.api.ours.maintenance import MaintenanceRoutes
from ndani.api.ours.requests import RequestRoutes
from ndani.api.ours.rerank import RerankRoutes
from ndani.api.ours.tokens import TokenRoutes


def dialect(context: Context) -> Dialect:
    """The dialect over one service."""
    service = context.service
    maintenance, admin, handover = MaintenanceRoutes(service), AdminRoutes(service), HandoverRoutes(service)
    requests, tokens, rerank = RequestRoutes(context.running), TokenRoutes(service), RerankRoutes(service)
    return Dialect(
        routes=(
            get("/api/health", admin.health),
            post("/api/doctor", admin.doctor),
            post("/api/verify", maintenance.verify),
            post("/api/prune", maintenance.prune),
            post("/api/handover", handover.hand_over),
            post("/api/tokenize", tokens.tokenize),
            post("/api/detokenize", tokens.detokenize),
            post("/rerank", rerank.rerank),
            post("/v1/rerank", rerank.rerank),
            get("/api/requests", requests.requests),
            delete("/api/requests/{id}", requests.cancel),
        ),
        large_bodies=frozenset({"/api/tokenize", "/api/detokenize", "/rerank", "/v1/rerank"}),
    )
