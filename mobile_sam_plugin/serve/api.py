"""The endpoints of the service."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import anyio
from pydantic import BaseModel, ValidationError
from pydantic.json_schema import models_json_schema
from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from .. import __version__
from ..engine import Deadline, Engine, TimedOut, Unavailable
from ..errors import UserError
from . import fastapi, schemas
from .answers import Answers, NotFound
from .gate import Gate
from .telemetry import LOGGER, Telemetry, Watch

Model = TypeVar("Model", bound=BaseModel)
Schema = TypeVar("Schema", bound=schemas.ImageRequest)

MAX_JSON = 4 * 2**20
"""Bytes: what is written in them takes many times as many in memory."""

_REFERENCE = "#/components/schemas/{model}"
_TEXTS = {
    401: "The token is missing or another.",
    404: "The image is not here.",
    408: "The request did not arrive in time.",
    413: "The request is too large.",
    415: "Its type is neither application/json nor multipart/form-data.",
    422: "Something in it cannot be used.",
    503: "Too many requests are waiting, or the worker of this one has died: try again.",
    504: "It took too long.",
}
_PROBLEMS: dict[int | str, dict[str, Any]] = {
    status: {"model": schemas.Problem, "description": text} for status, text in _TEXTS.items()
}


def create_api(
    engine: Engine,
    root: Path | None = None,
    token: str | None = None,
    loopback: bool = True,
    closes_engine: bool = True,
) -> fastapi.FastAPI:
    """Returns the service as an ASGI application.

    Args:
        engine: computes, within its limits.
        root: folder below which requests may name images; None admits none.
        token: that requests must bear; None asks for none.
        loopback: whether only this machine reaches the server: without a token it then answers
            under loopback's names alone.
        closes_engine: whether the engine ends with the service.

    Examples:
        >>> uvicorn.run(create_api(Engine(TorchBackend(build_sam_vit_t()))))
    """
    telemetry = Telemetry(engine)
    answers = Answers(engine, root, telemetry)

    @asynccontextmanager
    async def lifespan(api: fastapi.FastAPI) -> AsyncIterator[None]:
        yield
        if closes_engine:
            await asyncio.to_thread(engine.close)

    api = fastapi.FastAPI(
        title="MobileSAM",
        version=__version__,
        summary="Masks from points, boxes and masks, or of everything in an image.",
        docs_url=None,  # its scripts and styles come from elsewhere
        redoc_url=None,
        lifespan=lifespan,
        middleware=[
            Middleware(Watch, telemetry=telemetry),
            Middleware(Gate, token=token, loopback=loopback),
        ],
    )
    api.state.answers = answers
    for error, status in _STATUSES.items():
        api.add_exception_handler(error, partial(_tell, status))
    api.add_exception_handler(HTTPException, _tell_http)
    api.add_exception_handler(Exception, _fail)
    api.openapi = partial(_with_requests, api.openapi)  # type: ignore[method-assign]

    @api.post(
        "/v1/predict",
        summary="Masks of objects, given by prompts",
        response_model=schemas.PredictResponse,
        **_documented(schemas.PredictRequest),
    )
    async def predict(request: Request) -> Response:
        deadline = engine.deadline()
        async with _received(request, schemas.PredictRequest, engine, deadline) as (asked, upload):
            request.state.about["prompts"] = len(asked.prompts)
            engine.check_prompts([len(prompt.points) for prompt in asked.prompts])
            work = partial(answers.predict, asked, deadline)
            opening = partial(answers.open, asked.image, upload)
            content = await answers.on_image(opening, work, deadline)
        return Response(content, media_type="application/json")

    @api.post(
        "/v1/everything",
        summary="Masks of everything in an image",
        response_model=schemas.EverythingResponse,
        **_documented(schemas.EverythingRequest),
    )
    async def everything(request: Request) -> Response:
        deadline = engine.deadline()
        async with _received(request, schemas.EverythingRequest, engine, deadline) as each:
            asked, upload = each
            work = partial(answers.everything, asked, deadline)
            opening = partial(answers.open, asked.image, upload)
            content = await answers.on_image(opening, work, deadline)
        return Response(content, media_type="application/json")

    @api.post(
        "/v1/embed",
        summary="The embedding of an image, for clients that run the decoder themselves",
        description="A .npy file of (1, 256, 64, 64) float32. The headers x-image-sha256, "
        "x-original-size and x-input-size tell the image's digest, its height and width, and those "
        "to which it was resized. /v1/info names the encoder.",
        response_class=Response,
        **_documented(schemas.EmbedRequest, {"application/x-npy": {}}),
    )
    async def embed(request: Request) -> Response:
        deadline = engine.deadline()
        async with _received(request, schemas.EmbedRequest, engine, deadline) as each:
            asked, upload = each
            opening = partial(answers.open, asked.image, upload)
            content, headers = await answers.on_image(opening, answers.embed, deadline)
        return Response(content, media_type="application/x-npy", headers=headers)

    @api.get("/v1/health", summary="Whether the service answers")
    async def health() -> schemas.Health:
        return schemas.Health()

    @api.get("/v1/info", summary="What answers, and within which limits")
    async def info() -> schemas.Info:
        limits = engine.limits
        return schemas.Info(
            version=__version__,
            backend=engine.backend.name,
            encoder=engine.backend.encoder,
            max_bytes=limits.max_bytes,
            max_pixels=limits.max_pixels,
            max_prompts=limits.max_prompts,
            seconds=limits.seconds,
            workers=len(engine.decoders.threads),
            queue_length=engine.queue.length,
            waiting=engine.queue.waiting,
            cached_images=len(engine.cache),
            cached_bytes=engine.cache.nbytes,
        )

    @api.get("/metrics", include_in_schema=False)
    async def metrics() -> Response:
        return Response(telemetry.metrics(), media_type="text/plain; version=0.0.4")

    return api


def _documented(
    schema: type[schemas.ImageRequest], content: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Returns what OpenAPI tells of an endpoint that takes JSON, or an upload and JSON."""
    parts = {
        "type": "object",
        "required": ["image"],
        "properties": {
            "image": {"type": "string", "format": "binary", "description": "The image's file."},
            "request": {
                "type": "string",
                "contentMediaType": "application/json",
                "description": f"{schema.__name__}, as without an upload, but for the image.",
            },
        },
    }
    responses = dict(_PROBLEMS)
    if content is not None:
        responses[200] = {"content": content, "description": "The embedding."}
    body = {
        "application/json": {"schema": {"$ref": _REFERENCE.format(model=schema.__name__)}},
        "multipart/form-data": {"schema": parts},
    }
    return {
        "responses": responses,
        "openapi_extra": {"requestBody": {"required": True, "content": body}},
    }


