"""The bodies of our own routes about the store and the server, as types. Those of requests in progress, tokens and reranking stand with
their routes.
"""

from __future__ import annotations

from typing import Literal

import msgspec
from msgspec import UNSET, UnsetType

from ndani.api.ollama.response_bodies import Body, Step


class VerifyBody(msgspec.Struct, kw_only=True):
    """Which files are read again: those of a `model`, or of all; of these only the `digests`. `repair` fetches what is damaged."""

    model: str | None = None
    name: str | None = None
    digests: list[str] | None = None
    repair: bool | None = None
    insecure: bool | None = None
    stream: bool | None = None


class PruneBody(msgspec.Struct, kw_only=True):
    """With `dry_run` nothing is removed."""

    dry_run: bool | None = None
    stream: bool | None = None


class HandoverBody(msgspec.Struct, kw_only=True):
    """Where a file has been linked to; without it a place is answered."""

    place: str | None = None
    stream: bool | None = None


class DamagedFile(Body, kw_only=True):
    """A file that is not what its name says, and the models that need it."""

    digest: str
    problem: str
    models: list[str] | UnsetType = UNSET


class DamageStep(DamagedFile, kw_only=True):
    """A damaged file was found."""

    status: Literal["damaged"]


class VerifyEnd(Body, kw_only=True):
    """How many files were read, of how many bytes, and which are damaged."""

    status: Literal["success"]
    files: int
    size: int
    damaged: list[DamagedFile]


class UnusedStep(Body, kw_only=True):
    """A file that no model needs."""

    status: Literal["unused"]
    file: str
    size: int


class PruneEnd(Body, kw_only=True):
    """How many files were removed, how many of them had not come whole, and how many bytes that frees."""

    status: Literal["success"]
    files: int
    unfinished: int
    freed: int


#: What a line of verify, and of prune, may be.
VERIFY_LINES = (Step, DamageStep, VerifyEnd)
PRUNE_LINES = (Step, UnusedStep, PruneEnd)


class HandoverPlace(Body, kw_only=True):
    """A place to link a file to."""

    place: str


class ServerCounts(Body, kw_only=True):
    """Counters since the start."""

    requests: int
    failures: int
    cancelled: int
    answers: int
    prompt_tokens: int
    output_tokens: int
    truncated_prompts: int
    truncated_tokens: int


class HealthBody(Body, kw_only=True):
    """What is loaded, how many wait, which runners are unconfined, and the counters."""

    status: Literal["ok"]
    loaded: list[str]
    waiting: int
    unconfined: list[str]
    counts: ServerCounts


class Unhealthy(Body, kw_only=True):
    """Why no request could be served."""

    status: Literal["unavailable"]
    reason: str


class ConfinementBody(Body, kw_only=True):
    """How a runner is jailed."""

    word: str
    seccomp: bool
    landlock: bool
    namespace: bool
    missing: list[str]


class WayOut(Body, kw_only=True):
    """A way out of the jail that was tried, outside and inside of it."""

    name: str
    outside: str
    inside: Literal["blocked", "open"]
    why: str


class DoctorBody(Body, kw_only=True):
    """What was tried to get out of a runner, and what came of it."""

    engine: str
    model: str | None
    confinement: ConfinementBody
    routes: list[WayOut]
    warnings: list[str]
