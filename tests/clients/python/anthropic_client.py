"""What the package `anthropic` does: messages, their stream, tools, the count of tokens, refusals.

The package has no temperature of its own any more; it goes in the body all the same.
"""

from anthropic import Anthropic, APIStatusError
from said import CALLER, CHAT, DESCRIBE, HELLO, URL, WEATHER, City, Kind, say

client = Anthropic(base_url=URL, api_key="none", max_retries=0)
hello = [{"role": "user", "content": HELLO}]
few = {"model": CHAT, "messages": hello, "max_tokens": 8, "extra_body": {"temperature": 0}}
whole = client.messages.create(**few)
say("chat", whole.content[0].text)
say("usage", whole.usage.model_dump())
with client.messages.stream(**few) as stream:
    say("stream", list(stream.text_stream))
    say("stream-end", stream.get_final_message().stop_reason)
say("count", client.messages.count_tokens(model=CHAT, messages=hello).input_tokens)

tools = [
    {
        "name": name,
        "description": text,
        "input_schema": {"type": "object", "properties": {"city": {"type": "string", "maxLength": 20}}, "required": ["city"]},
    }
    for name, text in {"get_weather": "The weather in a city now", "get_time": "The time in a city now"}.items()
]
weather = [{"role": "user", "content": WEATHER}]
sure = {"model": CALLER, "messages": weather, "tools": tools, "max_tokens": 80, "extra_body": {"temperature": 0}}


def said(message):
    return [{"name": block.name, "arguments": block.input} for block in message.content if block.type == "tool_use"]


answer = client.messages.create(**sure)
say("finish", answer.stop_reason)
say("tool", said(answer))
with client.messages.stream(**sure) as stream:
    say("tool-stream", said(stream.get_final_message()))
results = [{"type": "tool_result", "tool_use_id": b.id, "content": "21 degrees and sunny"} for b in answer.content if b.type == "tool_use"]
turns = [*weather, {"role": "assistant", "content": answer.content}, {"role": "user", "content": results}]
say("tool-result", client.messages.create(**(sure | {"messages": turns})).content[0].text)
plain = sure | {"model": CHAT}
say("named", said(client.messages.create(**plain, tool_choice={"type": "tool", "name": "get_time"})))
say("required", said(client.messages.create(**plain, tool_choice={"type": "any"})))
say("none", said(client.messages.create(**sure, tool_choice={"type": "none"})))
city = [{"name": "city", "description": "Say what a city is like", "input_schema": City.model_json_schema()}]
made = client.messages.create(
    model=CHAT, messages=[{"role": "user", "content": DESCRIBE}], tools=city, tool_choice={"type": "tool", "name": "city"}, max_tokens=300
)
say("structured", City.model_validate(said(made)[0]["arguments"]).model_dump())
made = client.messages.parse(model=CHAT, messages=[{"role": "user", "content": DESCRIBE}], output_format=Kind, max_tokens=300)
say("structured-own", made.parsed_output.model_dump())
for verb, call in {
    "unknown": lambda: client.messages.create(model="nobody", messages=hello, max_tokens=8),
    "incapable": lambda: client.messages.create(**(sure | {"model": "plain"})),
    "empty": lambda: client.messages.create(model=CHAT, messages=[], max_tokens=8),
}.items():
    try:
        call()
        raise SystemExit(f"{verb} was not refused")
    except APIStatusError as error:
        say("refused", {"verb": verb, "status": error.status_code, "message": error.body["error"]["message"]})
