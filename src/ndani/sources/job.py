"""What crosses the border between the front and the fetcher. It imports no client: the front loads this and no more."""

from __future__ import annotations

import msgspec

#: Seconds that a push gets to finish the part that is travelling, when nobody waits for it any more.
PUSH_GRACE = 10.0


class Job(msgspec.Struct, frozen=True):
    """What to bring into which store; or, with `push`, what to send from it to its registry.

    `registry` is whom names without a host belong to, `folders` are looked into before anybody is asked.
    `require_jail` is about weights that have to be made of what comes. With `repair`, only these blobs are brought, in
    place of those that are here under their digests; no name changes.
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
        """The job in a word."""
        return "push" if self.push else "pull"


class JobFailed(msgspec.Struct, frozen=True):
    """The last line of a fetcher that failed."""

    code: str
    error: str
