"""A proxy on loopback that sends every request to one server, whatever host it names, and records the requests."""

from __future__ import annotations

import aiohttp
from aiohttp import web


class Proxy:
    """Forwards plain http requests; `asked` records their hosts and logins."""

    def __init__(self, place: str) -> None:
        self.place = place
        self.asked: list[tuple[str, str, str]] = []  # host and port, Proxy-Authorization, Authorization
        self.host = ""

    async def start(self) -> web.ServerRunner:
        runner = web.ServerRunner(web.Server(self.forward))
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        self.host = f"127.0.0.1:{runner.addresses[0][1]}"
        return runner

    async def forward(self, request: web.BaseRequest) -> web.Response:
        told = (request.headers.get("Proxy-Authorization", ""), request.headers.get("Authorization", ""))
        self.asked.append((request.host, *told))
        headers = {name: request.headers[name] for name in ("Range", "Accept") if name in request.headers}
        url = f"http://{self.place}{request.path_qs}"
        async with aiohttp.ClientSession() as session, session.request(request.method, url, headers=headers) as answer:
            kept = {name: value for name, value in answer.headers.items() if name in ("Content-Type", "Content-Range", "Location")}
            return web.Response(status=answer.status, body=await answer.read(), headers=kept)
