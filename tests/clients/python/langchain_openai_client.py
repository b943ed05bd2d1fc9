"""What `langchain-openai` does: chat, stream, bound tools, structured output, embeddings; over both of OpenAI's surfaces."""

from functools import reduce
from operator import add

from langchain_core.messages import HumanMessage, ToolMessage
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from said import CALLER, CHAT, DESCRIBE, EMBEDDER, HELLO, URL, WEATHER, City, get_weather, say

ours = {"base_url": f"{URL}/v1", "api_key": "none", "max_retries": 0}
chat = ChatOpenAI(model=CHAT, temperature=0, max_tokens=8, **ours)
say("chat", chat.invoke(HELLO).content)
say("stream", [part.content for part in chat.stream(HELLO)])

model = ChatOpenAI(model=CALLER, temperature=0, max_tokens=60, **ours)
caller = model.bind_tools([get_weather])
answer = caller.invoke(WEATHER)
say("tool", [{"name": call["name"], "arguments": call["args"]} for call in answer.tool_calls])
whole = reduce(add, caller.stream(WEATHER))
say("tool-stream", [{"name": call["name"], "arguments": call["args"]} for call in whole.tool_calls])
results = [ToolMessage(get_weather(**call["args"]), tool_call_id=call["id"], name=call["name"]) for call in answer.tool_calls]
say("tool-result", caller.invoke([HumanMessage(WEATHER), answer, *results]).content)
forced = model.bind_tools([get_weather], tool_choice="get_weather").invoke(WEATHER)
say("named", [call["name"] for call in forced.tool_calls])

writer = ChatOpenAI(model=CHAT, max_tokens=300, **ours)
for verb, method in {"structured": "json_schema", "structured-tool": "function_calling"}.items():
    say(verb, writer.with_structured_output(City, method=method).invoke(DESCRIBE).model_dump())
responses = ChatOpenAI(model=CHAT, temperature=0, max_tokens=8, use_responses_api=True, **ours)
say("responses", responses.invoke(HELLO).text)
say("responses-stream", [part.text for part in responses.stream(HELLO)])
# Without the check the texts go as they are; with it they would be cut by another model's vocabulary, which is fetched.
embedder = OpenAIEmbeddings(model=EMBEDDER, check_embedding_ctx_length=False, **ours)
say("embed", embedder.embed_documents(["one", "two"]))
