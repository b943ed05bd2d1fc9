"""The messages between the front and the fetcher. It imports no HTTP client, because the front imports this module."""

from __future__ import annotations

import msgspec

#: Seconds that a push has to finish its current part when nobody waits for it any more.
PUSH_GRACE = 10.0


class Job(msgspec.Struct, frozen=True):
    """Which model to pull into which store (`models`); or, with `push`, which one to send to its registry.

    `registry` is the registry of names without a host. `folders` are searched before any request is sent. `require_jail`:
    conversions run in a jail or not at all. With `repair`, only these blobs are fetched, in place of those that are here;
    no name changes.
    """

    name: str
    models: str
    offline: bool = False
    catalogue: str | None = None
    insecure: bool = False
    push: bool = False
    registry: str = ""
    folders: tuple[str, ...] = ()
    streams: int = 4
    require_jail: bool = False
    repair: tuple[str, ...] = ()

    @property
    def verb(self) -> str:
        """The job as one word."""
        return "push" if self.push else "pull"


class JobFailed(msgspec.Struct, frozen=True):
    """The last line of a fetcher that failed."""

    code: str
    error: str
