"""Label Studio's ML backend protocol: clicks and boxes in its editor become masks.

Label Studio asks ``/health`` and ``/setup`` when the backend is connected, ``/predict`` with a task
and, as ``context``, the regions that were drawn, and tells ``/webhook`` of annotations, from which
nothing is learnt here. A region's coordinates are percentages of the image.
"""

import io
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from typing import Any, Literal
from urllib.parse import parse_qs, unquote, urljoin, urlsplit

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, Field
from starlette.requests import Request
from starlette.responses import Response

from .. import __version__
from ..engine import Deadline, Prompt
from ..engine.backends import Predictor
from ..errors import UserError
from ..polygons import outer_polygons
from . import fastapi, httpx
from .answers import Answers, Opened, as_json
from .api import receive_json

VERSION = f"MobileSAM {__version__}"

_OUTPUTS = {"BrushLabels": "brushlabels", "PolygonLabels": "polygonlabels"}
_RUN_BITS = (3, 4, 8, 16)  # of a count, less one, in the four sizes of a run
_MAX_REDIRECTS = 3
_JSON = "application/json"
_JWT = re.compile(r"[\w-]+\.[\w-]+\.[\w-]+")


class Setup(BaseModel):
    """What Label Studio tells of itself when the backend is connected."""

    project: str | int | None = None
    hostname: str = ""
    access_token: str | None = None


class Params(BaseModel):
    """Parameters of a request for predictions."""

    context: dict[str, Any] | None = None


class PredictRequest(BaseModel):
    """Tasks, and what was drawn on the first one."""

    tasks: list[dict[str, Any]] = Field(max_length=1000)
    label_config: str = Field(default="", max_length=1_000_000)
    params: Params = Params()


@dataclass(frozen=True)
class Control:
    """A tag of the labelling configuration that regions of an image belong to.

    Attributes:
        kind: ``brushlabels`` or ``polygonlabels``.
        name: of the tag.
        image: name of the image's tag.
        labels: that it offers.
    """

    kind: str
    name: str
    image: str
    labels: tuple[str, ...]


@dataclass(frozen=True)
class Configuration:
    """What a project's labelling configuration has of images.

    Attributes:
        images: by the name of the image's tag, the field of a task that holds its address.
        controls: that masks can be given to, in their order.
    """

    images: dict[str, str]
    controls: tuple[Control, ...]


def read_configuration(text: str) -> Configuration:
    """Reads a labelling configuration.

    Raises:
        UserError: if it is not XML, or has no image or no tag for masks.
    """
    if "<!" in re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL):
        raise UserError("the labelling configuration declares entities, which are not read")
    try:
        tags = list(ElementTree.fromstring(text).iter())
    except ElementTree.ParseError as error:
        raise UserError(f"the labelling configuration is not XML: {error}") from error
    images = {
        tag.get("name", ""): tag.get("value", "").removeprefix("$")
        for tag in tags
        if tag.tag == "Image"
    }
    controls = tuple(
        Control(
            _OUTPUTS[tag.tag],
            tag.get("name", ""),
            tag.get("toName", ""),
            tuple(label.get("value", "") for label in tag.iter("Label")),
        )
        for tag in tags
        if tag.tag in _OUTPUTS
    )
    if not images or not controls:
        raise UserError(
            "the labelling configuration needs an Image, and BrushLabels or PolygonLabels for "
            "masks, besides the KeyPointLabels or RectangleLabels to prompt with"
        )
    return Configuration(images, controls)


@dataclass(frozen=True)
class Drawn:
    """What was drawn on an image.

    Attributes:
        image: name of the image's tag.
        label: of the last region.
        id: from the first region's, by which a further click replaces the mask of the one before.
        points: (x, y, label), x and y shares of the image's width and height.
        boxes: left, top, right and bottom, likewise.
    """

    image: str
    label: str
    id: str
    points: tuple[tuple[float, float, int], ...]
    boxes: tuple[tuple[float, float, float, float], ...]

    def prompts(self, width: int, height: int) -> list[Prompt]:
        """Returns the prompts on an image of that size.

        One prompt of all points and the box; of several boxes one each, without the points.
        """
        scale = np.array([width, height, width, height])
        boxes = [(np.array(box) * scale).tolist() for box in self.boxes]
        if len(boxes) > 1:
            return [Prompt(box=box) for box in boxes]
        points = [[x * width, y * height] for x, y, _ in self.points]
        return [Prompt(points, [label for *_, label in self.points], boxes[0] if boxes else None)]


