"""What `pydantic-ai` does: agents that answer, stream, use a tool, and give typed answers in each of its ways."""

from pydantic_ai import Agent, NativeOutput, ToolOutput
from pydantic_ai.messages import ToolCallPart
from pydantic_ai.models.ollama import OllamaModel
from pydantic_ai.providers.ollama import OllamaProvider
from said import CALLER, CHAT, DESCRIBE, HELLO, URL, WEATHER, City, get_weather, say

provider = OllamaProvider(base_url=f"{URL}/v1")
chat, caller = OllamaModel(CHAT, provider=provider), OllamaModel(CALLER, provider=provider)
few = {"temperature": 0, "max_tokens": 8}
agent = Agent(chat)
say("chat", agent.run_sync(HELLO, model_settings=few).output)
with_stream = agent.run_stream_sync(HELLO, model_settings=few)
say("stream", list(with_stream.stream_text(delta=True, debounce_by=None)))

worker = Agent(caller, tools=[get_weather])
run = worker.run_sync(WEATHER, model_settings={"temperature": 0, "max_tokens": 60})
parts = [part for message in run.all_messages() for part in message.parts]
say("tool", [{"name": part.tool_name, "arguments": part.args_as_dict()} for part in parts if isinstance(part, ToolCallPart)])
say("tool-result", run.output)
for verb, kind in {"structured": NativeOutput(City), "structured-tool": ToolOutput(City)}.items():
    typed = Agent(chat, output_type=kind)
    say(verb, typed.run_sync(DESCRIBE, model_settings={"max_tokens": 300}).output.model_dump())
