"""A budget for thinking, with the real engine and a tiny model whose chat template, in its weights, thinks and calls tools."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import anthropic
import pytest
from anthropic.types import Message, ThinkingBlock

from checkpoints import byte_level, made_of, tiny_llama
from server import serving

pytestmark = pytest.mark.slow

#: As Qwen's, in short.
TEMPLATE = (
    r"{%- if tools %}{{ '<|im_start|>system\n# Tools\n<tools>' }}{%- for tool in tools %}{{ tool | tojson }}{%- endfor %}"
    r"{{ '</tools>\nFor each function call return <tool_call>\n"
    r"""{"name": <function-name>, "arguments": <args-json-object>}\n</tool_call><|im_end|>\n' }}{%- endif %}"""
    r"{%- for message in messages %}{{ '<|im_start|>' + message.role + '\n' }}"
    r"{%- if message.reasoning_content %}{{ '<think>\n' + message.reasoning_content + '\n</think>\n\n' }}{%- endif %}"
    r"{{ message.content or '' }}{%- if message.tool_calls %}{%- for call in message.tool_calls %}"
    r"""{{ '\n<tool_call>\n{"name": "' + call.function.name + '", "arguments": ' }}{{ call.function.arguments | tojson }}"""
    r"{{ '}\n</tool_call>' }}{%- endfor %}{%- endif %}{{ '<|im_end|>\n' }}{%- endfor %}"
    r"{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
    r"{%- if enable_thinking is defined and enable_thinking is false %}{{ '<think>\n\n</think>\n\n' }}"
    r"{%- else %}{{ '<think>\n' }}{%- endif %}{%- endif %}"
)
TOOL: Any = {"name": "f", "input_schema": {"type": "object", "properties": {"a": {"type": "string"}}}}
HI: Any = [{"role": "user", "content": "what is it?"}]
SURE = {"temperature": 0}


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[anthropic.Anthropic]:
    folder = tmp_path_factory.mktemp("anthropic-thinking")
    weights = tiny_llama(folder, byte_level(), max_position_embeddings=4096)
    (weights / "chat_template.jinja").write_text(TEMPLATE)
    with serving(folder, folder / "models") as server:
        assert server.ask("/api/create", {"model": "m", "files": {"m.gguf": server.upload(made_of(weights))}}) == {"status": "success"}
        with anthropic.Anthropic(base_url=server.url, api_key="none", max_retries=0) as found:
            yield found


def ask(client: anthropic.Anthropic, budget: int, **more: Any) -> Message:
    thinking: Any = {"type": "enabled", "budget_tokens": budget}
    return client.messages.create(model="m", max_tokens=40, messages=HI, thinking=thinking, extra_body=SURE, **more)


@pytest.mark.parametrize("tools", [{}, {"tools": [TOOL]}], ids=["without tools", "with tools"])
def test_thinking_ends_with_its_budget(client: anthropic.Anthropic, tools: dict[str, Any]) -> None:
    """With tools the engine reads the answer and keeps the budget; without, it is kept here."""
    short, long = (ask(client, budget, **tools) for budget in (4, 12))
    thoughts = []
    for message in (short, long):
        assert isinstance(message.content[0], ThinkingBlock)
        thoughts.append(message.content[0].thinking)
    assert len(thoughts[0]) < len(thoughts[1])
    assert short.content[1].type == "text"
    counted = client.messages.count_tokens(model="m", messages=HI, thinking={"type": "enabled", "budget_tokens": 4}, **tools)
    assert counted.input_tokens == short.usage.input_tokens + (short.usage.cache_read_input_tokens or 0)


def test_a_model_that_thinks_by_its_template_does_not_unless_asked(client: anthropic.Anthropic) -> None:
    message = client.messages.create(model="m", max_tokens=8, messages=HI, extra_body=SURE)
    assert "thinking" not in {block.type for block in message.content}
