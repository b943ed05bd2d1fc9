"""The upload of one blob to a registry: in parts as large as the registry accepts, or in one request where it takes none.

Registries differ. A part may be too large (413, from some 416) or too small (`OCI-Chunk-Min-Length` gives the minimum). A
registry may store less of a part than was sent, which the response's `Range` says. Some take no parts at all. What we learn
from one blob is used for the others of the push (`UploadTuning`). Where a registry reports something impossible, the digest
decides at the end; a blob whose parts went wrong is sent once more in one request.

After each part the state is saved in the store, with the URL for the next one. A saved URL may have expired: where it does
not respond, the upload of the blob starts again.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import re
from collections.abc import AsyncIterator, Callable
from threading import Event
from urllib.parse import urlencode

from ndani.errors import Cancelled, SourceFailed, StoreFailed
from ndani.sources.http import HttpResponse, Interrupted
from ndani.sources.registry import Registry, error_clause
from ndani.sources.retry import MAX_RETRY_AFTER_S
from ndani.sources.upload_state import UploadState, UploadTuning, md5_of, read, remove, write
from ndani.sources.urls import count_of, origin
from ndani.store import Store
from ndani.store.layout import digest_of
from ndani.store.stored_model import Layer
from ndani.types import Progress, Report

#: Bytes of a chunk. A slow connection must take this much within the stall timeout.
_CHUNK = 1 << 16
#: Timeout in seconds for a registry that assembles the parts of a blob.
COMMIT = 900.0
TAKEN = (200, 201, 202, 204)
#: Statuses that refuse a part for its form, and not for the sender or the upload.
_PART_REFUSAL_STATUSES = {400, 404, 405, 409, 411, 413, 415, 416, 501}
#: How often a registry may refuse parts of a blob while the upload makes no progress.
_MAX_REFUSALS = 16
#: How many interruptions lead to a smaller part: many servers close the connection when a body is too large.
_MAX_INTERRUPTIONS = 3
#: How often the URL of a saved upload is tried.
_RESUME_TRIES = 2


class _Refused(Exception):
    """The registry refused a part: the status, and its error message as a clause."""

    def __init__(self, status: int, clause: str) -> None:
        self.status, self.clause = status, clause


def upload_key(registry: Registry, layer: Layer) -> str:
    """The key of a blob's upload to this registry, in the form of a digest."""
    return digest_of(registry.url("blobs", layer.digest).encode())


