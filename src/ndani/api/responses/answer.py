"""One answer as it grows: takes the events of a model once, builds the items of the response, and returns the events of its stream.

A response that is not streamed is built by the same steps, so both end with the same object.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import msgspec

from ndani.api.edge.faults import ErrorFormat
from ndani.api.edge.json_response import encode
from ndani.api.edge.media_types import EVENTS
from ndani.api.edge.streaming import CollectedSink, ResponseFormat
from ndani.api.openai.errors import ERRORS
from ndani.api.responses.forms import Form
from ndani.api.responses.items import (
    FunctionCall,
    Logprob,
    MessageItem,
    OutputText,
    ReasoningItem,
    Status,
    SummaryText,
    TokenChance,
    new_id,
)
from ndani.api.responses.objects import (
    IncompleteDetails,
    InputTokensDetails,
    OutputItem,
    OutputTokensDetails,
    ResponseError,
    ResponseObject,
    ResponseUsage,
)
from ndani.errors import BadRequest, Busy, NdaniError
from ndani.types import Answer, Called, Done, Event, Piece, Rendered, Text, Thought, TokenLogprob, ToolCall

_CUT_OFF = IncompleteDetails("max_output_tokens")


@dataclass(slots=True)
class _OpenItem:
    """The item that texts are added to. `head`, `middle` and `tail` are what surrounds the number and the text of its deltas."""

    id: str
    index: int
    is_thought: bool
    head: bytes
    middle: bytes
    tail: bytes
    texts: list[str] = field(default_factory=list)
    logprobs: list[Logprob] = field(default_factory=list)


class ResponseAnswer:
    """The answer to one request. `opening` is the response before the answer; `keep` is called with the whole one."""

    def __init__(
        self, opening: ResponseObject, form: Form, keep: Callable[[ResponseObject], None] = lambda _: None, *, shows_encrypted: bool = False
    ) -> None:
        self._form, self._keep, self._shows_encrypted = form, keep, shows_encrypted
        if form.counts_early:
            opening = msgspec.structs.replace(opening, usage=ResponseUsage())
        if form.joins_text:
            opening = msgspec.structs.replace(opening, output_text="")
        self._response = opening
        self._output: list[OutputItem] = []
        self._open: _OpenItem | None = None
        self._began = False
        self._sequence = -1  # of the last event

    def response_format(self) -> ResponseFormat:
        """How `streaming` writes this answer."""
        errors = ErrorFormat(ERRORS.body, self.fail, ERRORS.no_route, ERRORS.body_type)
        return ResponseFormat(EVENTS, self.event, lambda _, end: self.whole(end), lambda first: False, errors)

    def event(self, event: Event) -> bytes:
        """The bytes of an event in the stream; of the first and the last one, all that comes before and after."""
        opened = self._open
        if type(event) is Text and opened is not None and not opened.is_thought and not event.logprobs:  # nearly every token
            opened.texts.append(event.text)
            self._sequence = number = self._sequence + 1
            return b"%b%d%b%b%b" % (opened.head, number, opened.middle, encode(event.text), opened.tail)
        frames = b"" if self._began else self._begin()
        if isinstance(event, Done):
            return frames + self._finish(event)
        assert not isinstance(event, Rendered)  # no request of this dialect asks for it
        return frames + self._piece(event)

    def whole(self, end: Done | Rendered) -> bytes:
        """The response, once all pieces have gone through `event`."""
        assert isinstance(end, Done)
        self._finish(end)
        return encode(self._response)

    def fail(self, error: NdaniError) -> bytes:
        """The end of a stream that fails: a response with what there was so far, and the error."""
        code = "rate_limit_exceeded" if isinstance(error, Busy) else "invalid_prompt" if isinstance(error, BadRequest) else "server_error"
        frames = self._close("incomplete")
        self._response = msgspec.structs.replace(
            self._response,
            status="failed",
            completed_at=None,
            failed_at=int(time.time()),
            error=ResponseError(code, str(error)),
            output=self._output,
        )
        return frames + self._frame("response.failed", response=self._response) + self._form.ending

    def _begin(self) -> bytes:
        self._began = True
        created = self._frame("response.created", response=self._response)
        return created + self._frame("response.in_progress", response=self._response) + self._form.opening

    def _piece(self, piece: Piece) -> bytes:
        """A piece of an answer. An item ends when a piece of another kind comes."""
        if isinstance(piece, Called):
            return self._close("completed") + self._call(piece.call)
        is_thought = isinstance(piece, Thought)
        frames = b""
        if self._open is None or self._open.is_thought != is_thought:
            frames = self._close("completed") + self._open_item(is_thought)
        opened = self._open
        assert opened is not None
        opened.texts.append(piece.text)
        if piece.logprobs and not is_thought:
            logprobs = [_logprob(token) for token in piece.logprobs]
            opened.logprobs += logprobs
            return frames + self._frame("response.output_text.delta", **_place(opened), delta=piece.text, logprobs=logprobs)
        self._sequence += 1
        return frames + b"%b%d%b%b%b" % (opened.head, self._sequence, opened.middle, encode(piece.text), opened.tail)

    def _open_item(self, is_thought: bool) -> bytes:
        """Begin a message or a thought: its first events, and the constant parts of its deltas."""
        kind, prefix = ("response.reasoning_summary_text.delta", "rs") if is_thought else ("response.output_text.delta", "msg")
        item_id, index = new_id(prefix), len(self._output)
        head = b'event: %b\ndata: {"type":"%b","sequence_number":' % (kind.encode(), kind.encode())
        part = "summary_index" if is_thought else "content_index"
        middle = b',"item_id":"%b","output_index":%d,"%b":0,"delta":' % (item_id.encode(), index, part.encode())
        self._open = opened = _OpenItem(item_id, index, is_thought, head, middle, b"}\n\n" if is_thought else b',"logprobs":[]}\n\n')
        item: OutputItem = ReasoningItem(id=item_id, status="in_progress")
        if not is_thought:
            item = MessageItem(id=item_id, status="in_progress", role="assistant")
        added = self._frame("response.output_item.added", output_index=index, item=item)
        if is_thought:
            return added + self._frame("response.reasoning_summary_part.added", **_place(opened), part=SummaryText(text=""))
        return added + self._frame("response.content_part.added", **_place(opened), part=OutputText(text=""))

    def _close(self, status: Status) -> bytes:
        """End the open item, if there is one; an unfinished one has a `status` of its own."""
        opened, self._open = self._open, None
        if opened is None:
            return b""
        text, place = "".join(opened.texts), _place(opened)
        item: OutputItem
        if opened.is_thought:
            summary = SummaryText(text=text)
            encrypted = text if self._shows_encrypted else None
            item = ReasoningItem(id=opened.id, status=status, summary=[summary], encrypted_content=encrypted)
            frames = self._frame("response.reasoning_summary_text.done", **place, text=text)
            frames += self._frame("response.reasoning_summary_part.done", **place, part=summary)
        else:
            part = OutputText(text=text, logprobs=opened.logprobs)
            item = MessageItem(id=opened.id, status=status, role="assistant", content=[part])
            frames = self._frame("response.output_text.done", **place, text=text, logprobs=opened.logprobs)
            frames += self._frame("response.content_part.done", **place, part=part)
        self._output.append(item)
        return frames + self._frame("response.output_item.done", output_index=opened.index, item=item)

    def _call(self, call: ToolCall) -> bytes:
        index, item_id, arguments = len(self._output), new_id("fc"), encode(call.arguments).decode()
        item = FunctionCall(id=item_id, call_id=call.id or new_id("call"), name=call.name, arguments=arguments)
        self._output.append(item)
        begun = msgspec.structs.replace(item, status="in_progress", arguments="")
        place = {"item_id": item_id, "output_index": index}
        return b"".join(
            (
                self._frame("response.output_item.added", output_index=index, item=begun),
                self._frame("response.function_call_arguments.delta", **place, delta=arguments),
                self._frame("response.function_call_arguments.done", **place, arguments=arguments, name=call.name),
                self._frame("response.output_item.done", output_index=index, item=item),
            )
        )

    def _finish(self, done: Done) -> bytes:
        """The end: the open item's last events, and the response with its usage."""
        status = self._form.cut_off if done.reason == "length" else "completed"
        frames = b""
        if not self._output and self._open is None:  # an empty answer is an empty message
            frames = self._open_item(is_thought=False)
        frames += self._close(status)
        usage = done.usage
        self._response = msgspec.structs.replace(
            self._response,
            status=status,
            completed_at=int(time.time()) if status == "completed" else None,
            incomplete_details=_CUT_OFF if status == "incomplete" else None,
            output=self._output,
            output_text=self._joined_text() if self._form.joins_text else msgspec.UNSET,
            usage=ResponseUsage(
                input_tokens=usage.prompt_tokens,
                input_tokens_details=InputTokensDetails(usage.cached_tokens, max(usage.prompt_tokens - usage.cached_tokens, 0)),
                output_tokens=usage.output_tokens,
                output_tokens_details=OutputTokensDetails(usage.thinking_tokens),
                total_tokens=usage.prompt_tokens + usage.output_tokens,
            ),
        )
        self._keep(self._response)
        return frames + self._frame(f"response.{status}", response=self._response) + self._form.ending

    def _joined_text(self) -> str:
        messages = (item for item in self._output if isinstance(item, MessageItem))
        return "".join(part.text for item in messages for part in item.content if isinstance(part, OutputText))

    def _frame(self, kind: str, **fields: object) -> bytes:
        self._sequence += 1
        return b"event: %b\ndata: %b\n\n" % (kind.encode(), encode({"type": kind, "sequence_number": self._sequence, **fields}))


class AnswerSink(CollectedSink):
    """Takes the pieces of an answer that is not streamed."""

    def __init__(self, answer: ResponseAnswer) -> None:
        super().__init__()
        self._answer = answer

    def put(self, piece: Piece) -> None:
        """Add the piece to the response; the bytes that a stream would have are not needed."""
        self._answer.event(piece)

    def collected(self) -> Answer:
        """Nothing: the pieces are in the response."""
        return Answer()


def _place(opened: _OpenItem) -> dict[str, object]:
    """Where a delta belongs."""
    part = "summary_index" if opened.is_thought else "content_index"
    return {"item_id": opened.id, "output_index": opened.index, part: 0}


def _logprob(token: TokenLogprob) -> Logprob:
    top: Sequence[TokenLogprob] = token.top
    chances = [TokenChance(token=t.token, logprob=t.logprob, bytes=list(t.data)) for t in top]
    return Logprob(token=token.token, logprob=token.logprob, bytes=list(token.data), top_logprobs=chances)
