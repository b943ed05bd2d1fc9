"""What `llm` does with its plugin `llm-ollama`: its command line, then its tools, schemas and embeddings."""

import json
import os
import subprocess
import sys
import tempfile

from said import CALLER, CHAT, DESCRIBE, EMBEDDER, HELLO, URL, WEATHER, City, get_weather, say

os.environ["OLLAMA_HOST"] = URL
os.environ["LLM_USER_PATH"] = tempfile.mkdtemp(prefix="llm-")

import llm


def command(*arguments: str) -> str:
    """What the command prints."""
    done = subprocess.run([sys.executable, "-m", "llm", *arguments], capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if done.returncode:
        raise SystemExit(f"llm {arguments[0]}: {done.stderr}")
    return done.stdout


few = ("-o", "temperature", "0", "-o", "num_predict", "8")
say("models", [line for line in command("models").splitlines() if line.startswith("Ollama")])
say("chat", command("prompt", "-m", f"ollama/{CHAT}", HELLO, *few, "--no-stream").removesuffix("\n"))
say("stream", list(llm.get_model(f"ollama/{CHAT}").prompt(HELLO, temperature=0, num_predict=8)))
response = llm.get_model(f"ollama/{CALLER}").prompt(WEATHER, tools=[get_weather], temperature=0, num_predict=60, stream=False)
say("tool", [{"name": call.name, "arguments": call.arguments} for call in response.tool_calls()])
made = llm.get_model(f"ollama/{CHAT}").prompt(DESCRIBE, schema=City, num_predict=300).text()
say("structured", City.model_validate_json(made).model_dump())
say("embed", [json.loads(command("embed", "-m", f"ollama/{EMBEDDER}", "-c", text)) for text in ("one", "two")])
