"""`make bench`: the front beside the bare runner, in pairs, on this machine; figures as ratios and medians.

    python -m bench [--pairs N] [--tokens N]

Every pair is the same request straight to the runner's socket and through the front, in turn, to one and the same
runner. Machines are noisy: read the ratios.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

import psutil

from bench.load import Road, burst
from bench.unjailed import compare

LIMITS = {
    "through the front, 1 stream": (">=", 0.97),
    "through the front, 8 streams": (">=", 0.97),
    "front, us of processor per token, 8 streams": ("<=", 100.0),
    "time to first token, added ms": ("<=", 4.0),
    "time to first token of a chat, added ms": ("<=", 4.0),
    "jail, 1 stream": (">=", 0.97),
    "serve is ready, s": ("<=", 0.7),
}


class Server:
    """A real server of its own: a free port, a private folder for sockets, eight slots."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = 11599
        env = os.environ | {"NDANI_HOST": f"127.0.0.1:{self.port}", "TMPDIR": str(folder), "NDANI_NUM_PARALLEL": "8", "NDANI_NOPRUNE": "1"}
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

    def socket(self) -> str:
        """The socket of its one runner."""
        found = next(self.folder.glob("ndani-*/*/*.sock"), None)
        if found is None:
            raise SystemExit("smollm2:135m is not in memory; `ndani pull smollm2:135m` first, or set NDANI_MODELS to a store that has it")
        return str(found)

    def seconds(self) -> float:
        """Processor time that the front itself has used."""
        used = psutil.Process(self.process.pid).cpu_times()
        return float(used.user + used.system)

    def end(self) -> None:
        self.process.terminate()
        self.process.wait(10)


def start_time(times: int) -> float:
    seconds = []
    for _ in range(times):
        with tempfile.TemporaryDirectory() as folder:
            server = Server(Path(folder))
            seconds.append(server.ready())
            server.end()
    return statistics.median(seconds)


async def throughput(server: Server, streams: int, pairs: int, tokens: int) -> tuple[float, float, float, float]:
    """Medians over pairs: the ratio front to straight, tokens per second of each; and the front's microseconds per token."""
    straight, front = Road(socket=server.socket()), Road(port=server.port)
    await burst(straight, streams, 8)
    await burst(front, streams, 8)
    ratios, bare, through = [], [], []
    spent, made = 0.0, 0.0  # over all pairs: one burst is a few of the clock's ticks of 10 ms
    for pair in range(pairs):
        order = (straight, front) if pair % 2 else (front, straight)  # whoever goes second profits from a warm machine
        speed = {}
        for road in order:
            before, clock = server.seconds(), time.perf_counter()
            speed[road] = await burst(road, streams, tokens)
            if road is front:
                made += speed[road] * (time.perf_counter() - clock)
                spent += server.seconds() - before
        ratios.append(speed[front] / speed[straight])
        bare.append(speed[straight])
        through.append(speed[front])
    return statistics.median(ratios), statistics.median(bare), statistics.median(through), spent / made * 1e6


async def first_token(server: Server, pairs: int, chat: bool) -> float:
    """Median over pairs of the milliseconds that the front adds before the first token; the prompt is in the prefix cache."""
    straight, front = Road(socket=server.socket()), Road(port=server.port)
    prompt = "Tell me about the sea and everything in it. " * 20
    added = []
    for pair in range(pairs + 1):
        times = {}
        for road in (straight, front) if pair % 2 else (front, straight):
            times[road] = (await road.ask(road.request(prompt, 2, chat)))[1]
        if pair:
            added.append((times[front] - times[straight]) * 1000)
    return statistics.median(added)


def main() -> int:
    parser = argparse.ArgumentParser(prog="bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=9)
    parser.add_argument("--tokens", type=int, default=128)
    asked = parser.parse_args()
    found = {"serve is ready, s": start_time(5)}
    with tempfile.TemporaryDirectory() as folder:
        server = Server(Path(folder))
        try:
            server.ready()
            asyncio.run(Road(port=server.port).ask(Road(port=server.port).request("Hi", 1)))
            for streams in (1, 8):
                ratio, bare, through, cost = asyncio.run(
                    throughput(server, streams, asked.pairs * (3 if streams == 1 else 1), asked.tokens)
                )
                words = "1 stream" if streams == 1 else f"{streams} streams"
                print(f"{words}: straight {bare:.1f} tok/s, through the front {through:.1f} tok/s (medians)")
                found[f"through the front, {words}"] = ratio
                found[f"front, us of processor per token, {words}"] = cost
            found["time to first token, added ms"] = asyncio.run(first_token(server, 40, False))
            found["time to first token of a chat, added ms"] = asyncio.run(first_token(server, 40, True))
        finally:
            server.end()
    found["jail, 1 stream"] = asyncio.run(compare(asked.pairs * 3, asked.tokens))
    short = 0
    for name, value in found.items():
        sign, limit = LIMITS.get(name, ("", 0.0))
        good = not sign or (value >= limit if sign == ">=" else value <= limit)
        short += not good
        print(f"{name:<48} {value:>9.3f}   {f'{sign} {limit}' if sign else '':<10} {'' if good else 'FALLS SHORT'}")
    return 1 if short else 0


if __name__ == "__main__":
    raise SystemExit(main())
