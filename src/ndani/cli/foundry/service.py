"""`foundry service`: the server's life, in the words that SDKs before version 1 look for."""

from __future__ import annotations

import time

import click

from ndani.cli import tables
from ndani.cli.autostart import connect_or_start
from ndani.cli.client import ServerClient
from ndani.cli.command import Command, CommandEntry, LazyGroup, exactly
from ndani.cli.foundry import show_group_help
from ndani.cli.output import emit
from ndani.errors import Failed
from ndani.settings import home, load

#: Seconds that a server gets to end its answers.
_STOP_TIMEOUT_S = 60.0
#: Lines of the log that `diag` shows.
_LOG_LINES = 50
_ABSENT = "Model management service is not running!"


@click.command("status", cls=Command, usage="status", arity=exactly(0), help="Show whether the server runs, and where")
def status(args: tuple[str, ...]) -> None:
    """Print the server's address. SDKs take it from this line, and take a text without an address for no server."""
    client = ServerClient(load())
    if not client.is_alive():
        emit(f"{_ABSENT}\nTo start the service, run the following command: foundry service start")
        return
    client.request_json("GET", "/openai/status", required_field="modelDirPath")  # something else may listen there
    emit(f"Model management service is running on {client.url}/openai/status")


@click.command("start", cls=Command, usage="start", arity=exactly(0), help="Start the server in the background")
def start(args: tuple[str, ...]) -> None:
    """Start a server that stays until it is stopped, and print its address."""
    _start()


@click.command("stop", cls=Command, usage="stop", arity=exactly(0), help="Stop the server that runs in the background")
def stop(args: tuple[str, ...]) -> None:
    """Stop the server, and wait for its end."""
    emit("Service is stopped." if _stop() else _ABSENT)


@click.command("restart", cls=Command, usage="restart", arity=exactly(0), help="Stop the server, and start it again")
def restart(args: tuple[str, ...]) -> None:
    """Stop the server where one runs; start one."""
    _stop()
    _start()


@click.command("ps", cls=Command, usage="ps", arity=exactly(0), help="List the models in memory", aliases=("list",))
def ps(args: tuple[str, ...]) -> None:
    """Print the ids of the models in memory."""
    ids = ServerClient(load()).request_names("/openai/loadedmodels")
    emit(tables.columns(("MODEL ID",), [(name,) for name in ids]) if ids else "No models are loaded in the service.\n", nl=False)


@click.command("diag", cls=Command, usage="diag", arity=exactly(0), help="Show the log of the server in the background")
def diag(args: tuple[str, ...]) -> None:
    """Print the last lines of the log; it holds no prompt and no answer."""
    path = home() / "logs" / "server.log"
    if not path.exists():
        raise Failed(f"there is no log {path}: no server was started in the background by this user")
    emit(str(path))
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines()[-_LOG_LINES:]:
        emit(line)


def _start() -> None:
    client = connect_or_start(load(), quiet=True, as_service=True)
    server = client.request_json("GET", "/status", required_field="pid")
    emit(f"Service is Started on {client.url}/, PID {server['pid']}!")


def _stop() -> bool:
    """Stop the server; False when none runs. Raises Forbidden for one that was not started in the background, Failed."""
    client = ServerClient(load())
    if not client.is_alive():
        return False
    client.request_json("POST", "/shutdown", required_field="status")
    deadline = time.monotonic() + _STOP_TIMEOUT_S
    while client.is_alive():
        if time.monotonic() > deadline:
            raise Failed(
                f"the server at {client.url} has not ended within {_STOP_TIMEOUT_S:.0f} seconds; `foundry service diag` shows its log"
            )
        time.sleep(0.05)
    return True


service = LazyGroup(
    name="service",
    entries={
        "start": CommandEntry(__name__, "start", "Start the server in the background"),
        "stop": CommandEntry(__name__, "stop", "Stop the server that runs in the background"),
        "restart": CommandEntry(__name__, "restart", "Stop the server, and start it again"),
        "status": CommandEntry(__name__, "status", "Show whether the server runs, and where"),
        "ps": CommandEntry(__name__, "ps", "List the models in memory", ("list",)),
        "diag": CommandEntry(__name__, "diag", "Show the log of the server in the background"),
    },
    help="Start, stop and look at the server",
    callback=show_group_help,
)
