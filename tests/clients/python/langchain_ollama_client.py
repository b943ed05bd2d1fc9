"""What `langchain-ollama` does: chat, stream, bound tools, structured output, embeddings."""

from functools import reduce
from operator import add

from langchain_core.messages import HumanMessage, ToolMessage
from langchain_ollama import ChatOllama, OllamaEmbeddings
from said import CALLER, CHAT, DESCRIBE, EMBEDDER, HELLO, URL, WEATHER, City, get_weather, say

chat = ChatOllama(model=CHAT, base_url=URL, temperature=0, num_predict=8)
say("chat", chat.invoke(HELLO).content)
say("stream", [part.content for part in chat.stream(HELLO)])

caller = ChatOllama(model=CALLER, base_url=URL, temperature=0, num_predict=60).bind_tools([get_weather])
answer = caller.invoke(WEATHER)
say("tool", [{"name": call["name"], "arguments": call["args"]} for call in answer.tool_calls])
whole = reduce(add, caller.stream(WEATHER))
say("tool-stream", [{"name": call["name"], "arguments": call["args"]} for call in whole.tool_calls])
results = [ToolMessage(get_weather(**call["args"]), tool_call_id=call["id"], name=call["name"]) for call in answer.tool_calls]
say("tool-result", caller.invoke([HumanMessage(WEATHER), answer, *results]).content)

writer = ChatOllama(model=CHAT, base_url=URL, num_predict=300)
say("structured", writer.with_structured_output(City).invoke(DESCRIBE).model_dump())
say("json", ChatOllama(model=CHAT, base_url=URL, temperature=0, num_predict=300, format="json").invoke(DESCRIBE).content)
say("embed", OllamaEmbeddings(model=EMBEDDER, base_url=URL).embed_documents(["one", "two"]))
