"""The weather task: two tools, and a model of real weights that calls them because its template shows it how.

SmolLM2-135M does not call tools by itself. Three worked turns in the template make it do so at temperature 0, whatever the
dialect, where no `tool_choice` forces it; after a tool's answer the template leaves them out, and it answers in words.
"""

from __future__ import annotations

from typing import Any

from server import Server

#: A model that calls tools, and one that the same weights make without tools in its template.
CALLER, PLAIN = "caller", "plain"

QUESTION = "What is the weather in Nairobi?"
CITY = {"type": "object", "properties": {"city": {"type": "string", "maxLength": 20}}, "required": ["city"]}
#: The tools as Ollama and OpenAI's chat have them.
TOOLS: list[dict[str, Any]] = [
    {"type": "function", "function": {"name": "get_weather", "description": "The weather in a city now", "parameters": CITY}},
    {
        "type": "function",
        "function": {
            "name": "get_forecast",
            "description": "The weather in a city on the coming days",
            "parameters": {
                "type": "object",
                "properties": {**CITY["properties"], "days": {"type": "integer", "minimum": 1, "maximum": 7}},
                "required": ["city", "days"],
            },
        },
    },
]

SHOWN = "".join(
    f"<|im_start|>user\nWhat is the weather in {city}?<|im_end|>\n<|im_start|>assistant\n<tool_call>\n"
    f'{{"name": "get_weather", "arguments": {{"city": "{city}"}}}}\n</tool_call><|im_end|>\n'
    for city in ("Paris", "Lima", "Tokyo")
)
TURNS = (
    '{{- range .Messages }}{{ if ne .Role "system" }}<|im_start|>{{ if eq .Role "tool" }}user\n<tool_response>\n{{ .Content }}\n'
    "</tool_response>{{ else }}{{ .Role }}\n{{ .Content }}{{ if .ToolCalls }}{{ range .ToolCalls }}<tool_call>\n"
    '{"name": "{{ .Function.Name }}", "arguments": {{ .Function.Arguments }}}\n</tool_call>{{ end }}{{ end }}{{ end }}<|im_end|>\n'
    "{{ end }}{{ end }}<|im_start|>assistant\n"
)
TEMPLATE = (
    '{{- $last := "" }}{{ range .Messages }}{{ $last = .Role }}{{ end }}'
    "{{- if or .System .Tools }}<|im_start|>system\n{{ .System }}{{ if .Tools }}\nTools: {{ .Tools }}{{ end }}<|im_end|>\n{{ end }}"
    '{{- if and .Tools (ne $last "tool") }}' + SHOWN + "{{ end }}" + TURNS
)
WITHOUT_TOOLS = "{{- range .Messages }}<|im_start|>{{ .Role }}\n{{ .Content }}<|im_end|>\n{{ end }}<|im_start|>assistant\n"


def make_models(server: Server) -> None:
    """Create both models from smollm2."""
    for name, template in ((CALLER, TEMPLATE), (PLAIN, WITHOUT_TOOLS)):
        body = {"model": name, "from": "smollm2", "template": template, "stream": False}
        assert server.post("/api/create", body).json() == {"status": "success"}
