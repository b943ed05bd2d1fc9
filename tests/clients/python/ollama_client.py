"""What the package `ollama` does beyond text: tools, structured answers, log-probabilities, embeddings."""

from ollama import Client, ResponseError
from said import CALLER, CHAT, DESCRIBE, EMBEDDER, HELLO, URL, WEATHER, City, get_weather, say

client = Client(host=URL)
few = {"num_predict": 8, "temperature": 0, "seed": 1}
hello = [{"role": "user", "content": HELLO}]
say("chat", client.chat(CHAT, hello, options=few).message.content)
say("stream", [part.message.content for part in client.chat(CHAT, hello, options=few, stream=True)])

weather = [{"role": "user", "content": WEATHER}]
sure = {"temperature": 0, "num_predict": 60}
answer = client.chat(CALLER, weather, tools=[get_weather], options=sure)
calls = answer.message.tool_calls or []
say("tool", [{"name": call.function.name, "arguments": dict(call.function.arguments)} for call in calls])
parts = list(client.chat(CALLER, weather, tools=[get_weather], options=sure, stream=True))
called = [call for part in parts for call in part.message.tool_calls or []]
say("tool-stream", [{"name": call.function.name, "arguments": dict(call.function.arguments)} for call in called])
results = [{"role": "tool", "tool_name": call.function.name, "content": get_weather(**call.function.arguments)} for call in calls]
say("tool-result", client.chat(CALLER, [*weather, answer.message, *results], tools=[get_weather], options=sure).message.content)

made = client.chat(CHAT, [{"role": "user", "content": DESCRIBE}], format=City.model_json_schema(), options={"num_predict": 300})
say("structured", City.model_validate_json(made.message.content or "").model_dump())
made = client.generate(CHAT, DESCRIBE, format="json", options={"num_predict": 300, "temperature": 0})
say("json", made.response)

found = client.chat(CHAT, hello, options=few, logprobs=True, top_logprobs=3)
say("logprobs", [{"token": one.token, "logprob": one.logprob, "top": len(one.top_logprobs or [])} for one in found.logprobs or []])
say("embed", client.embed(EMBEDDER, ["one", "two"]).embeddings)
for verb, call in {
    "unknown": lambda: client.chat("nobody", hello),
    "incapable": lambda: client.chat("plain", weather, tools=[get_weather]),
    "unthinking": lambda: client.chat(CHAT, hello, think=True),
    "impossible": lambda: client.chat(CHAT, hello, format={"type": "object", "properties": {"a": {"$ref": "#/nowhere"}}}),
}.items():
    try:
        call()
        raise SystemExit(f"{verb} was not refused")
    except ResponseError as error:
        say("refused", {"verb": verb, "status": error.status_code, "message": error.error})
