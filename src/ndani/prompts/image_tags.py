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
    """The images of one conversation, and their tags.

    `typed`: the texts say themselves where images belong, by their numbers: `[img-0]`. `image_tokens` is how many tokens each
    image has, as far as is known.
    """

    def __init__(self, messages: tuple[Message, ...], *, typed: bool = False) -> None:
        self.images = tuple(image for message in messages for image in message.images)
        self.image_tokens = IMAGE_TOKENS
        self._typed = typed
        self._key = secrets.token_hex(8)
        self._tag = re.compile(rf"\[img-{self._key}-(\d+)\]")
        self._first: dict[int, int] = {}  # the number of a message's first image, by the message's identity
        count = 0
        for message in messages:
            self._first[id(message)] = count
            count += len(message.images)

    def put(self, messages: tuple[Message, ...]) -> tuple[Message, ...]:
        """Some messages of the conversation with tags in their texts."""
        return tuple(replace(m, content=self._tagged(m, self._first[id(m)])) if m.images else m for m in messages)

    def plain(self, prompt: str) -> str:
        """A prompt without its tags."""
        return self._tag.sub("", prompt)

    def shown(self, prompt: str) -> str:
        """A prompt with tags as Ollama shows them: `[img-0]`."""
        return self._tag.sub(r"[img-\1]", prompt)

    def count(self, prompt: str) -> int:
        """How many images are in a prompt."""
        return len(self._tag.findall(prompt))

    def tokens(self, prompt: str) -> int:
        """How many tokens the images in a prompt have, as far as is known."""
        return self.image_tokens * self.count(prompt)

    def learn(self, prompt: str, text_tokens: int, all_tokens: int) -> None:
        """Take from the engine's count of a whole prompt how many tokens an image has, on average, rounded up."""
        self.image_tokens = max(1, -((text_tokens - all_tokens) // max(self.count(prompt), 1)))

    def require_all(self, prompt: str) -> None:
        """Raise BadRequest unless each image is in this prompt, once: a template may leave out or repeat any text."""
        found = self._tag.findall(prompt)
        if len(found) > len(set(found)):
            raise BadRequest("the template puts an image into the prompt more than once; use one that repeats no message")
        if len(found) < len(self.images):
            raise BadRequest("the template leaves out a message that has an image; use another one, or leave the image out")

    def placed(self, prompt: str, marker: str) -> tuple[str, list[bytes]]:
        """The prompt with the engine's marker at the place of each image, and the images in this order."""
        return self._tag.sub(lambda _: marker, prompt), [self.images[int(number)] for number in self._tag.findall(prompt)]

    def _tagged(self, message: Message, first: int) -> str:
        content, before = message.content, ""
        if self._typed:
            content = _TYPED.sub(lambda found: self._make(int(found[1])) if int(found[1]) < len(self.images) else found[0], content)
        for number in range(first, first + len(message.images)):
            tag = self._make(number)
            if self._typed and tag in content:
                continue
            if not self._typed and _PLACE in content:
                content = content.replace(_PLACE, tag, 1)
            else:
                before += tag
        return before + content

    def _make(self, number: int) -> str:
        return f"[img-{self._key}-{number}]"


def image_tags(messages: tuple[Message, ...], *, typed: bool = False) -> ImageTags | None:
    """The tags of a conversation, or None if it has no images."""
    return ImageTags(messages, typed=typed) if any(message.images for message in messages) else None
