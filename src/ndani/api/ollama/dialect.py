"""Ollama's API: every URL of it, and how its errors look. What is no other dialect's is this one's."""

from __future__ import annotations

from ndani.api.edge.dialect import Context, Dialect, delete, get, head, post
from ndani.api.edge.media_types import BYTES, TEXT
from ndani.api.edge.operation import Operation
from ndani.api.ollama import bodies, cloud
from ndani.api.ollama import response_bodies as answers
from ndani.api.ollama.create import CreateRoutes
from ndani.api.ollama.embed import EmbedRoutes
from ndani.api.ollama.responses import ERRORS
from ndani.api.ollama.routes import OllamaRoutes


def dialect(context: Context) -> Dialect:
    """The dialect over one service."""
    ollama, create, embed = OllamaRoutes(context.service), CreateRoutes(context.service), EmbedRoutes(context.service)
    return Dialect(
        name="ollama",
        title="Ollama's API",
        routes=(
            get("/", ollama.root, Operation("Whether the server is running", answer=str, answer_media=TEXT)),
            get("/api/version", ollama.version, Operation("The version of Ollama's API that is served", answer=answers.VersionBody)),
            get("/api/status", ollama.status, Operation("The state of the cloud: there is none", answer=answers.StatusBody)),
            post(
                "/api/generate",
                ollama.generate,
                Operation("Continue a prompt", bodies.GenerateBody, answers.GenerateLine, answers.GenerateLine),
            ),
            post("/api/chat", ollama.chat, Operation("Continue a conversation", bodies.ChatBody, answers.ChatLine, answers.ChatLine)),
            post("/api/embed", embed.embed, Operation("Make vectors of texts", bodies.EmbedBody, answers.EmbedAnswer)),
            post(
                "/api/embeddings",
                embed.embeddings,
                Operation("Make a vector of one text: the older form", bodies.EmbeddingsBody, answers.EmbeddingsAnswer),
            ),
            get("/api/tags", ollama.tags, Operation("The models in the store", answer=answers.TagsBody)),
            get("/api/ps", ollama.ps, Operation("The models in memory", answer=answers.PsBody)),
            post("/api/show", ollama.show, Operation("What a model is", bodies.ShowBody, answers.ShowAnswer)),
            post("/api/copy", ollama.copy, Operation("Give a model one more name", bodies.CopyBody)),
            delete("/api/delete", ollama.delete, Operation("Remove a name", bodies.DeleteBody)),
            post("/api/pull", ollama.pull, Operation("Fetch a model", bodies.PullBody, answers.Step, answers.Step)),
            post("/api/push", ollama.push, Operation("Send a model to its registry", bodies.PushBody, answers.Step, answers.Step)),
            post("/api/create", create.create, Operation("Make a model", bodies.CreateBody, answers.Step, answers.Step)),
            head("/api/blobs/{digest}", create.has_blob, Operation("Whether the store has a file")),
            post(
                "/api/blobs/{digest}",
                create.upload_blob,
                Operation(
                    "Send a file for a create; 200 where it was here before",
                    bytes,
                    body_media=BYTES,
                    body_optional=True,
                    statuses=(201, 200),
                ),
            ),
            post("/api/me", cloud.account, Operation("Refused: there are no accounts here", statuses=())),
            post("/api/signout", cloud.account, Operation("Refused: nobody signs in here", statuses=())),
            post("/api/experimental/web_search", cloud.web_search, Operation("Refused: there is no cloud", statuses=())),
            post("/api/experimental/web_fetch", cloud.web_fetch, Operation("Refused: there is no cloud", statuses=())),
        ),
        errors=(("", ERRORS),),
        large_bodies=frozenset({"/api/generate", "/api/chat", "/api/embed", "/api/embeddings", "/api/create"}),
    )
