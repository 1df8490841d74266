"""``mobile-sam serve``: the HTTP service."""

from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer

from .app import check_address
from .inputs import (
    Backend,
    BackendDevice,
    Checkpoint,
    Embeddings,
    OnnxFolder,
    check_backend,
    load_backend,
)

_MEBIBYTE = 2**20


def serve(
    host: Annotated[
        str,
        typer.Option(
            metavar="ADDRESS",
            help="Address to listen on; one beyond loopback, such as 0.0.0.0, needs --token.",
        ),
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")] = 8000,
    token: Annotated[
        str | None,
        typer.Option(
            metavar="TEXT",
            envvar="MOBILE_SAM_TOKEN",
            help="Answer only requests with Authorization: Bearer TEXT. The variable keeps it out "
            "of lists of processes.",
        ),
    ] = None,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Listen beyond loopback without a token.")
    ] = False,
    root: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            exists=True,
            file_okay=False,
            help="Requests may name images by their paths below DIR.",
        ),
    ] = None,
    label_studio: Annotated[
        bool,
        typer.Option("--label-studio", help="Also speak Label Studio's ML backend protocol."),
    ] = False,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(
            metavar="HOST[:PORT]",
            help="Fetch the images of Label Studio's tasks from this host, such as its own. Can be "
            "given several times.",
        ),
    ] = None,
    label_studio_url: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            envvar="LABEL_STUDIO_URL",
            help="Where Label Studio is, for its uploads; by default where it says that it is, if "
            "that is an --allow-host.",
        ),
    ] = None,
    label_studio_token: Annotated[
        str | None,
        typer.Option(
            metavar="TEXT",
            envvar="LABEL_STUDIO_API_KEY",
            help="Token of Label Studio's API, for uploads, where legacy tokens are disabled.",
        ),
    ] = None,
    page: Annotated[
        int | None,
        typer.Option(
            "--page",
            metavar="PORT",
            min=1,
            max=65535,
            help="Also serve the page of mobile-sam app there, on this machine alone.",
        ),
    ] = None,
    workers: Annotated[
        int, typer.Option(min=1, help="Threads that decode prompts; images are encoded by one.")
    ] = 2,
    queue: Annotated[
        int, typer.Option(min=1, help="Requests that may wait; further ones get a 503.")
    ] = 64,
    cache: Annotated[
        int, typer.Option("--cache", metavar="MIB", min=1, help="Memory for embeddings.")
    ] = 256,
    cache_dir: Annotated[
        Path | None,
        typer.Option(metavar="DIR", file_okay=False, help="Also keep embeddings on disk, here."),
    ] = None,
    cache_dir_size: Annotated[
        int, typer.Option(metavar="MIB", min=1, help="Bound of --cache-dir.")
    ] = 4096,
    max_bytes: Annotated[
        int, typer.Option(metavar="N", min=1, help="Refuse larger requests and files.")
    ] = 32 * _MEBIBYTE,
    max_pixels: Annotated[
        int, typer.Option(metavar="N", min=1, help="Refuse images with more pixels.")
    ] = 25_000_000,
    max_prompts: Annotated[
        int,
        typer.Option(
            metavar="N", min=1, help="Refuse more prompts on an image, or points in a prompt."
        ),
    ] = 64,
    timeout: Annotated[
        float, typer.Option(metavar="SECONDS", min=0.1, help="Give up requests after this time.")
    ] = 60,
    embeddings: Embeddings = None,
    checkpoint: Checkpoint = None,
    backend: Backend = "torch",
    onnx_dir: OnnxFolder = None,
    device: BackendDevice = "auto",
) -> None:
    """Serve masks over HTTP: POST /v1/predict, /v1/everything, /v1/embed.

    GET /openapi.json describes the requests, GET /metrics is for Prometheus, and the log is JSON
    lines on stderr. Runs until Ctrl-C or SIGTERM, and then answers what it has begun.
    """
    check_backend(backend, onnx_dir, checkpoint, embeddings)
    if allow_host and not label_studio:
        raise typer.BadParameter("only for --label-studio", param_hint="--allow-host")

    from ..serve import uvicorn
    from ..serve.api import create_api
    from ..serve.gate import is_loopback
    from ..serve.label_studio import add_label_studio
    from ..serve.telemetry import set_up_logging

    loopback = is_loopback(host)
    if not loopback and token is None and not insecure:
        raise typer.BadParameter(
            f"everyone who reaches {host} could use this server: give a --token, or --insecure",
            param_hint="--host",
        )
    check_address(host, port)
    if page is not None:
        check_address("127.0.0.1", page)

    from PIL import Image

    from ..engine import Engine, Limits

    # Pillow's own limit must not prevent a higher one.
    Image.MAX_IMAGE_PIXELS = max(Image.MAX_IMAGE_PIXELS or 0, max_pixels)
    engine = Engine(
        load_backend(backend, onnx_dir, checkpoint, embeddings, device),
        Limits(max_bytes, max_pixels, max_prompts, timeout),
        workers,
        queue,
        cache * _MEBIBYTE,
        cache_dir,
        cache_dir_size * _MEBIBYTE,
    )
    set_up_logging()
    with ExitStack() as stack:
        if page is not None:
            from ..app.server import serve as serve_page

            address = stack.enter_context(serve_page(engine, port=page, checkpoint=checkpoint))
            typer.echo(f"{address}  (the page)")
        api = create_api(engine, root, token, loopback)
        if label_studio:
            add_label_studio(api, allow_host or (), label_studio_url, label_studio_token)
        uvicorn.run(
            api,
            host=host.removeprefix("[").removesuffix("]"),
            port=port,
            log_config=None,
            access_log=False,
            server_header=False,
            limit_concurrency=4 * queue + 64,  # connections, each of which may hold a request
            timeout_graceful_shutdown=int(timeout) + 1,
        )
