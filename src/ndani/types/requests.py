"""What a model can be asked."""

from __future__ import annotations

from dataclasses import dataclass, field

from ndani.types.conversation import Constraint, Message, Sampling, Tool, ToolChoice


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerRequest:
    """What every request for an answer has. `model` is the name as the client spelt it; `keep_alive` is in seconds, negative: forever.

    `render_only` returns only the prompt that would be sent. `think` is True, False, a level (low, medium, high, max), or None
    where the request does not set it; `think_if_possible` is for clients that ask every model to think: one that cannot does not.
    `think_budget` is how many tokens of the answer may be thinking.
    `constraint` is what the text must match. `logprobs` is how many alternatives are wanted with each token's log-probability, None
    for no log-probabilities. `logit_bias` is added to the logits of token ids; minus infinity forbids a token.
    `options_error` is the sentence of an error in the options; it is raised once the model is found and supports what the request needs.
    """

    model: str
    sampling: Sampling = field(default_factory=Sampling)
    keep_alive: float | None = None
    truncate: bool = True
    shift: bool = True
    render_only: bool = False
    think: bool | str | None = None
    think_if_possible: bool = False
    think_budget: int | None = None
    constraint: Constraint | None = None
    logprobs: int | None = None
    logit_bias: tuple[tuple[int, float], ...] = ()
    options_error: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatRequest(AnswerRequest):
    """A conversation to be continued. `parallel_tool_calls`: one answer may hold several calls."""

    messages: tuple[Message, ...]
    tools: tuple[Tool, ...] = ()
    tool_choice: ToolChoice = field(default_factory=ToolChoice)
    parallel_tool_calls: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerateRequest(AnswerRequest):
    """A prompt to be answered. `raw` sends it as it is; `context` is the token ids of an earlier exchange.

    `system` and `template` replace the model's where they are not empty. With `suffix`, the text between prompt and suffix is
    wanted. With a `context`, even an empty one, the model's MESSAGE turns are left out.
    """

    prompt: str
    system: str = ""
    template: str = ""
    suffix: str = ""
    raw: bool = False
    images: tuple[bytes, ...] = ()
    context: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True)
class EmbedRequest:
    """Texts to be embedded. `dimensions` is how many numbers of each vector are wanted, 0 for all.

    With `truncate`, a text that is too long loses its end; without, it is an error. `options_error` is as in AnswerRequest.
    """

    model: str
    texts: tuple[str, ...]
    truncate: bool = True
    dimensions: int = 0
    sampling: Sampling = field(default_factory=Sampling)
    keep_alive: float | None = None
    options_error: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class RankRequest:
    """Documents to be scored for a query. With `truncate`, a document that is too long loses its end; without, it is an error.

    The other fields are as in AnswerRequest.
    """

    model: str
    query: str
    documents: tuple[str, ...]
    truncate: bool = True
    sampling: Sampling = field(default_factory=Sampling)
    keep_alive: float | None = None
    options_error: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizeRequest:
    """A text whose token ids are wanted. `add_special`: with the tokens that the model adds to every prompt; `parse_special`: the
    text of a special token becomes that token. The other fields are as in AnswerRequest.
    """

    model: str
    text: str
    add_special: bool = False
    parse_special: bool = True
    sampling: Sampling = field(default_factory=Sampling)
    keep_alive: float | None = None
    options_error: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class DetokenizeRequest:
    """Token ids whose text is wanted. The other fields are as in AnswerRequest."""

    model: str
    tokens: tuple[int, ...]
    sampling: Sampling = field(default_factory=Sampling)
    keep_alive: float | None = None
    options_error: str = ""
