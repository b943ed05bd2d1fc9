"""The routes that no other API has. Their errors look as in Ollama's."""

from __future__ import annotations

from ndani.api.edge.dialect import Context, Dialect, delete, get, post
from ndani.api.edge.operation import Operation
from ndani.api.ollama.response_bodies import Step
from ndani.api.ours import bodies
from ndani.api.ours import requests as running
from ndani.api.ours import rerank as ranks
from ndani.api.ours import tokens as ids
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
        name="ours",
        title="Routes that no other server has",
        routes=(
            get(
                "/api/health",
                admin.health,
                Operation("Whether the server can answer", answer=bodies.HealthBody, failures={503: bodies.Unhealthy}),
            ),
            post("/api/doctor", admin.doctor, Operation("Try every way out of a runner", answer=bodies.DoctorBody)),
            post(
                "/api/verify",
                maintenance.verify,
                Operation(
                    "Read files of the store again, and say which are damaged", bodies.VerifyBody, bodies.VERIFY_LINES, bodies.VERIFY_LINES
                ),
            ),
            post(
                "/api/prune",
                maintenance.prune,
                Operation("Remove files that no model needs", bodies.PruneBody, bodies.PRUNE_LINES, bodies.PRUNE_LINES),
            ),
            post(
                "/api/handover",
                handover.hand_over,
                Operation("Add a file of this machine to the store by a link", bodies.HandoverBody, (bodies.HandoverPlace, Step), Step),
            ),
            post("/api/tokenize", tokens.tokenize, Operation("The token ids of a text", ids.TokenizeBody, ids.TokenizeResponse)),
            post("/api/detokenize", tokens.detokenize, Operation("The text of token ids", ids.DetokenizeBody, ids.DetokenizeResponse)),
            post("/rerank", rerank.rerank, Operation("As /v1/rerank", ranks.RerankBody, ranks.RerankResponse)),
            post(
                "/v1/rerank",
                rerank.rerank,
                Operation("Put documents into the order of how well they answer a query", ranks.RerankBody, ranks.RerankResponse),
            ),
            get("/api/requests", requests.requests, Operation("The requests in progress", answer=running.RequestList)),
            delete("/api/requests/{id}", requests.cancel, Operation("Cancel a request in progress", answer=running.CancelledRequest)),
        ),
        large_bodies=frozenset({"/api/tokenize", "/api/detokenize", "/rerank", "/v1/rerank"}),
    )
