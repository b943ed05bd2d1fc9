"""What the package `openai` does: chat, tools, structured outputs, responses, completions, embeddings, models, refusals."""

import json

from openai import APIStatusError, OpenAI, pydantic_function_tool
from said import CALLER, CHAT, DESCRIBE, EMBEDDER, HELLO, URL, WEATHER, City, say

client = OpenAI(base_url=f"{URL}/v1", api_key="none", max_retries=0)
say("models", sorted(model.id for model in client.models.list()))
hello = [{"role": "user", "content": HELLO}]
few = {"model": CHAT, "messages": hello, "max_completion_tokens": 8, "temperature": 0, "seed": 1}
whole = client.chat.completions.create(**few)
say("chat", whole.choices[0].message.content)
say("usage", whole.usage.model_dump())
parts = list(client.chat.completions.create(**few, stream=True, stream_options={"include_usage": True}))
say("stream", [choice.delta.content or "" for part in parts for choice in part.choices])
say("stream-usage", [part.usage.model_dump() for part in parts if part.usage])
say("several", [choice.message.content for choice in client.chat.completions.create(**(few | {"temperature": 1, "seed": 3}), n=2).choices])
found = client.chat.completions.create(**few, logprobs=True, top_logprobs=3).choices[0].logprobs.content
say("logprobs", [{"token": one.token, "logprob": one.logprob, "top": len(one.top_logprobs)} for one in found])

tools = [
    {
        "type": "function",
        "function": {
            "name": name,
            "description": text,
            "parameters": {"type": "object", "properties": {"city": {"type": "string", "maxLength": 20}}, "required": ["city"]},
        },
    }
    for name, text in {"get_weather": "The weather in a city now", "get_time": "The time in a city now"}.items()
]
weather = [{"role": "user", "content": WEATHER}]
sure = {"model": CALLER, "messages": weather, "tools": tools, "temperature": 0, "max_completion_tokens": 80}


def said(calls):
    return [{"name": call.function.name, "arguments": json.loads(call.function.arguments)} for call in calls or []]


answer = client.chat.completions.create(**sure)
say("finish", answer.choices[0].finish_reason)
message = answer.choices[0].message
say("tool", said(message.tool_calls))
with client.chat.completions.stream(**sure) as stream:
    say("tool-stream", said(stream.get_final_completion().choices[0].message.tool_calls))
results = [{"role": "tool", "tool_call_id": call.id, "content": "21 degrees and sunny"} for call in message.tool_calls or []]
say("tool-result", client.chat.completions.create(**(sure | {"messages": [*weather, message, *results]})).choices[0].message.content)
named = {"type": "function", "function": {"name": "get_time"}}
say("named", said(client.chat.completions.create(**(sure | {"model": CHAT}), tool_choice=named).choices[0].message.tool_calls))
say("required", said(client.chat.completions.create(**(sure | {"model": CHAT}), tool_choice="required").choices[0].message.tool_calls))
say("none", said(client.chat.completions.create(**sure, tool_choice="none").choices[0].message.tool_calls))

describe = [{"role": "user", "content": DESCRIBE}]
parsed = client.chat.completions.parse(model=CHAT, messages=describe, response_format=City, max_completion_tokens=300)
say("structured", parsed.choices[0].message.parsed.model_dump())
with client.chat.completions.stream(model=CHAT, messages=describe, response_format=City, max_completion_tokens=300) as stream:
    say("structured-stream", stream.get_final_completion().choices[0].message.parsed.model_dump())
parsed = client.chat.completions.parse(
    model=CHAT, messages=describe, tools=[pydantic_function_tool(City)], tool_choice="required", max_completion_tokens=300
)
say("structured-tool", parsed.choices[0].message.tool_calls[0].function.parsed_arguments.model_dump())

written = {"model": CHAT, "prompt": "The capital of France is", "max_tokens": 8, "temperature": 0}
say("complete", client.completions.create(**written).choices[0].text)
say("complete-stream", [choice.text for part in client.completions.create(**written, stream=True) for choice in part.choices])

respond = {"model": CHAT, "input": HELLO, "max_output_tokens": 8, "temperature": 0}
first = client.responses.create(**respond)
say("responses", first.output_text)
events = list(client.responses.create(**respond, stream=True))
say("responses-stream", [event.delta for event in events if event.type == "response.output_text.delta"])
say("responses-events", [event.type for event in events if not event.type.endswith(".delta")])
say("responses-next", client.responses.create(**(respond | {"input": "And of Italy?"}), previous_response_id=first.id).output_text)
parsed = client.responses.parse(model=CHAT, input=DESCRIBE, text_format=City, max_output_tokens=300)
say("responses-structured", parsed.output_parsed.model_dump())
flat = [{"type": "function", "strict": False, **tool["function"]} for tool in tools]
called = client.responses.create(model=CALLER, input=WEATHER, tools=flat, temperature=0, max_output_tokens=80).output
say("responses-tool", [{"name": c.name, "arguments": json.loads(c.arguments)} for c in called if c.type == "function_call"])

texts = ["one", "two"]
say("embed", [item.embedding for item in client.embeddings.create(model=EMBEDDER, input=texts).data])
say("embed-float", [item.embedding for item in client.embeddings.create(model=EMBEDDER, input=texts, encoding_format="float").data])
say("dimensions", [len(item.embedding) for item in client.embeddings.create(model=EMBEDDER, input="one", dimensions=64).data])
for verb, call in {
    "unknown": lambda: client.chat.completions.create(model="nobody", messages=hello),
    "incapable": lambda: client.chat.completions.create(**(sure | {"model": "plain"})),
    "range": lambda: client.chat.completions.create(**few, logprobs=True, top_logprobs=99),
    "impossible": lambda: client.chat.completions.create(
        **few, response_format={"type": "json_schema", "json_schema": {"name": "a", "schema": {"$ref": "#/nowhere"}}}
    ),
    "unknown-response": lambda: client.responses.create(**respond, previous_response_id="resp_nobody"),
}.items():
    try:
        call()
        raise SystemExit(f"{verb} was not refused")
    except APIStatusError as error:
        say("refused", {"verb": verb, "status": error.status_code, "message": error.body["message"]})
