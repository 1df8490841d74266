"""``mobile-sam app``: the web page."""

import socket
import threading
from typing import Annotated

import typer

from .inputs import (
    Backend,
    BackendDevice,
    Checkpoint,
    Embeddings,
    OnnxFolder,
    check_backend,
    load_backend,
)


def app(
    host: Annotated[
        str,
        typer.Option(
            metavar="ADDRESS",
            help="Address to listen on; 0.0.0.0 admits everyone who can reach this machine.",
        ),
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")] = 7860,
    embeddings: Embeddings = None,
    proposals: Annotated[
        str | None,
        typer.Option(
            metavar="JSON|NAME",
            help="Where the tab Everything may also prompt: a COCO JSON or a detector, as for "
            "mobile-sam everything.",
        ),
    ] = None,
    checkpoint: Checkpoint = None,
    backend: Backend = "torch",
    onnx_dir: OnnxFolder = None,
    device: BackendDevice = "auto",
    max_pixels: Annotated[
        int, typer.Option(metavar="N", min=1, help="Refuse images with more pixels.")
    ] = 25_000_000,
) -> None:
    """Serve a web page: click on an object, download its mask.

    Runs until Ctrl-C. With --backend onnx or openvino it starts without torch, and has the tabs
    Click and Everything.
    """
    check_backend(backend, onnx_dir, checkpoint, embeddings)
    check_address(host, port)
    from PIL import Image

    from ..annotation.proposals import open_proposals
    from ..app.server import serve
    from ..engine import Engine, Limits

    # Pillow's own limit must not prevent a higher one.
    Image.MAX_IMAGE_PIXELS = max(Image.MAX_IMAGE_PIXELS or 0, max_pixels)

    model = load_backend(backend, onnx_dir, checkpoint, embeddings, device)
    propose = None if proposals is None else open_proposals(proposals, model.device)
    engine = Engine(model, Limits(max_pixels=max_pixels, seconds=600))
    with serve(engine, host, port, checkpoint, propose) as address:
        typer.echo(f"{address}  (Ctrl-C stops it)")
        threading.Event().wait()


def check_address(host: str, port: int) -> None:
    """Refuses an address that cannot be listened on, before the model is loaded."""
    host = host.removeprefix("[").removesuffix("]")
    try:
        (family, kind, *_, address), *_ = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        with socket.socket(family, kind) as probe:
            # As servers do: a port whose last connection has just ended is free.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except socket.gaierror as error:
        raise typer.BadParameter(
            f"{host!r} is not an address of this machine, such as 127.0.0.1 or 0.0.0.0",
            param_hint="--host",
        ) from error
    except OSError as error:
        raise typer.BadParameter(
            f"cannot listen on port {port} of {host} ({error.strerror}): choose another port",
            param_hint="--port",
        ) from error