def read_regions(context: dict[str, Any] | None) -> Drawn | None:
    """Reads the regions that were drawn; None if there are no points and boxes among them.

    Raises:
        UserError: if a region lacks something or holds something else.
    """
    points, boxes, last, first = [], [], None, None
    try:
        for region in (context or {}).get("result") or ():
            kind, value = region["type"], region.get("value", {})
            if kind == "keypointlabels":
                x, y = float(value["x"]) / 100, float(value["y"]) / 100
                points.append((x, y, int(bool(region.get("is_positive", True)))))
            elif kind == "rectanglelabels":
                boxes.append(_box(region, value))
            else:
                continue
            first = first or region
            last = region
        if first is None or last is None:
            return None
        numbers = np.array([number for shape in (*points, *boxes) for number in shape])
        if not (np.abs(numbers) <= 100).all():  # NaN is not
            raise UserError("the regions lie far outside of the image")
        return Drawn(
            image=str(last["to_name"]),
            label=str(last["value"][last["type"]][0]),
            id=sha256(str(first.get("id", "")).encode()).hexdigest()[:10],
            points=tuple(points),
            boxes=tuple(boxes),
        )
    except (AttributeError, IndexError, KeyError, OverflowError, TypeError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(
            f"a region of the context is not as Label Studio has them: {error!r}"
        ) from error


def _box(region: dict[str, Any], value: dict[str, Any]) -> tuple[float, float, float, float]:
    """Returns the box around a rectangle, which may be turned around its first corner."""
    sides = np.array([float(region["original_width"]), float(region["original_height"])]) / 100
    corner, size = (
        [float(value[name]) for name in names] for names in (("x", "y"), ("width", "height"))
    )
    angle = np.deg2rad(float(value.get("rotation", 0)))
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    corners = np.array([[0, 0], [1, 0], [1, 1], [0, 1]]) * (size * sides)  # in pixels
    corners = (corners @ turn.T / sides + corner) / 100
    (left, top), (right, bottom) = corners.min(axis=0), corners.max(axis=0)
    return float(left), float(top), float(right), float(bottom)


def encode_brush(mask: NDArray[np.bool_]) -> list[int]:
    """Returns a mask (H, W) in Label Studio's run lengths of RGBA pixels, row by row.

    The bytes hold bits, the highest first: 32 of the number of values, 5 of a value's bits less
    one, four times 4 of the bits of a count less one; then for each run a 1, 2 for which of the
    four sizes, the count less one, and the value, which is 0 or 255.
    """
    flat = mask.ravel()
    starts = np.flatnonzero(np.diff(flat, prepend=~flat[:1]))
    lengths = 4 * np.diff(starts, append=len(flat))
    bits = [f"{4 * len(flat):032b}", f"{7:05b}", *(f"{size - 1:04b}" for size in _RUN_BITS)]
    for length, value in zip(lengths.tolist(), flat[starts].tolist(), strict=True):
        while length:
            some = min(length, 1 << _RUN_BITS[-1])
            which = next(i for i, size in enumerate(_RUN_BITS) if some <= 1 << size)
            bits.append(f"1{which:02b}{some - 1:0{_RUN_BITS[which]}b}{255 * value:08b}")
            length -= some
    text = "".join(bits)
    padded = np.frombuffer(text.encode(), np.uint8) - ord("0")
    encoded: list[int] = np.packbits(padded).tolist()
    return encoded


class Files:
    """The images of tasks: below the root, in Label Studio, or on hosts that are allowed.

    Attributes:
        hosts: names, or names with ports, of the hosts that may be asked.
        token: of Label Studio's API; what ``/setup`` brings if None.
    """

    def __init__(
        self, answers: Answers, hosts: Collection[str], url: str | None, token: str | None
    ) -> None:
        self.hosts = frozenset(host.lower() for host in hosts)
        self.token = token
        self._answers = answers
        self._is_known = url is not None
        self._label_studio = url
        if url is not None:
            self.hosts |= {urlsplit(url).netloc.lower()}
        self._given_token: str | None = None

    def set_up(self, setup: Setup) -> None:
        """Keeps a token, and where Label Studio is unless that is known, if the host is allowed."""
        if self._is_known:
            self._given_token = setup.access_token
        elif setup.hostname and self._is_allowed(setup.hostname):
            self._label_studio, self._given_token = setup.hostname, setup.access_token

    async def open(self, address: str, deadline: Deadline) -> Callable[[], Opened]:
        """Returns a function that decodes the image at an address in a task.

        Raises:
            NotFound: if there is no such file below the root.
            UserError: if its host is not allowed, or does not give it.
        """
        try:
            parts = urlsplit(address)
        except ValueError as error:
            raise UserError(f"the image of the task has no address: {error}") from error
        given = parse_qs(parts.query).get("d")
        if parts.path.rstrip("/").endswith("/data/local-files") and given:
            path = self._answers.find_path(given[0])
            return partial(self._answers.read, path, path.name)
        if not parts.scheme and not address.startswith("/"):
            path = self._answers.find_path(unquote(address))
            return partial(self._answers.read, path, path.name)
        content = await self._fetch(address, deadline)
        return partial(self._answers.read, io.BytesIO(content), "the image of the task")

    async def _fetch(self, address: str, deadline: Deadline) -> bytes:
        if address.startswith("/"):
            if self._label_studio is None:
                raise UserError(
                    "the image lies in Label Studio, whose host is not allowed: start this server "
                    "with --allow-host, and connect it again in the project's settings"
                )
            address = urljoin(self._label_studio, address)
        most = self._answers.engine.limits.max_bytes
        try:
            async with httpx.AsyncClient(timeout=deadline.left or 1, trust_env=False) as client:
                for _ in range(_MAX_REDIRECTS + 1):
                    if not self._is_allowed(address):
                        host = urlsplit(address).netloc.rpartition("@")[2]
                        raise UserError(
                            f"images are not fetched from {host!r}: allow it with --allow-host"
                        )
                    headers = await self._authorization(client, address)
                    async with client.stream("GET", address, headers=headers) as answer:
                        if answer.is_redirect:
                            address = urljoin(address, answer.headers["location"])
                            continue
                        if answer.is_error:
                            raise UserError(
                                f"the image of the task was not given: HTTP {answer.status_code}"
                            )
                        return await _read(answer, most)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise UserError(
                f"the image of the task cannot be fetched: {error or type(error).__name__}"
            ) from error
        raise UserError("the image of the task is redirected too often")

    async def _authorization(self, client: Any, address: str) -> dict[str, str]:
        """Returns the headers for Label Studio's own host; no other one gets its token."""
        token = self.token or self._given_token
        if token is None or self._label_studio is None:
            return {}
        if urlsplit(address)[:2] != urlsplit(self._label_studio)[:2]:
            return {}
        if not _JWT.fullmatch(token):
            return {"authorization": f"Token {token}"}
        # A personal access token, for which Label Studio gives one that lasts minutes.
        url = urljoin(self._label_studio, "/api/token/refresh")
        answer = await client.post(url, json={"refresh": token})
        if answer.is_error:
            raise UserError(f"Label Studio refuses the token: HTTP {answer.status_code}")
        return {"authorization": f"Bearer {answer.json()['access']}"}

    def _is_allowed(self, address: str) -> bool:
        try:
            parts = urlsplit(address)
            host, port = (parts.hostname or "").lower(), parts.port
        except ValueError:
            return False
        known = {host, f"{host}:{port or (443 if parts.scheme == 'https' else 80)}"}
        return parts.scheme in ("http", "https") and bool(host) and bool(known & self.hosts)


async def _read(answer: Any, max_bytes: int) -> bytes:
    content = bytearray()
    async for chunk in answer.aiter_bytes():
        content += chunk
        if len(content) > max_bytes:
            raise UserError(f"the image of the task has more than {max_bytes:,} bytes")
    return bytes(content)


def add_label_studio(
    api: fastapi.FastAPI,
    hosts: Collection[str] = (),
    url: str | None = None,
    token: str | None = None,
) -> None:
    """Adds Label Studio's endpoints to a service.

    Args:
        api: what ``create_api`` returned.
        hosts: names, or names with ports, from which images may be fetched: Label Studio's own, for
            uploads, and those of presigned URLs.
        url: of Label Studio, for uploads; None uses what it sends, if that host is allowed.
        token: of Label Studio's API, for uploads; None uses what Label Studio sends, which it
            accepts if legacy tokens are enabled there.
    """
    answers: Answers = api.state.answers
    files = Files(answers, hosts, url, token)

    @api.get("/health", include_in_schema=False)
    @api.get("/", include_in_schema=False)
    async def health() -> dict[str, str]:
        return {"status": "UP", "model_class": "MobileSAM", "model_version": VERSION}

    @api.post("/setup", include_in_schema=False)
    async def setup(request: Request) -> dict[str, str]:
        engine = answers.engine
        files.set_up(await receive_json(request, Setup, engine, engine.deadline()))
        return {"model_version": VERSION}

    @api.get("/versions", include_in_schema=False)
    async def versions() -> dict[str, list[str]]:
        return {"versions": [VERSION]}

    @api.post("/webhook", include_in_schema=False, status_code=201)
    async def webhook() -> dict[str, Literal["ok"]]:
        return {"status": "ok"}

    @api.post("/predict", include_in_schema=False)
    async def predict(request: Request) -> Response:
        deadline = answers.engine.deadline()
        asked = await receive_json(request, PredictRequest, answers.engine, deadline)
        drawn = read_regions(asked.params.context)
        if drawn is None or not asked.tasks:  # before anything is drawn there is nothing to say
            empty = {"result": [], "score": 0.0, "model_version": VERSION}
            return Response(as_json({"results": [empty for _ in asked.tasks]}), media_type=_JSON)
        configuration = read_configuration(asked.label_config)
        control = choose_control(configuration, drawn)
        address = asked.tasks[0].get("data", {}).get(configuration.images.get(drawn.image))
        if not isinstance(address, str):
            raise UserError(f"the task has no image for the tag {drawn.image!r}")
        opening = await files.open(address, deadline)
        work = partial(_segment, answers, drawn, control, deadline)
        result, score = await answers.on_image(opening, work, deadline)
        prediction = {"result": result, "score": score, "model_version": VERSION}
        return Response(as_json({"results": [prediction]}), media_type=_JSON)


def choose_control(configuration: Configuration, drawn: Drawn) -> Control:
    """Returns the tag for a mask: the first on this image with its label, or else the first.

    Raises:
        UserError: if there is none on this image.
    """
    controls = [each for each in configuration.controls if each.image == drawn.image]
    if not controls:
        raise UserError(f"no BrushLabels or PolygonLabels are for the image {drawn.image!r}")
    return next((each for each in controls if drawn.label in each.labels), controls[0])


def _segment(
    answers: Answers,
    drawn: Drawn,
    control: Control,
    deadline: Deadline,
    key: str,
    predictor: Predictor,
) -> tuple[list[dict[str, Any]], float]:
    """Returns regions as Label Studio has them, and the mean of their scores."""
    height, width = predictor.original_size
    prompts = drawn.prompts(width, height)
    answers.engine.check_prompts([len(prompt.points) for prompt in prompts])
    regions, scores = [], []
    for index, ((mask, score),) in answers.decode(predictor, prompts, deadline):
        scores.append(score)
        for part, value in enumerate(_values(control, mask)):
            regions.append(
                {
                    "id": f"{drawn.id}-{index}-{part}",
                    "type": control.kind,
                    "from_name": control.name,
                    "to_name": control.image,
                    "original_width": int(width),
                    "original_height": int(height),
                    "image_rotation": 0,
                    "value": {**value, control.kind: [drawn.label]},
                    "score": score,
                    "readonly": False,
                }
            )
    return regions, float(np.mean(scores))


def _values(control: Control, mask: NDArray[np.bool_]) -> Iterator[dict[str, Any]]:
    """Yields the shapes of a mask: one brush, or a polygon for each of its parts."""
    if not mask.any():
        return
    if control.kind == "brushlabels":
        yield {"format": "rle", "rle": encode_brush(mask)}
        return
    height, width = mask.shape
    for polygon in outer_polygons(mask):
        points = polygon * [100 / width, 100 / height]
        yield {"points": points.tolist(), "closed": True}
