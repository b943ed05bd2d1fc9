"""The types that pass between packages: requests, events of an answer, models. Immutable; this package imports nothing of ours.

An option that is not set is None, never its default; `engines.sampling` says what then decides it. Durations are integer
nanoseconds, sizes are bytes, times are POSIX seconds.
"""

from __future__ import annotations

from ndani.types.answers import Answer, Called, Done, Event, Piece, Ranking, Rendered, Sink, Text, Thought, TokenLogprob, Usage, Vectors
from ndani.types.conversation import Constraint, Message, Sampling, Tool, ToolCall, ToolChoice
from ndani.types.models import SUCCESS, WRITING_MANIFEST, Details, Model, Progress, Report, Resident
from ndani.types.requests import AnswerRequest, ChatRequest, DetokenizeRequest, EmbedRequest, GenerateRequest, RankRequest, TokenizeRequest

__all__ = [
    "SUCCESS",
    "WRITING_MANIFEST",
    "Answer",
    "AnswerRequest",
    "Called",
    "ChatRequest",
    "Constraint",
    "Details",
    "DetokenizeRequest",
    "Done",
    "EmbedRequest",
    "Event",
    "GenerateRequest",
    "Message",
    "Model",
    "Piece",
    "Progress",
    "RankRequest",
    "Ranking",
    "Rendered",
    "Report",
    "Resident",
    "Sampling",
    "Sink",
    "Text",
    "Thought",
    "TokenLogprob",
    "TokenizeRequest",
    "Tool",
    "ToolCall",
    "ToolChoice",
    "Usage",
    "Vectors",
]
