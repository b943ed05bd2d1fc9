"""Timestamps as Ollama writes them: UTC in answers, local time in listings."""

from __future__ import annotations

import time


class Timestamps:
    """`created_at` timestamps: RFC 3339 with nanoseconds, UTC. The text up to the second is formatted only once per second."""

    def __init__(self) -> None:
        self._second = -1
        self._text = b""

    def now(self) -> str:
        """The current time."""
        return self.stamp().decode()

    def stamp(self) -> bytes:
        """The current time as bytes, for the line of every token."""
        second, nanoseconds = divmod(time.time_ns(), 1_000_000_000)
        if second != self._second:
            self._second, self._text = second, time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second)).encode()
        return b"%b.%09dZ" % (self._text, nanoseconds)


def local_stamp(seconds: float) -> str:
    """A time with the machine's UTC offset, as listings show `modified_at`."""
    whole = int(seconds)
    nanoseconds = int((seconds - whole) * 1e9)
    local = time.localtime(whole)
    offset = time.strftime("%z", local)
    zone = "Z" if offset == "+0000" else f"{offset[:3]}:{offset[3:]}"
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', local)}.{nanoseconds:09d}{zone}"
