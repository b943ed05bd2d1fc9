"""Compares an engine with its jail and without, in pairs. Only this benchmark can start an unjailed one: the product cannot."""

from __future__ import annotations

import asyncio
import os
import statistics
import sys
import tempfile
from pathlib import Path

from bench.load import Endpoint, burst
from ndani import names, settings
from ndani.engines import LaunchOptions
from ndani.jail.process import child_environment
from ndani.runtime import hardware
from ndani.runtime.folder import runtime_folder
from ndani.runtime.runner import Runner
from ndani.store import Store

_BARE = """
import sys
from ndani.engines import Launch, LaunchOptions, host
socket, weights, threads = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
launch = Launch(LaunchOptions("llama", slots=1, num_thread=threads), socket, weights)
engine = host("llama")
engine.prepare(launch)
engine.open(launch)
print("ready", flush=True)
sys.stdin.read()
"""


async def compare(pairs: int, tokens: int) -> float:
    """The median over pairs of tokens per second with the jail, divided by those without."""
    threads = hardware.detect().cores
    entry = Store(settings.load().models).find(names.parse("smollm2:135m"))
    weights = os.open(entry.weights_path, os.O_RDONLY)
    with runtime_folder() as folder, tempfile.TemporaryDirectory() as socket_folder:
        jailed = await Runner.spawn(LaunchOptions("llama", slots=1, num_thread=threads), weights, folder)
        await jailed.ready()
        socket = str(Path(socket_folder) / "bare.sock")
        bare = await asyncio.create_subprocess_exec(
            sys.executable, "-c", _BARE, socket, str(weights), str(threads), pass_fds=[weights],
            env=dict(os.environ) | child_environment(os.environ),
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL,
        )  # fmt: skip
        assert bare.stdout is not None
        await bare.stdout.readline()
        inside, outside = Endpoint(socket_path=jailed.socket), Endpoint(socket_path=socket)
        try:
            for endpoint in (inside, outside):
                await burst(endpoint, 1, 8)
            ratios = []
            for pair in range(pairs):
                speed = {endpoint: await burst(endpoint, 1, tokens) for endpoint in ((inside, outside) if pair % 2 else (outside, inside))}
                ratios.append(speed[inside] / speed[outside])
            return statistics.median(ratios)
        finally:
            bare.kill()
            await bare.wait()
            await jailed.stop()
            os.close(weights)
