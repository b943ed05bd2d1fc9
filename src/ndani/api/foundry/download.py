"""What a download answers while it runs: a line for each step, with a percentage where one is known, and a last object."""

from __future__ import annotations

from ndani.api.edge.faults import ErrorFormat
from ndani.api.edge.json_response import encode
from ndani.api.foundry.bodies import DownloadResult
from ndani.api.foundry.responses import ERRORS as FOUNDRY_ERRORS
from ndani.errors import NdaniError
from ndani.types import SUCCESS, WRITING_MANIFEST, Progress


def failure(error: NdaniError) -> bytes:
    """The last line of a download that failed. No client reads a status here, but all read this."""
    return encode(DownloadResult(False, str(error), str(error))) + b"\n"


ERRORS = ErrorFormat(FOUNDRY_ERRORS.body, failure, FOUNDRY_ERRORS.no_route, FOUNDRY_ERRORS.body_type)


class PercentLines:
    """Writes the steps of one pull. The percentage is of all bytes known so far, and never falls."""

    def __init__(self) -> None:
        self._files: dict[str, tuple[int, int]] = {}
        self._percent = 0.0

    def format(self, step: Progress) -> bytes:
        """The line of a step; of the last one the object that ends the download.

        It goes alone: the SDK for JavaScript takes for it what a piece of the body begins with.
        """
        if step == SUCCESS:
            return encode(DownloadResult(True)) + b"\n"
        if step == WRITING_MANIFEST:
            return b"100.0%\n"
        if not step.total or step.digest is None:
            return step.status.encode() + b"\n"
        self._files[step.digest] = min(step.completed or 0, step.total), step.total
        completed, total = (sum(numbers) for numbers in zip(*self._files.values(), strict=True))
        self._percent = max(self._percent, 100 * completed / total)
        return b"%.1f%%\n" % self._percent
