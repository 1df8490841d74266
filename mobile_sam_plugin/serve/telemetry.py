"""What the service tells of itself: a log of JSON lines, and metrics for Prometheus."""

import json
import logging
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..engine import Engine
from . import prometheus_client

LOGGER = logging.getLogger("mobile_sam_plugin.serve")

_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time, level, message, and the fields of the record's ``about``."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
            + f".{int(record.msecs):03}Z",
            "level": record.levelname.lower(),
            "message": record.getMessage(),
            **getattr(record, "about", {}),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line)


def set_up_logging(level: int = logging.INFO) -> None:
    """Sends the logs of this service and of uvicorn to stderr, as JSON lines."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter())
    for name in (LOGGER.name, "uvicorn"):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(level)


class Telemetry:
    """Metrics of one service, in a registry of their own."""

    def __init__(self, engine: Engine) -> None:
        self.registry = prometheus_client.CollectorRegistry()
        self.requests = prometheus_client.Counter(
            "mobile_sam_requests",
            "Requests by endpoint and status.",
            ["endpoint", "status"],
            registry=self.registry,
        )
        self.request_seconds = prometheus_client.Histogram(
            "mobile_sam_request_seconds",
            "From a request to its answer.",
            ["endpoint"],
            buckets=_BUCKETS,
            registry=self.registry,
        )
        self.work_seconds = prometheus_client.Histogram(
            "mobile_sam_work_seconds",
            "Of the model: encode (with the wait for the encoder), decode (a batch), everything.",
            ["work"],
            buckets=_BUCKETS,
            registry=self.registry,
        )
        gauges = {
            "waiting_requests": ("Requests in the queue.", lambda: engine.queue.waiting),
            "cached_images": ("Embeddings in memory.", lambda: len(engine.cache)),
            "cached_bytes": ("Bytes of the embeddings in memory.", lambda: engine.cache.nbytes),
            "cache_hits": ("Images that were found.", lambda: engine.cache.hits),
            "cache_misses": ("Images that were not found.", lambda: engine.cache.misses),
            "replaced_workers": (
                "Workers that died or were given up.",
                lambda: engine.decoders.replaced + engine.encoder.replaced,
            ),
        }
        for name, (text, read) in gauges.items():
            gauge = prometheus_client.Gauge(f"mobile_sam_{name}", text, registry=self.registry)
            gauge.set_function(read)

    @contextmanager
    def timing(self, work: str) -> Iterator[None]:
        """Counts the time of the body."""
        with self.work_seconds.labels(work).time():
            yield

    def metrics(self) -> bytes:
        """Returns the metrics as Prometheus reads them."""
        return prometheus_client.generate_latest(self.registry)


class Watch:
    """Middleware: gives each request an id, logs it and counts it."""

    def __init__(self, app: ASGIApp, telemetry: Telemetry) -> None:
        self.app = app
        self.telemetry = telemetry

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started, request_id, status = time.perf_counter(), uuid.uuid4().hex[:16], 500
        about = scope.setdefault("state", {})["about"] = {"request_id": request_id}

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = [*message.get("headers", []), (b"x-request-id", request_id.encode())]
                message["headers"] = headers
            await send(message)

        try:
            await self.app(scope, receive, send_with_id)
        finally:
            seconds = time.perf_counter() - started
            route = scope.get("route")
            endpoint = getattr(route, "path", "other")
            self.telemetry.requests.labels(endpoint, str(status)).inc()
            self.telemetry.request_seconds.labels(endpoint).observe(seconds)
            fields = {
                "method": scope["method"],
                "path": scope["path"],
                "status": status,
                "ms": round(1000 * seconds, 1),
                **about,
            }
            LOGGER.info("request", extra={"about": fields})
