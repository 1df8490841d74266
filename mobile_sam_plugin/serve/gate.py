"""Who may ask: a bearer's token, and the names by which a server on loopback is known."""

import base64
import binascii
import hmac
import ipaddress
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

OPEN = ("/v1/health", "/health", "/")
"""Paths that need no token: whoever checks whether the service is up has none."""


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address."""
    host = host.removeprefix("[").removesuffix("]")
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class Gate:
    """Middleware: answers only requests that may be made.

    With a token, it must come as ``Authorization: Bearer``, or as the password of ``Basic``, which
    is what Label Studio can send. Without one, a server on loopback answers only under loopback's
    names: otherwise any page that this machine's browser shows could have its own name lead here.
    """

    def __init__(self, app: ASGIApp, token: str | None, loopback: bool) -> None:
        self.app = app
        self.token = token
        self.loopback = loopback

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        problem = None
        if self.token is not None:
            if scope["path"] not in OPEN and not self._admits(headers.get("authorization", "")):
                problem = JSONResponse(
                    {"detail": "send Authorization: Bearer, with the server's token"},
                    401,
                    {"www-authenticate": "Bearer"},
                )
        elif self.loopback and not is_loopback(_host_of(headers.get("host", ""))):
            problem = JSONResponse({"detail": "this server is known as localhost alone"}, 421)
        await (problem or self.app)(scope, receive, send)

    def _admits(self, authorization: str) -> bool:
        assert self.token is not None
        kind, _, given = authorization.partition(" ")
        if kind.lower() == "basic":
            try:
                given = base64.b64decode(given, validate=True).decode().partition(":")[2]
            except (binascii.Error, UnicodeDecodeError):
                return False
        elif kind.lower() != "bearer":
            return False
        return hmac.compare_digest(given.encode(), self.token.encode())


def _host_of(header: str) -> str:
    try:
        return urlsplit(f"//{header}").hostname or ""
    except ValueError:
        return ""
