"""`make bench`: compares the front with a direct connection to the runner, in pairs, on this machine.

    python -m bench [--pairs N] [--tokens N]

Each pair sends the same request directly to a runner's socket and through the front to the same runner, in alternating
order. Results are medians and ratios; machines are noisy, so read the ratios.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

import psutil

from bench.dialects import dialect_costs
from bench.load import Endpoint, burst
from bench.unjailed import compare

LIMITS = {
    "through the front, 1 stream": (">=", 0.97),
    "through the front, 8 streams": (">=", 0.97),
    "front, us of processor per token, 8 streams": ("<=", 100.0),
    "time to first token, added ms": ("<=", 4.0),
    "time to first token of a chat, added ms": ("<=", 4.0),
    "jail, 1 stream": (">=", 0.97),
    "serve is ready, s": ("<=", 0.7),
    **{
        f"{name}, us per token over ollama": ("<=", 25.0)
        for name in ("openai", "responses", "anthropic", "ollama, thinking", "ollama, tools")
    },
}


class Server:
    """A real server for the benchmark, with its own port, a private folder for sockets, and eight slots."""

    def __init__(self, folder: Path, **environment: str) -> None:
        self.folder = folder
        self.port = 11599
        env = os.environ | {"NDANI_HOST": f"127.0.0.1:{self.port}", "TMPDIR": str(folder), "NDANI_NUM_PARALLEL": "8", "NDANI_NOPRUNE": "1"}
        env |= environment
        env.pop("XDG_RUNTIME_DIR", None)
        self.started = time.perf_counter()
        self.process = subprocess.Popen([sys.executable, "-m", "ndani", "serve"], env=env, stderr=subprocess.DEVNULL)

    def ready(self) -> float:
        """Seconds from the start of the process to its first answer."""
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{self.port}/api/version", timeout=1).read()
                return time.perf_counter() - self.started
            except OSError:
                if self.process.poll() is not None:
                    raise SystemExit("the server did not start; is something else listening on 11599?") from None
                time.sleep(0.01)

    def socket_path(self) -> str:
        """The path of the socket of the server's one runner."""
        path = next(self.folder.glob("ndani-*/*/*.sock"), None)
        if path is None:
            raise SystemExit("smollm2:135m is not in memory; `ndani pull smollm2:135m` first, or set NDANI_MODELS to a store that has it")
        return str(path)

    def processor_seconds(self) -> float:
        """Processor time that the front itself has used."""
        times = psutil.Process(self.process.pid).cpu_times()
        return float(times.user + times.system)

    def stop(self) -> None:
        """Stop the process and wait for its end."""
        self.process.terminate()
        self.process.wait(10)


def start_time(runs: int) -> float:
    """Median seconds from the start of a server to its first response."""
    seconds = []
    for _ in range(runs):
        with tempfile.TemporaryDirectory() as folder:
            server = Server(Path(folder))
            seconds.append(server.ready())
            server.stop()
    return statistics.median(seconds)


async def throughput(server: Server, streams: int, pairs: int, tokens: int) -> tuple[float, float, float, float]:
    """Medians over pairs: the ratio front to direct, tokens per second direct and through the front. Last: the front's µs per token."""
    direct, front = Endpoint(socket_path=server.socket_path()), Endpoint(port=server.port)
    await burst(direct, streams, 8)
    await burst(front, streams, 8)
    ratios, direct_speeds, front_speeds = [], [], []
    used, generated = 0.0, 0.0  # summed over all pairs: a burst is only a few 10 ms ticks of the processor clock
    for pair in range(pairs):
        order = (direct, front) if pair % 2 else (front, direct)  # the second one profits from a warm machine
        speed = {}
        for endpoint in order:
            before, clock = server.processor_seconds(), time.perf_counter()
            speed[endpoint] = await burst(endpoint, streams, tokens)
            if endpoint is front:
                generated += speed[endpoint] * (time.perf_counter() - clock)
                used += server.processor_seconds() - before
        ratios.append(speed[front] / speed[direct])
        direct_speeds.append(speed[direct])
        front_speeds.append(speed[front])
    return statistics.median(ratios), statistics.median(direct_speeds), statistics.median(front_speeds), used / generated * 1e6


async def first_token(server: Server, pairs: int, chat: bool) -> float:
    """Median over pairs of the milliseconds that the front adds before the first token; the prompt is in the prefix cache."""
    direct, front = Endpoint(socket_path=server.socket_path()), Endpoint(port=server.port)
    prompt = "Tell me about the sea and everything in it. " * 20
    added = []
    for pair in range(pairs + 1):
        times = {}
        for endpoint in (direct, front) if pair % 2 else (front, direct):
            times[endpoint] = (await endpoint.complete(endpoint.request(prompt, 2, chat)))[1]
        if pair:
            added.append((times[front] - times[direct]) * 1000)
    return statistics.median(added)


def _dialects(pairs: int, tokens: int) -> dict[str, float]:
    """What each dialect costs over Ollama's. A store of hard links of its own is used, since a model is created for it."""
    with tempfile.TemporaryDirectory() as folder:
        models = Path(folder, "models")
        shutil.copytree(os.environ.get("NDANI_MODELS", Path.home() / ".ndani" / "models"), models, copy_function=_link)
        server = Server(Path(folder), NDANI_MODELS=str(models))
        try:
            server.ready()
            costs = asyncio.run(dialect_costs(server, pairs, 8, tokens))
        finally:
            server.stop()
    for name, cost in costs.items():
        print(f"{name:<20} {cost:>7.1f} us of the front's processor per token, 8 streams")
    return {f"{name}, us per token over ollama": cost - costs["ollama"] for name, cost in costs.items() if name != "ollama"}


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def main() -> int:
    """Run all comparisons and print them. Returns 1 if a limit is missed."""
    parser = argparse.ArgumentParser(prog="bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=9)
    parser.add_argument("--tokens", type=int, default=128)
    arguments = parser.parse_args()
    results = {"serve is ready, s": start_time(5)}
    with tempfile.TemporaryDirectory() as folder:
        server = Server(Path(folder))
        try:
            server.ready()
            asyncio.run(Endpoint(port=server.port).complete(Endpoint(port=server.port).request("Hi", 1)))
            for streams in (1, 8):
                ratio, direct_speed, front_speed, cost = asyncio.run(
                    throughput(server, streams, arguments.pairs * (3 if streams == 1 else 1), arguments.tokens)
                )
                label = "1 stream" if streams == 1 else f"{streams} streams"
                print(f"{label}: straight {direct_speed:.1f} tok/s, through the front {front_speed:.1f} tok/s (medians)")
                results[f"through the front, {label}"] = ratio
                results[f"front, us of processor per token, {label}"] = cost
            results["time to first token, added ms"] = asyncio.run(first_token(server, 40, False))
            results["time to first token of a chat, added ms"] = asyncio.run(first_token(server, 40, True))
        finally:
            server.stop()
    results |= _dialects(arguments.pairs, arguments.tokens)
    results["jail, 1 stream"] = asyncio.run(compare(arguments.pairs * 3, arguments.tokens))
    missed = 0
    for name, value in results.items():
        sign, limit = LIMITS.get(name, ("", 0.0))
        met = not sign or (value >= limit if sign == ">=" else value <= limit)
        missed += not met
        print(f"{name:<48} {value:>9.3f}   {f'{sign} {limit}' if sign else '':<10} {'' if met else 'FALLS SHORT'}")
    return 1 if missed else 0


if __name__ == "__main__":
    raise SystemExit(main())
