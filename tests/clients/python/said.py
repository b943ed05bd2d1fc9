"""What every script here shares: how an answer is printed, and what is asked. A script's only argument is the server's URL."""

from __future__ import annotations

import json
import sys
from typing import Annotated, Literal

from pydantic import BaseModel, Field

URL = sys.argv[1]
#: The models: real weights, the same with a template that shows it how to call tools, and real weights that embed.
CHAT, CALLER, EMBEDDER = "smollm2", "caller", "all-minilm"
HELLO = "What is the capital of France?"
WEATHER = "What is the weather in Nairobi?"
DESCRIBE = "Describe Paris as JSON."


class City(BaseModel):
    """A city."""

    name: str = Field(max_length=16)
    kind: Literal["capital", "port", "village"]
    districts: list[Annotated[str, Field(max_length=16)]] = Field(min_length=1, max_length=2)


class Kind(BaseModel):
    """What a city is; nothing in it has a length, for a package may keep lengths to itself."""

    kind: Literal["capital", "port", "village"]
    old: bool


def get_weather(city: str) -> str:
    """The weather in a city now.

    Args:
        city: the city's name
    """
    return f"It is 21 degrees and sunny in {city}."


def say(verb: str, value: object) -> None:
    """Print one answer: `verb<TAB>JSON`."""
    print(f"{verb}\t{json.dumps(value)}", flush=True)
