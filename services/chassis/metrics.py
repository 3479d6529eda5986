"""Serves a process's metrics: GET /metrics, in Prometheus's text format."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.registry import Collector

from services.chassis.errors import Unavailable


@asynccontextmanager
async def serving(collector: Collector, host: str, port: int) -> AsyncIterator[int]:
    """Serve what `collector` finds at each look, until the block ends; yields the port.

    It says what runs here and asks nobody who they are, so `host` is to be where only operators
    reach it. Raises Unavailable where somebody else listens.
    """
    registry = CollectorRegistry()
    registry.register(collector)

    async def metrics(_: web.Request) -> web.Response:
        return web.Response(
            body=generate_latest(registry), headers={"Content-Type": CONTENT_TYPE_LATEST}
        )

    application = web.Application()
    application.router.add_get("/metrics", metrics)
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    try:
        try:
            await web.TCPSite(runner, host, port).start()
        except OSError:
            raise Unavailable(f"cannot serve metrics on {host}:{port}") from None
        yield int(runner.addresses[0][1])
    finally:
        await runner.cleanup()
