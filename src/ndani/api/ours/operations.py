"""What each of our own routes reads and answers. Their errors are in Ollama's form."""

from __future__ import annotations

from ndani.api.edge.operation import Description, Operation
from ndani.api.ollama.response_bodies import ErrorBody, Step
from ndani.api.ours import bodies, requests, rerank, tokens

DESCRIPTION = Description(
    "Ndani",
    "Routes of our own",
    ErrorBody,
    (
        Operation(
            method="POST",
            path="/v1/rerank",
            summary="Put documents into the order of how well they answer a query",
            body=rerank.RerankBody,
            answer=rerank.RerankResponse,
        ),
        Operation(method="POST", path="/rerank", summary="As /v1/rerank", body=rerank.RerankBody, answer=rerank.RerankResponse),
        Operation(
            method="POST",
            path="/api/tokenize",
            summary="The token ids of a text",
            body=tokens.TokenizeBody,
            answer=tokens.TokenizeResponse,
        ),
        Operation(
            method="POST",
            path="/api/detokenize",
            summary="The text of token ids",
            body=tokens.DetokenizeBody,
            answer=tokens.DetokenizeResponse,
        ),
        Operation(method="GET", path="/api/requests", summary="The requests in progress", answer=requests.RequestList),
        Operation(method="DELETE", path="/api/requests/{id}", summary="Cancel a request in progress", answer=requests.CancelledRequest),
        Operation(
            method="POST",
            path="/api/handover",
            summary="Add a file of this machine to the store by a link",
            body=bodies.HandoverBody,
            answer=(bodies.HandoverPlace, Step),
            item=Step,
        ),
        Operation(
            method="POST",
            path="/api/verify",
            summary="Read files of the store again, and say which are damaged",
            body=bodies.VerifyBody,
            answer=bodies.VERIFY_LINES,
            item=bodies.VERIFY_LINES,
        ),
        Operation(
            method="POST",
            path="/api/prune",
            summary="Remove files that no model needs",
            body=bodies.PruneBody,
            answer=bodies.PRUNE_LINES,
            item=bodies.PRUNE_LINES,
        ),
        Operation(
            method="GET",
            path="/api/health",
            summary="Whether the server can answer",
            answer=bodies.HealthBody,
            failures={503: bodies.Unhealthy},
        ),
        Operation(method="POST", path="/api/doctor", summary="Try every way out of a runner", answer=bodies.DoctorBody),
        Operation(method="GET", path="/openapi.json", summary="This description", answer=dict),
        Operation(method="GET", path="/docs", summary="A page to read it", answer=str, answer_media="text/html"),
        Operation(method="GET", path="/docs/page.js", summary="The page's script", answer=str, answer_media="text/javascript"),
        Operation(method="GET", path="/docs/page.css", summary="The page's style", answer=str, answer_media="text/css"),
    ),
)
