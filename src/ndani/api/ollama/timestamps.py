"""Times as Ollama writes them."""

from __future__ import annotations

import time


class Timestamps:
    """`created_at` stamps: RFC 3339 with nanoseconds, UTC. The second's text is made once a second."""

    def __init__(self) -> None:
        self._second = -1
        self._text = b""

    def now(self) -> str:
        """The stamp of this moment."""
        return self.stamp().decode()

    def stamp(self) -> bytes:
        """The same as it stands in the line of every token."""
        second, rest = divmod(time.time_ns(), 1_000_000_000)
        if second != self._second:
            self._second, self._text = second, time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second)).encode()
        return b"%b.%09dZ" % (self._text, rest)


def local_stamp(seconds: float) -> str:
    """A time with the machine's own offset, as listings show `modified_at`."""
    whole = int(seconds)
    rest = int((seconds - whole) * 1e9)
    local = time.localtime(whole)
    offset = time.strftime("%z", local)
    zone = "Z" if offset == "+0000" else f"{offset[:3]}:{offset[3:]}"
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', local)}.{rest:09d}{zone}"
