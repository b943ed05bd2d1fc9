"""The same engine with its jail and without, in pairs. The bare one exists only here: the product cannot start one."""

from __future__ import annotations

import asyncio
import os
import statistics
import sys
import tempfile
from pathlib import Path

from bench.load import Road, burst
from ndani import names, settings
from ndani.engines import Launch
from ndani.jail.process import child_environment
from ndani.runtime import hardware
from ndani.runtime.folder import runtime_folder
from ndani.runtime.runner import Runner
from ndani.store import Store

_BARE = """
import sys
from ndani.engines import Launch, host
socket, weights, threads = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
launch = Launch("llama", socket, weights, slots=1, num_thread=threads)
engine = host("llama")
engine.prepare(launch)
engine.open(launch)
print("ready", flush=True)
sys.stdin.read()
"""


async def compare(pairs: int, tokens: int) -> float:
    """Tokens per second with the jail over without: the median ratio of so many pairs."""
    threads = hardware.detect().cores
    entry = Store(settings.load().models).find(names.parse("smollm2:135m"))
    weights = os.open(entry.weights_path, os.O_RDONLY)
    with runtime_folder() as folder, tempfile.TemporaryDirectory() as place:
        jailed = await Runner.spawn(Launch("llama", "", -1, slots=1, num_thread=threads), weights, folder)
        await jailed.ready()
        socket = str(Path(place) / "bare.sock")
        bare = await asyncio.create_subprocess_exec(
            sys.executable, "-c", _BARE, socket, str(weights), str(threads), pass_fds=[weights],
            env=dict(os.environ) | child_environment(os.environ),
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL,
        )  # fmt: skip
        assert bare.stdout is not None
        await bare.stdout.readline()
        inside, outside = Road(socket=jailed.socket), Road(socket=socket)
        try:
            for road in (inside, outside):
                await burst(road, 1, 8)
            ratios = []
            for pair in range(pairs):
                speed = {road: await burst(road, 1, tokens) for road in ((inside, outside) if pair % 2 else (outside, inside))}
                ratios.append(speed[inside] / speed[outside])
            return statistics.median(ratios)
        finally:
            bare.kill()
            await bare.wait()
            await jailed.stop()
            os.close(weights)
