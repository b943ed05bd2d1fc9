"""`ndani mirror` as a child process, for tests that pull from one."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import httpx

from server import PATIENCE, until


class Mirror:
    """`ndani mirror` for the store in `models`; its log is in `folder`."""

    def __init__(self, models: Path, folder: Path) -> None:
        self.log_path = folder / "mirror.log"
        environment = {k: v for k, v in os.environ.items() if not k.startswith(("NDANI_", "OLLAMA_"))}
        with self.log_path.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "ndani", "mirror", "--host", "127.0.0.1:0"],
                env={**environment, "NDANI_MODELS": str(models)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        try:
            self.host = f"127.0.0.1:{until(self._listening, 'the mirror listens')}"
        except BaseException:
            self.process.kill()
            raise
        self.http = httpx.Client(base_url=f"http://{self.host}", timeout=60, trust_env=False)

    def _listening(self) -> str:
        assert self.process.poll() is None, self.log
        match = re.search(r"mirror of .* on 127\.0\.0\.1:(\d+)", self.log)
        return match[1] if match else ""

    @property
    def log(self) -> str:
        return self.log_path.read_text(errors="replace")

    def close(self, number: signal.Signals = signal.SIGINT) -> int:
        """Send Ctrl-C or another signal; the exit code."""
        self.http.close()
        self.process.send_signal(number)
        return self.process.wait(PATIENCE)
