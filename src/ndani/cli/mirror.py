"""`ndani mirror`: serves the store to other machines, so that they can pull from it."""

from __future__ import annotations

import click

from ndani.cli.command import Command, exactly
from ndani.cli.output import emit
from ndani.hosts import resolves_to_loopback
from ndani.settings import load

_ENVIRONMENT = (("NDANI_MODELS", "folder of the model store"), ("NDANI_LOG_FILE", "file for log lines (empty: stderr)"))


@click.command(
    "mirror", cls=Command, usage="mirror", arity=exactly(0), environment=_ENVIRONMENT, help="Let others pull the models of this store"
)
@click.option("--host", metavar="HOST[:PORT]", default="127.0.0.1", help="address to listen on (default 127.0.0.1:11435)")
def mirror(args: tuple[str, ...], host: str) -> int:
    """Serve the store, read-only, until a signal stops it."""
    from ndani.mirror.server import PORT, serve

    settings = load(flags={"host": host})
    listen_host, _ = settings.address
    stated_address = host.strip().rpartition("://")[2].partition("/")[0]
    has_port = stated_address.rpartition("]")[2].count(":") == 1
    if not has_port:
        settings = load(flags={"host": f"[{listen_host}]:{PORT}" if ":" in listen_host else f"{listen_host}:{PORT}"})
    if not resolves_to_loopback(listen_host):
        emit(f"anyone who reaches {listen_host} can pull every model of this store: there are no passwords and no TLS here", err=True)
    emit("pull from here with `ndani pull HOST:PORT/library/NAME:TAG --insecure`; Ctrl-C ends it", err=True)
    return serve(settings)
