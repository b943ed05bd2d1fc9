"""Where the images of a conversation stand in its prompt.

A template renders texts alone, so each image is a tag in the text of its message while that is rendered: first, or where the
text says `[img]`, as in Ollama. A tag holds a random number, so that no text that somebody has typed is taken for one. In the
finished prompt the tags are found again, in whatever order the template put them, and become what the engine wants.
"""

from __future__ import annotations

import re
import secrets
from dataclasses import replace

from ndani.errors import BadRequest
from ndani.types import Message

#: Tokens that an image is taken to have before an engine has said how many it really has: Ollama's number.
IMAGE_TOKENS = 768

_PLACE = "[img]"
#: How a prompt that is sent as it is says where its images belong.
_TYPED = re.compile(r"\[img-(\d{1,4})\]")


class ImageTags:
    """The images of a conversation and their tags. `messages` is the conversation with tags in its texts.

    `typed`: the texts say themselves where the images belong, by their numbers: `[img-0]`. `image_tokens` is how many tokens each
    image has, as far as is known.
    """

    def __init__(self, messages: tuple[Message, ...], *, typed: bool = False) -> None:
        self.images = tuple(image for message in messages for image in message.images)
        self.image_tokens = IMAGE_TOKENS
        self._key = secrets.token_hex(8) if self.images else ""
        self._tag = re.compile(rf"\[img-{self._key}-(\d+)\]")
        self.messages = self._tagged(messages, typed) if self.images else messages

    def plain(self, prompt: str) -> str:
        """A prompt without its tags."""
        return self._tag.sub("", prompt) if self.images else prompt

    def shown(self, prompt: str) -> str:
        """A prompt with tags as Ollama shows them: `[img-0]`."""
        return self._tag.sub(r"[img-\1]", prompt) if self.images else prompt

    def tokens(self, prompt: str) -> int:
        """How many tokens the images in a prompt have, as far as is known."""
        return self.image_tokens * len(self._tag.findall(prompt)) if self.images else 0

    def learn(self, prompt: str, text_tokens: int, all_tokens: int) -> None:
        """Take from the engine's count of a whole prompt how many tokens an image has, on average."""
        count = len(self._tag.findall(prompt))
        self.image_tokens = max(1, -((text_tokens - all_tokens) // count)) if count else self.image_tokens

    def require_all(self, prompt: str) -> None:
        """Raise BadRequest unless each image is in this prompt, once: a template may leave out or repeat any text."""
        found = self._tag.findall(prompt) if self.images else []
        if len(found) > len(set(found)):
            raise BadRequest("the template puts an image into the prompt more than once; use one that repeats no message")
        if len(found) < len(self.images):
            raise BadRequest("the template leaves out a message that has an image; use another one, or leave the image out")

    def placed(self, prompt: str, marker: str) -> tuple[str, list[bytes]]:
        """The prompt with the engine's marker at the place of each image, and the images in this order."""
        if not self.images:
            return prompt, []
        return self._tag.sub(lambda _: marker, prompt), [self.images[int(number)] for number in self._tag.findall(prompt)]

    def _tagged(self, messages: tuple[Message, ...], typed: bool) -> tuple[Message, ...]:
        tagged, number = [], 0
        for message in messages:
            content, before = message.content, ""
            if typed:
                content = _TYPED.sub(lambda match: self._make(int(match[1]), match[0]), content)
            for own in range(number, number + len(message.images)):
                if typed and self._make(own) in content:
                    continue
                if not typed and _PLACE in content:
                    content = content.replace(_PLACE, self._make(own), 1)
                else:
                    before += self._make(own)
            number += len(message.images)
            tagged.append(replace(message, content=before + content))
        return tuple(tagged)

    def _make(self, number: int, otherwise: str = "") -> str:
        return f"[img-{self._key}-{number}]" if number < len(self.images) else otherwise
