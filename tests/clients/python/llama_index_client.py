"""What `llama-index-llms-ollama` does: complete, chat, stream, tools, structured answers."""

from llama_index.core.llms import ChatMessage
from llama_index.core.tools import FunctionTool
from llama_index.llms.ollama import Ollama
from said import CALLER, CHAT, DESCRIBE, HELLO, URL, WEATHER, City, get_weather, say


def model(name: str, count: int, temperature: float = 0) -> Ollama:
    settings = {"num_predict": count, "temperature": temperature}
    return Ollama(model=name, base_url=URL, request_timeout=300, additional_kwargs=settings, context_window=2048)


hello = [ChatMessage(role="user", content=HELLO)]
say("chat", model(CHAT, 8).chat(hello).message.content)
say("stream", [part.delta for part in model(CHAT, 8).stream_chat(hello)])
say("complete", model(CHAT, 8).complete(HELLO).text)
say("complete-stream", [part.delta for part in model(CHAT, 8).stream_complete(HELLO)])

caller = model(CALLER, 60)
tools = [FunctionTool.from_defaults(get_weather)]
called = caller.get_tool_calls_from_response(caller.chat_with_tools(tools, WEATHER))
say("tool", [{"name": call.tool_name, "arguments": call.tool_kwargs} for call in called])
say("structured", model(CHAT, 300, 0.7).as_structured_llm(City).chat([ChatMessage(role="user", content=DESCRIBE)]).raw.model_dump())
