"""The server of the page, which answers only the requests that the page makes."""

import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gradio import processing_utils
from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..annotation.proposals import Proposer
from ..engine import Engine
from . import gradio as gr
from .page import STYLE, THEME, build_page
from .sessions import Sessions

# The browser then refuses whatever is not from this server.
_POLICY = (
    "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; object-src 'none'; "
    "base-uri 'self'; form-action 'self'; frame-ancestors 'self'"
)

# Settings of OpenCV's FFmpeg: a video is one file, not a list of others.
DECODERS = {
    "OPENCV_FFMPEG_CAPTURE_OPTIONS": "protocol_whitelist;file|format_whitelist;"
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpeg,mpegts,ogg,flv,asf,gif"
}

# Requests of the page. Gradio has more, which fetch what others ask for or reveal too much.
_ROUTES = re.compile(
    r"/(config|theme\.css|manifest\.json|favicon\.ico|(assets|static|svelte)/.*"
    r"|gradio_api/(upload|upload_progress|queue/(join|data)|cancel|startup-events"
    r"|heartbeat/\w+|file=(?!\w+://).*))?"
)


class Guard:
    """Middleware: answers only the page's requests, with headers that keep it on this server."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        if not _ROUTES.fullmatch(scope["path"]):
            await PlainTextResponse("Not found", 404)(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [
                    *message.get("headers", []),
                    (b"content-security-policy", _POLICY.encode()),
                    (b"referrer-policy", b"no-referrer"),
                    (b"x-content-type-options", b"nosniff"),
                ]
            await send(message)

        await self.app(scope, receive, send_with_headers)


@contextmanager
def serve(
    engine: Engine,
    host: str = "127.0.0.1",
    port: int = 7860,
    checkpoint: str | None = None,
    propose: Proposer | None = None,
) -> Iterator[str]:
    """Serves the page as long as the context lasts.

    Args:
        engine: encodes and decodes, within its limits. Exported files, which need no torch, have
            the tabs Click and Everything alone.
        host: IPv4 or IPv6 address to listen on; "0.0.0.0" or "::" for all of the machine's.
        port: port to listen on.
        checkpoint: name of the checkpoint, for the Python lines; None for the default one.
        propose: finds the proposals in an image, for everything mode; None if nothing does.

    Yields:
        The page's address.

    Raises:
        OSError: if the port is taken.

    Examples:
        >>> with serve(Engine(TorchBackend(build_sam_vit_t()))) as address:
        ...     input(address)
    """
    if ":" in host and not host.startswith("["):
        host = f"[{host}]"  # as in a URL, which gradio expects
    with (
        tempfile.TemporaryDirectory(prefix="mobile-sam-app-") as folder,
        _environment(GRADIO_TEMP_DIR=str(Path(folder) / "cache"), **DECODERS),
        _no_fetching(),
    ):
        sessions = Sessions(engine, Path(folder) / "sessions")
        page = build_page(sessions, checkpoint, propose)
        page.queue(default_concurrency_limit=1, max_size=200)
        try:
            page.launch(
                server_name=host,
                server_port=port,
                share=False,
                prevent_thread_lock=True,
                quiet=True,
                show_error=False,
                allowed_paths=[],
                enable_monitoring=False,
                ssr_mode=False,
                mcp_server=False,
                pwa=False,
                max_file_size=engine.limits.max_bytes,
                footer_links=["settings"],
                _frontend=False,  # or a machine that is busy for 3 s is taken for unreachable
                app_kwargs={"middleware": [Middleware(Guard)], "docs_url": None},
                theme=THEME,
                css=STYLE,
            )
            yield f"http://{'localhost' if host in ('0.0.0.0', '[::]') else host}:{port}"
        finally:
            page.close(verbose=False)


@contextmanager
def _environment(**variables: str) -> Iterator[None]:
    """Sets environment variables, which gradio and OpenCV read repeatedly, during the context."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextmanager
def _no_fetching() -> Iterator[None]:
    """Makes gradio refuse URLs as files, which it would otherwise fetch."""

    async def refuse(url: str, cache_dir: str) -> str:
        raise gr.Error("this page takes files, not addresses: save it, then upload it")

    fetch = processing_utils.async_ssrf_protected_download
    processing_utils.async_ssrf_protected_download = refuse
    try:
        yield
    finally:
        processing_utils.async_ssrf_protected_download = fetch
