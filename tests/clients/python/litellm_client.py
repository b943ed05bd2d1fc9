"""What `litellm` does: the same calls as `ollama_chat/…`, `openai/…` and `anthropic/…`."""

import json
import os

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # else it fetches a list of prices

import litellm
from said import CALLER, CHAT, DESCRIBE, EMBEDDER, HELLO, URL, WEATHER, City, say

litellm.telemetry, litellm.suppress_debug_info = False, True
tools = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "The weather in a city now",
            "parameters": {"type": "object", "properties": {"city": {"type": "string", "maxLength": 20}}, "required": ["city"]},
        },
    }
]
for way, base in {"": ("ollama_chat", URL), "openai-": ("openai", f"{URL}/v1"), "anthropic-": ("anthropic", URL)}.items():
    provider, api_base = base

    def ask(name, text, provider=provider, api_base=api_base, **more):
        messages = [{"role": "user", "content": text}]
        return litellm.completion(model=f"{provider}/{name}", messages=messages, api_base=api_base, api_key="none", **more)

    say(f"{way}chat", ask(CHAT, HELLO, temperature=0, max_tokens=8).choices[0].message.content)
    parts = ask(CHAT, HELLO, temperature=0, max_tokens=8, stream=True)
    say(f"{way}stream", [part.choices[0].delta.content or "" for part in parts if part.choices])
    calls = ask(CALLER, WEATHER, temperature=0, max_tokens=60, tools=tools).choices[0].message.tool_calls
    say(f"{way}tool", [{"name": c.function.name, "arguments": json.loads(c.function.arguments)} for c in calls or []])
    if provider != "anthropic":
        made = ask(CHAT, DESCRIBE, max_tokens=300, response_format=City).choices[0].message.content
        say(f"{way}structured", City.model_validate_json(made).model_dump())
say("embed", [item["embedding"] for item in litellm.embedding(f"ollama/{EMBEDDER}", ["one", "two"], api_base=URL).data])
found = litellm.embedding(f"openai/{EMBEDDER}", ["one", "two"], api_base=f"{URL}/v1", api_key="none", encoding_format="float")
say("openai-embed", [item["embedding"] for item in found.data])
