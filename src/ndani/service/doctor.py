"""The operation that tries every way out of the jail, inside a real runner."""

from __future__ import annotations

from dataclasses import dataclass

from ndani import names
from ndani.errors import EngineFailed
from ndani.jail import Confinement
from ndani.runtime.egress import routes
from ndani.runtime.pool import Pool
from ndani.runtime.probe import Targets
from ndani.runtime.runner import Runner
from ndani.runtime.spec import RunnerSpec
from ndani.service.resolver import ModelResolver
from ndani.store import Store
from ndani.types import Details, Sampling


@dataclass(frozen=True, slots=True)
class RouteResult:
    """One way out: its name, what it would do outside of the jail, whether it was blocked inside, and the error's name or "not tried"."""

    name: str
    effect: str
    blocked: bool
    why: str


@dataclass(frozen=True, slots=True)
class DoctorReport:
    """What was tried in a runner of `engine`; `model` is None where no model was there to be loaded."""

    engine: str
    model: str | None
    confinement: Confinement
    routes: tuple[RouteResult, ...]


async def examine(store: Store, resolver: ModelResolver, pool: Pool) -> DoctorReport:
    """Probe a real runner: the one in memory that stays longest, else the smallest model's, else the echo engine's.

    The model's keep-alive does not change.
    """
    spec, name = pool.last_to_expire(), None
    models = [] if spec else sorted(store.list_models(), key=lambda m: m.size)
    if models:
        spec = resolver.spec(await resolver.resolve(store.find(names.parse(models[0].name))), Sampling())
    if spec is None:
        spec = RunnerSpec("echo", "echo", "", Details(), None, 0, 0, 0, engine="echo")
    else:
        name = spec.name
    async with pool.lease(spec, None if name else 0.0):
        runner = pool.runner(spec.key)
        if not isinstance(runner, Runner):
            raise EngineFailed("the runner went away; try again")
        return DoctorReport(spec.engine, name, runner.confinement, await _probe(runner))


async def _probe(runner: Runner) -> tuple[RouteResult, ...]:
    with Targets(runner.decoy) as targets:
        outcomes = {outcome.name: outcome for outcome in await runner.probe(targets.addresses)}
        arrived = targets.arrived()
    return tuple(
        RouteResult(
            route.name,
            route.effect,
            bool(outcome and outcome.blocked and route.name not in arrived),
            "not tried" if outcome is None else outcome.error if outcome.error.isidentifier() else "",
        )
        # The list of routes and their effects is the front's own: the runner's report is not trusted for it.
        for route, outcome in ((route, outcomes.get(route.name)) for route in routes())
    )