class Upload:
    """The upload of one blob to a registry."""

    def __init__(self, store: Store, registry: Registry, layer: Layer, report: Report, stopping: Event, tuning: UploadTuning) -> None:
        self.registry, self._layer, self._report, self._stopping, self._tuning = registry, layer, report, stopping, tuning
        self._path = store.layout.blob(layer.digest)
        self._state_path = store.layout.uploads / upload_key(registry, layer)[7:]
        self._state = read(self._state_path)
        #: The most bytes that the registry has ever had: an upload that only starts again makes no progress.
        self.furthest = 0
        self._refusals = self._interruptions = 0
        #: Whether the registry reported that it stored nothing of a part, which may be wrong.
        self._range_doubtful = False
        self._is_complete = False
        self._in_flight = 0

    async def run(self) -> None:
        """Upload what is missing and commit it. Raises Interrupted when the caller should try again."""
        self._report_progress()
        if await self._is_there():
            self._complete()
            return
        try:
            with self._path.open("rb") as file:
                if os.fstat(file.fileno()).st_size != self._layer.size:
                    raise StoreFailed(f"the file {self._path} is damaged; pull or create the model again")
                await self._send_blob(file.fileno())
        except FileNotFoundError:
            raise StoreFailed(f"the model store lacks the file {self._path}; pull or create the model again") from None
        except OSError as error:
            raise StoreFailed(f"the file {self._path} cannot be read ({error.strerror}); change its owner or mode") from None

    async def _is_there(self) -> bool:
        """Whether the registry has the blob. Raises SourceFailed when it refuses the request."""
        url = self.registry.url("blobs", self._layer.digest)
        async with self.registry.first_request("HEAD", url) as response:
            if response.status == 200:
                # A body of another size is something else, such as a login page.
                return (count_of(response.headers.get("Content-Length", "")) or self._layer.size) == self._layer.size
            if response.status in (404, 405, 501):  # not there, or HEAD is not supported
                return False
            if origin(response.url) != origin(url) and response.status < 500:
                return True  # it redirected to its storage, which may refuse HEAD
            raise await self._error(response)

    async def _send_blob(self, file: int) -> None:
        """Send what is missing of the blob, in parts or in one request."""
        resumed = self._state.location and await self._resume(file)
        if not resumed and not await self._start(file):
            return
        while self._state.sent < self._layer.size and not self._tuning.in_one_request:
            try:
                await self._send_part(file)
            except _Refused as refusal:
                if not await self._adapt(file, refusal):
                    return
            self._check_stopping()
        if self._tuning.in_one_request:
            self._check_stopping()
        await self._commit(file)

    def _check_stopping(self) -> None:
        if self._stopping.is_set():
            raise Cancelled("the push was stopped; push again: it goes on where it stopped")

    # Starting and resuming.

    async def _resume(self, file: int) -> bool:
        """Take the state of the upload from the registry; False when the registry does not know the upload any more."""
        for failures in range(_RESUME_TRIES):
            try:
                return await self._resume_once(file)
            except SourceFailed:  # the URL is invalid by now, or we have no access to it
                return False
            except Interrupted as error:
                delay = self.registry.retries.first_delay * 2**failures
                await asyncio.sleep(delay if error.retry_after is None else min(error.retry_after, MAX_RETRY_AFTER_S))
        return False

    async def _resume_once(self, file: int) -> bool:
        url = self.registry.follow(self.registry.url(), self._state.location)
        async with self.registry.request("GET", url) as response:
            received = _received_size(response)
            if response.status not in (200, 204) or received is None:
                return False
            location = self._next_location(response, url)
        if received == self._state.sent + 1:
            received = self._state.sent  # some registries count one too many
        if received == 1 < self._layer.size:
            received = 0  # `0-0` also stands for nothing received
        if received > self._layer.size:
            return False
        parts = self._state.parts
        if received != self._state.sent:
            # A part arrived and its response did not, or the other way round: the registry's count is the right one.
            parts = [await asyncio.to_thread(md5_of, file, 0, received)] if received else []
        self._advance(location, received, parts)
        return True

    async def _start(self, file: int) -> bool:
        """Start a new upload. False when that already sent the whole blob."""
        url = self.registry.url("blobs", "uploads", "")
        async with self.registry.request("POST", url, {"Content-Length": "0"}) as response:
            if response.status in TAKEN:
                least = count_of(response.headers.get("OCI-Chunk-Min-Length", "").strip()) or 0
                self._state = UploadState(self._next_location(response, url), min_part=least)
                write(self._state_path, self._state)
                return True
            error = await self._error(response)
            if response.status not in (400, 405, 411, 415, 501):
                raise error
        # Some registries take a blob only with the first request.
        if await self._send_with_post(file, url):
            return False
        raise error

    async def _send_with_post(self, file: int, url: str) -> bool:
        """Send the whole blob with the POST that otherwise starts an upload; whether the registry took it."""
        target = _with_query(url, digest=self._layer.digest)
        headers = {"Content-Length": str(self._layer.size), "Content-Type": "application/octet-stream"}
        try:
            async with self.registry.request(
                "POST", target, headers, lambda: self._chunks(file, 0, self._layer.size), response_timeout=COMMIT
            ) as response:
                taken = response.status == 201
        finally:
            self._in_flight = 0
        if taken:
            self._complete()
        return taken

    def _next_location(self, response: HttpResponse, url: str) -> str:
        """The URL for the next request of this upload."""
        return self.registry.follow(url, response.headers.get("Docker-Upload-Location") or response.headers.get("Location") or url)

    def _advance(self, location: str, sent: int, parts: list[str]) -> None:
        """Set the state of the upload."""
        if sent > self.furthest:
            self.furthest, self._refusals = sent, 0
        self._state = UploadState(location, sent, parts, self._state.min_part)
        self._report_progress()

    def _report_progress(self) -> None:
        """Report the progress."""
        completed = self._layer.size if self._is_complete else min(self._state.sent + self._in_flight, self._layer.size)
        short_digest = self._layer.digest.removeprefix("sha256:")[:12]
        self._report(Progress(f"pushing {short_digest}", self._layer.digest, self._layer.size, completed))

    # Parts.

    async def _send_part(self, file: int) -> None:
        """Send one part. Raises _Refused when the registry refuses it."""
        start = self._state.sent
        end = min(start + self._tuning.part_size(self._layer.size, self._state.min_part), self._layer.size)
        hashers = [hashlib.md5(usedforsecurity=False)]

        def body() -> AsyncIterator[bytes]:
            hashers[0] = hashlib.md5(usedforsecurity=False)
            return self._chunks(file, start, end, hashers)

        try:
            location, received = await self._patch(start, end, body)
        except Interrupted as error:
            self._interruptions += 1
            if self._interruptions >= _MAX_INTERRUPTIONS and error.retry_after is None and end - start > 1:
                self._tuning.part_interrupted(end - start)
            raise
        finally:
            self._in_flight = 0
        self._interruptions = 0
        self._tuning.part_accepted()
        part = hashers[0].hexdigest() if received == end else await asyncio.to_thread(md5_of, file, start, received)
        self._advance(location, received, [*self._state.parts, part])
        write(self._state_path, self._state)

    async def _patch(self, start: int, end: int, body: Callable[[], AsyncIterator[bytes]]) -> tuple[str, int]:
        """Send the bytes from `start` up to `end`. Returns the URL for the next part, and how many bytes the registry has."""
        headers = {"Content-Length": str(end - start), "Content-Type": "application/octet-stream"}
        range_headers = {"Content-Range": f"{start}-{end - 1}", "X-Redirect-Uploads": "1"}
        async with self.registry.request("PATCH", self._state.location, headers | range_headers, body) as response:
            location = self._next_location(response, response.url)
            if response.status != 307:
                if response.status not in TAKEN:
                    raise await self._refusal(response)
                return location, self._bytes_kept(response, start, end)
            target = self.registry.follow(response.url, response.headers.get("Location", ""))
        async with self.registry.request("PUT", target, headers, body) as response:
            if response.status in (401, 403, 404, 410):
                raise Interrupted(f"the address that {self.registry.host} gave out for a part answered {response.status}")
            if response.status not in TAKEN:
                raise await self._refusal(response)
        return location, end

    def _bytes_kept(self, response: HttpResponse, start: int, end: int) -> int:
        """How many bytes the registry has after a part: its `Range`, as far as that is plausible.

        Some registries' `Range` lags behind, or counts this part alone. Going back would lose parts that are stored; a
        wrong decision not to go back shows at the next part, or by the digest. So only a value within this part is used.
        """
        received = _received_size(response)
        if received is None or received >= end:
            return end
        if received > max(start, 1):
            return received
        self._range_doubtful = True
        return end

    async def _adapt(self, file: int, refusal: _Refused) -> bool:
        """Adapt to a refusal of a part. False when the blob is complete. Raises SourceFailed when nothing is left to try."""
        self._refusals += 1
        if refusal.status not in _PART_REFUSAL_STATUSES or self._refusals > _MAX_REFUSALS:
            raise self._error_of(refusal.status, refusal.clause)
        size = self._tuning.part_size(self._layer.size, self._state.min_part)
        sent_before = self._state.sent
        resumed = await self._resume(file)
        if resumed and self._state.sent != sent_before:
            return True  # the registry has another number of bytes than we assumed
        if refusal.status in (413, 416):
            if size <= self._state.min_part:
                self._tuning.in_one_request = True
            self._tuning.part_too_large(min(size, self._layer.size - sent_before))
        elif resumed or not sent_before or refusal.status != 404:
            self._tuning.in_one_request = True
        if resumed and not self._tuning.in_one_request:
            return True
        if sent_before and not resumed:
            raise self._restart_error(refusal.clause)
        return await self._start(file)

    async def _chunks(self, file: int, start: int, end: int, hashers: list[hashlib._Hash] | None = None) -> AsyncIterator[bytes]:
        offset = start
        while offset < end and (chunk := os.pread(file, min(_CHUNK, end - offset), offset)):
            for hasher in hashers or ():
                hasher.update(chunk)
            offset += len(chunk)
            self._in_flight = offset - start
            self._report_progress()
            yield chunk

    # Commit and errors.

    async def _commit(self, file: int) -> None:
        """Have the registry assemble the parts; where it takes none, send the whole blob with this request."""
        start, query = self._state.sent, {"digest": self._layer.digest}
        if not self._tuning.in_one_request:
            part_sums = b"".join(bytes.fromhex(part) for part in self._state.parts)
            query["etag"] = f"{hashlib.md5(part_sums, usedforsecurity=False).hexdigest()}-{len(self._state.parts)}"
        headers = {"Content-Length": str(self._layer.size - start), "Content-Type": "application/octet-stream"}
        body = (lambda: self._chunks(file, start, self._layer.size)) if start < self._layer.size else None
        try:
            async with self.registry.request(
                "PUT", _with_query(self._state.location, **query), headers, body, response_timeout=COMMIT
            ) as response:
                if response.status not in TAKEN:
                    raise await self._commit_error(response)
        except Interrupted as error:
            if error.retry_after is not None or not await self._is_there_later():  # a Retry-After is obeyed
                raise
        finally:
            self._in_flight = 0
        self._complete()

    async def _commit_error(self, response: HttpResponse) -> SourceFailed | Interrupted:
        clause = error_clause(await response.read(1 << 16))
        status, in_parts = response.status, not self._tuning.in_one_request
        if status in (404, 416) or (status == 400 and self._range_doubtful and in_parts):
            self._tuning.in_one_request = self._tuning.in_one_request or self._range_doubtful
            return self._restart_error(clause)
        if status == 400:  # the registry or the store has other bytes: the next push must not resume this upload
            remove(self._state_path)
            host = self.registry.host
            return SourceFailed(
                f"{host} did not take the model: it answered {status}{clause}; push again, and see what `ndani verify` says"
            )
        return self._error_of(status, clause)

    def _restart_error(self, clause: str) -> Interrupted:
        self._state = UploadState()
        remove(self._state_path)
        return Interrupted(f"{self.registry.host} has given up the upload{clause}")

    async def _is_there_later(self) -> bool:
        """Whether the blob is there after all: a registry may finish the assembly after the connection has ended."""
        policy = self.registry.retries
        for tries in range(policy.tries):
            if self._stopping.is_set():
                return False
            await asyncio.sleep(policy.first_delay * 2**tries)
            with contextlib.suppress(Interrupted):
                async with self.registry.request("HEAD", self.registry.url("blobs", self._layer.digest)) as response:
                    if response.status == 200:
                        return True
        return False

    async def _refusal(self, response: HttpResponse) -> _Refused:
        return _Refused(response.status, error_clause(await response.read(1 << 16)))

    async def _error(self, response: HttpResponse) -> SourceFailed:
        return self._error_of(response.status, error_clause(await response.read(1 << 16)))

    def _error_of(self, status: int, clause: str) -> SourceFailed:
        advice = "raise its limit on what is uploaded" if status == 413 else "check its name there"
        return SourceFailed(f"{self.registry.host} did not take the model: it answered {status}{clause}; {advice}")

    def _complete(self) -> None:
        self._is_complete = True
        self._report_progress()
        remove(self._state_path)


def _with_query(url: str, **query: str) -> str:
    return f"{url}{'&' if '?' in url else '?'}{urlencode(query)}"


def _received_size(response: HttpResponse) -> int | None:
    """How many bytes of a blob the registry has, from `Range` (`0-99`, `bytes=0-99`; `0--1` for none), or None."""
    match = re.fullmatch(r"(?:bytes[= ])?\s*0-(-1|[0-9]{1,18})", response.headers.get("Range", "").strip())
    return int(match[1]) + 1 if match else None
