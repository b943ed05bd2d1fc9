"""What each of Ollama's routes reads and answers."""

from __future__ import annotations

from ndani.api.edge.operation import Description, Operation
from ndani.api.ollama import bodies
from ndani.api.ollama import response_bodies as answers

_TEXT = "text/plain"
_BYTES = "application/octet-stream"

DESCRIPTION = Description(
    "Ollama",
    "Ollama's API",
    answers.ErrorBody,
    (
        Operation(method="GET", path="/", summary="Whether the server is running", answer=str, answer_media=_TEXT),
        Operation(method="GET", path="/api/version", summary="The version of Ollama's API that is served", answer=answers.VersionBody),
        Operation(method="GET", path="/api/status", summary="The state of the cloud: there is none", answer=answers.StatusBody),
        Operation(
            method="POST",
            path="/api/generate",
            summary="Continue a prompt",
            body=bodies.GenerateBody,
            answer=answers.GenerateLine,
            item=answers.GenerateLine,
        ),
        Operation(
            method="POST",
            path="/api/chat",
            summary="Continue a conversation",
            body=bodies.ChatBody,
            answer=answers.ChatLine,
            item=answers.ChatLine,
        ),
        Operation(method="POST", path="/api/embed", summary="Vectors of texts", body=bodies.EmbedBody, answer=answers.EmbedAnswer),
        Operation(
            method="POST",
            path="/api/embeddings",
            summary="The vector of one text, in an older form",
            body=bodies.EmbeddingsBody,
            answer=answers.EmbeddingsAnswer,
        ),
        Operation(method="GET", path="/api/tags", summary="The models in the store", answer=answers.TagsBody),
        Operation(method="GET", path="/api/ps", summary="The models in memory", answer=answers.PsBody),
        Operation(method="POST", path="/api/show", summary="What a model is", body=bodies.ShowBody, answer=answers.ShowAnswer),
        Operation(method="POST", path="/api/copy", summary="Give a model one more name", body=bodies.CopyBody),
        Operation(method="DELETE", path="/api/delete", summary="Remove a name", body=bodies.DeleteBody),
        Operation(method="POST", path="/api/pull", summary="Fetch a model", body=bodies.PullBody, answer=answers.Step, item=answers.Step),
        Operation(
            method="POST",
            path="/api/push",
            summary="Send a model to its registry",
            body=bodies.PushBody,
            answer=answers.Step,
            item=answers.Step,
        ),
        Operation(
            method="POST", path="/api/create", summary="Make a model", body=bodies.CreateBody, answer=answers.Step, item=answers.Step
        ),
        Operation(method="HEAD", path="/api/blobs/{digest}", summary="Whether the store has a file"),
        Operation(
            method="POST",
            path="/api/blobs/{digest}",
            summary="Send a file for a create; 200 where the store had it before",
            body=bytes,
            body_media=_BYTES,
            body_optional=True,
            statuses=(201, 200),
        ),
        Operation(method="POST", path="/api/me", summary="Refused: there are no accounts here", statuses=()),
        Operation(method="POST", path="/api/signout", summary="Refused: nobody signs in here", statuses=()),
        Operation(method="POST", path="/api/experimental/web_search", summary="Refused: there is no cloud", statuses=()),
        Operation(method="POST", path="/api/experimental/web_fetch", summary="Refused: there is no cloud", statuses=()),
    ),
)