def _with_requests(describe: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Adds to OpenAPI the schemas of requests, which FastAPI does not read itself here."""
    document = describe()
    requests = (schemas.PredictRequest, schemas.EverythingRequest, schemas.EmbedRequest)
    _, described = models_json_schema(
        [(each, "validation") for each in requests], ref_template=_REFERENCE
    )
    document["components"]["schemas"].update(described["$defs"])
    return document


async def receive_json(
    request: Request, schema: type[Model], engine: Engine, deadline: Deadline
) -> Model:
    """Receives a request of JSON alone; errors as :func:`_received`."""
    stream = _limited(request, min(engine.limits.max_bytes, MAX_JSON))
    try:
        with anyio.fail_after(deadline.left):
            body = b"".join([chunk async for chunk in stream])
    except TimeoutError as error:
        raise HTTPException(408, _TEXTS[408]) from error
    return schema.model_validate_json(body)


@asynccontextmanager
async def _received(
    request: Request, schema: type[Schema], engine: Engine, deadline: Deadline
) -> AsyncIterator[tuple[Schema, BinaryIO | None]]:
    """Receives a request; yields it and the file that was uploaded, if one was.

    Raises:
        HTTPException: if it is too large, does not come in time, or is of another type.
        ValidationError, UserError: if something in it cannot be used.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    most = engine.limits.max_bytes
    stream = _limited(request, min(most, MAX_JSON) if kind == "application/json" else most)
    form = FormData()
    try:
        with anyio.fail_after(deadline.left):
            if kind == "application/json":
                body: bytes | str = b"".join([chunk async for chunk in stream])
            elif kind == "multipart/form-data":
                parser = MultiPartParser(
                    request.headers, stream, max_files=1, max_fields=1, max_part_size=MAX_JSON
                )
                form = await parser.parse()
                body = _text(form.get("request", "{}"))
            else:
                raise HTTPException(415, _TEXTS[415])
        upload = form.get("image")
        if upload is not None and not isinstance(upload, UploadFile):
            raise UserError("the part image must be a file, with a filename")
        asked = schema.model_validate_json(body)
        if (upload is None) == (asked.image is None):
            raise UserError(
                "give one image: by sha256 or path, or as an upload in multipart/form-data"
            )
        yield asked, None if upload is None else upload.file
    except TimeoutError as error:
        raise HTTPException(408, _TEXTS[408]) from error
    except MultiPartException as error:
        raise UserError(f"the multipart/form-data is damaged: {error.message}") from error
    finally:
        await form.close()


def _text(part: UploadFile | str) -> str:
    if not isinstance(part, str):
        raise UserError("the part request must be text, without a filename")
    return part


async def _limited(request: Request, max_bytes: int) -> AsyncGenerator[bytes, None]:
    """Yields the body of a request; raises HTTPException if it is larger."""
    received = 0
    async for chunk in request.stream():
        received += len(chunk)
        if received > max_bytes:
            raise HTTPException(413, f"the request has more than {max_bytes:,} bytes")
        yield chunk


async def _tell(status: int, request: Request, error: Exception) -> Response:
    """Answers an error that is no fault of this service."""
    text, headers = str(error), {}
    if isinstance(error, ValidationError):
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        place = ".".join(map(str, first["loc"]))
        text = f"{place}: {first['msg']}" if place else first["msg"]
    if status == 503:
        headers["retry-after"] = "1"
    return JSONResponse({"detail": text or type(error).__name__}, status, headers)


async def _tell_http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return JSONResponse({"detail": error.detail}, error.status_code, error.headers)


async def _fail(request: Request, error: Exception) -> Response:
    """Answers a fault of this service, whose traceback is in the log alone."""
    about = dict(request.state.about)
    LOGGER.error("fault", exc_info=error, extra={"about": about})
    detail = f"this is a fault of the server; its log has {about['request_id']}"
    return JSONResponse({"detail": detail}, 500)


_STATUSES = {
    ValidationError: 422,
    UserError: 422,
    NotFound: 404,
    Unavailable: 503,
    MemoryError: 503,
    TimedOut: 504,
    ClientDisconnect: 400,
}
