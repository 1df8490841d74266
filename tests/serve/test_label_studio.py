"""Label Studio's ML backend protocol: as its editor sends clicks, and with the real server."""

import json
import os
import shutil
import socket
import subprocess
import threading
import time
import venv
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray

from mobile_sam_plugin import MobileSam, SamPredictor
from mobile_sam_plugin.engine import Engine, TorchBackend
from mobile_sam_plugin.serve.api import create_api
from mobile_sam_plugin.serve.label_studio import VERSION, add_label_studio, encode_brush

from ..conftest import PHOTOGRAPHS
from .conftest import serving

CONFIGURATION = """<View>
  <Image name="picture" value="$image" zoom="true"/>
  <!-- brushes first -->
  <BrushLabels name="brush" toName="picture"> <Label value="Cup"/><Label value="Plate"/>
  </BrushLabels>
  <PolygonLabels name="polygon" toName="picture"><Label value="Spoon"/></PolygonLabels>
  <KeyPointLabels name="point" toName="picture" smart="true">
    <Label value="Cup"/><Label value="Plate"/><Label value="Spoon"/>
  </KeyPointLabels>
  <RectangleLabels name="box" toName="picture" smart="true"><Label value="Spoon"/></RectangleLabels>
</View>"""


def click(x: float, y: float, label: str = "Cup", positive: bool = True) -> dict[str, Any]:
    """A smart keypoint as the editor sends it, on an image of 600 x 400 pixels."""
    return {
        "id": "x7YtR3kQpL",
        "type": "keypointlabels",
        "from_name": "point",
        "to_name": "picture",
        "original_width": 600,
        "original_height": 400,
        "image_rotation": 0,
        "is_positive": positive,
        "origin": "manual",
        "value": {"x": x / 6, "y": y / 4, "width": 0.3, "keypointlabels": [label]},
    }


def rectangle(x: float, y: float, width: float, height: float, turn: float = 0) -> dict[str, Any]:
    value = {"x": x / 6, "y": y / 4, "width": width / 6, "height": height / 4, "rotation": turn}
    shared = {**click(0, 0), "type": "rectanglelabels", "from_name": "box"}
    return {**shared, "value": {**value, "rectanglelabels": ["Spoon"]}}


def ask(client: httpx.Client, image: str, *regions: dict[str, Any]) -> httpx.Response:
    task = {"id": 7, "data": {"image": image}}
    params = {"login": None, "password": None, "context": {"result": list(regions)}}
    request = {"tasks": [task], "label_config": CONFIGURATION, "params": params, "project": "1.2"}
    return client.post("/predict", json=request)


def decode_brush(rle: list[int], height: int, width: int) -> NDArray[np.bool_]:
    """Label Studio's run lengths, bit by bit, as its converter reads them."""
    bits = "".join(f"{byte:08b}" for byte in rle)
    place = 0

    def read(count: int) -> int:
        nonlocal place
        place += count
        return int(bits[place - count : place], 2)

    total, word = read(32), read(5) + 1
    sizes = [read(4) + 1 for _ in range(4)]
    values: list[int] = []
    while len(values) < total:
        run, count = read(1), read(sizes[read(2)]) + 1
        if run:
            values += [read(word)] * count
        else:
            values += [read(word) for _ in range(count)]
    pixels = np.array(values).reshape(height, width, 4)
    assert {*np.unique(pixels)} <= {0, 255}
    assert (pixels == pixels[..., :1]).all()
    return pixels[..., 3] == 255


@contextmanager
def folder_server(folder: Path) -> Iterator[str]:
    """Serves the files of a folder over HTTP; yields host and port."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

        def do_GET(self) -> None:
            if self.path.startswith("/away"):
                self.send_response(302)
                self.send_header("location", "http://169.254.169.254/latest/meta-data")
                self.end_headers()
            elif self.headers.get("authorization", "Token t") != "Token t":
                self.send_error(403)
            else:
                super().do_GET()

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(scope="module")
def remote() -> Iterator[str]:
    with folder_server(PHOTOGRAPHS) as address:
        yield address


@pytest.fixture(scope="module")
def backend(torch_backend: TorchBackend, root: Path, remote: str) -> Iterator[httpx.Client]:
    api = create_api(Engine(torch_backend), root)
    add_label_studio(api, [remote])
    with serving(api) as client:
        yield client


@pytest.fixture(scope="module")
def predictor(tiny_sam: MobileSam, coffee: NDArray[np.uint8]) -> SamPredictor:
    predictor = SamPredictor(tiny_sam)
    predictor.set_image(coffee)
    return predictor


def test_a_click_becomes_a_brush(backend: httpx.Client, predictor: SamPredictor) -> None:
    clicks = click(300, 130), click(40, 30, positive=False)
    answer = ask(backend, "/data/local-files/?d=photos/coffee.png", *clicks).json()
    ((prediction),) = answer["results"]
    (region,) = prediction["result"]
    masks, scores, _ = predictor.predict([[300, 130], [40, 30]], [1, 0], multimask_output=False)
    np.testing.assert_array_equal(decode_brush(region["value"]["rle"], 400, 600), masks[0])
    assert region["value"]["brushlabels"] == ["Cup"] and region["value"]["format"] == "rle"
    assert (region["from_name"], region["to_name"]) == ("brush", "picture")
    assert (region["original_width"], region["original_height"]) == (600, 400)
    assert region["score"] == prediction["score"] == pytest.approx(scores[0])
    assert prediction["model_version"] == VERSION
    # A further click replaces the region, so that it has the same id.
    (other,) = ask(backend, "photos/coffee.png", click(300, 130)).json()["results"][0]["result"]
    assert other["id"] == region["id"]


def test_a_box_becomes_polygons(backend: httpx.Client, predictor: SamPredictor) -> None:
    answer = ask(backend, "photos/coffee.png", rectangle(170, 10, 260, 290)).json()
    regions = answer["results"][0]["result"]
    (mask,), *_ = predictor.predict(box=[170, 10, 430, 300], multimask_output=False)
    assert regions and {region["type"] for region in regions} == {"polygonlabels"}
    assert len({region["id"] for region in regions}) == len(regions)
    ys, xs = np.nonzero(mask)
    points = np.concatenate([region["value"]["points"] for region in regions]) * [6, 4]
    np.testing.assert_allclose(points.min(axis=0), [xs.min(), ys.min()], atol=1e-6)
    np.testing.assert_allclose(points.max(axis=0), [xs.max() + 1, ys.max() + 1], atol=1e-6)
    assert regions[0]["value"]["polygonlabels"] == ["Spoon"]


def test_a_turned_box_is_taken_as_the_box_around_it(
    backend: httpx.Client, predictor: SamPredictor
) -> None:
    turned = ask(backend, "photos/coffee.png", rectangle(430, 10, 290, 260, turn=90)).json()
    straight = ask(backend, "photos/coffee.png", rectangle(170, 10, 260, 290)).json()
    assert turned["results"][0]["result"] == straight["results"][0]["result"]


def test_several_boxes_become_a_mask_each(backend: httpx.Client) -> None:
    boxes = rectangle(170, 10, 260, 290), rectangle(10, 10, 100, 100)
    regions = ask(backend, "photos/coffee.png", *boxes).json()["results"][0]["result"]
    assert {region["id"].split("-")[1] for region in regions} == {"0", "1"}


def test_before_a_click_there_is_nothing(backend: httpx.Client) -> None:
    tasks = [{"id": number, "data": {"image": "a.png"}} for number in range(3)]
    contexts: list[dict[str, Any] | None] = [None, {}, {"result": []}]
    for context in contexts:
        request = {"tasks": tasks, "label_config": CONFIGURATION, "params": {"context": context}}
        results = backend.post("/predict", json=request).json()["results"]
        assert [each["result"] for each in results] == [[], [], []]


def test_what_label_studio_asks_when_it_connects(backend: httpx.Client) -> None:
    assert backend.get("/health").json()["status"] == "UP"
    setup = {"project": "1.2", "schema": CONFIGURATION, "hostname": "", "access_token": "t"}
    assert backend.post("/setup", json=setup).json() == {"model_version": VERSION}
    assert backend.get("/versions").json() == {"versions": [VERSION]}
    event = {"action": "ANNOTATION_CREATED", "project": {"id": 1}}
    assert backend.post("/webhook", json=event).status_code == 201


def test_images_are_fetched_from_hosts_that_are_allowed(
    backend: httpx.Client, remote: str, root: Path
) -> None:
    presigned = f"http://{remote}/coffee.png?X-Amz-Signature=abc"
    assert ask(backend, presigned, click(300, 130)).status_code == 200
    upload = "/coffee.png"  # of Label Studio, which has not said where it is
    assert "host is not allowed" in ask(backend, upload, click(1, 1)).json()["detail"]
    for hostname, status in (("http://evil.example", 422), (f"http://{remote}", 200)):
        setup = {"project": "1.2", "hostname": hostname, "access_token": "t"}
        backend.post("/setup", json=setup)
        assert ask(backend, upload, click(300, 130)).status_code == status


def test_uploads_come_from_the_label_studio_that_is_named(
    torch_backend: TorchBackend, remote: str
) -> None:
    api = create_api(Engine(torch_backend))
    add_label_studio(api, url=f"http://{remote}")
    with serving(api) as client:
        client.post("/setup", json={"hostname": "http://localhost:8080", "access_token": "t"})
        assert ask(client, "/coffee.png", click(300, 130)).status_code == 200


@pytest.mark.parametrize(
    ("address", "status", "message"),
    [
        ("http://evil.example/a.png", 422, "not fetched from 'evil.example': allow it"),
        ("http://{remote}@evil.example/a.png", 422, "not fetched from 'evil.example'"),
        ("http://{remote}/away", 422, "not fetched from '169.254.169.254'"),
        ("http://{remote}/missing.png", 422, "HTTP 404"),
        ("ftp://{remote}/coffee.png", 422, "not fetched from"),
        ("http://[", 422, ""),
        ("/data/local-files/?d=../secret.png", 404, "there is no file"),
        ("../secret.png", 404, "there is no file"),
        ("file:///etc/passwd", 422, "not fetched from ''"),
    ],
)
def test_other_addresses_are_refused(
    backend: httpx.Client, remote: str, address: str, status: int, message: str
) -> None:
    answer = ask(backend, address.format(remote=remote), click(300, 130))
    assert answer.status_code == status and message in answer.json()["detail"]


@pytest.mark.parametrize(
    "change",
    [
        {"type": None},
        {"value": {"x": float("1e9"), "y": 0, "keypointlabels": ["Cup"]}},
        {"value": {"x": 1, "y": "up", "keypointlabels": ["Cup"]}},
        {"value": {"x": 1, "y": 1, "keypointlabels": []}},
        {"to_name": "other"},
        {"value": []},
    ],
)
def test_regions_that_cannot_be_read(backend: httpx.Client, change: dict[str, Any]) -> None:
    answer = ask(backend, "photos/coffee.png", {**click(300, 130), **change})
    empty = change == {"type": None}  # another kind of region is left out
    assert answer.status_code == (200 if empty else 422)


@pytest.mark.parametrize("text", ["", "<View", "<View/>", "<!DOCTYPE a [<!ENTITY b 'c'>]><View/>"])
def test_configurations_that_cannot_be_read(backend: httpx.Client, text: str) -> None:
    request = {
        "tasks": [{"data": {"image": "photos/coffee.png"}}],
        "label_config": text,
        "params": {"context": {"result": [click(300, 130)]}},
    }
    answer = backend.post("/predict", json=request)
    assert answer.status_code == 422 and "configuration" in answer.json()["detail"]


def test_brushes_of_any_mask() -> None:
    random = np.random.default_rng(0)
    for density in (0, 0.001, 0.5, 1):
        mask = random.random((150, 170)) < density
        np.testing.assert_array_equal(decode_brush(encode_brush(mask), 150, 170), mask)


# From here on with the real server.

USER_TOKEN = "0123456789abcdef0123456789abcdef01234567"
CONVERT = """import json, sys, numpy
from label_studio_sdk.converter.brush import decode_rle
region = json.load(sys.stdin)
size = region["original_height"], region["original_width"], 4
numpy.save(sys.argv[1], decode_rle(region["value"]["rle"]).reshape(size)[..., 3])"""


@pytest.fixture(scope="module")
def label_studio_python(request: pytest.FixtureRequest) -> Path:
    """The interpreter of an environment with Label Studio, which is kept between runs."""
    assert request.config.cache is not None
    folder = request.config.cache.mkdir("label-studio") / "environment"
    python = folder / "bin" / "python"
    if not (folder / "bin" / "label-studio").exists():
        venv.create(folder, with_pip=True, clear=True)
        install = [str(python), "-m", "pip", "install", "--quiet", "label-studio"]
        try:
            done = subprocess.run(install, capture_output=True, text=True, timeout=900)
        except subprocess.TimeoutExpired:
            shutil.rmtree(folder)
            pytest.skip("Label Studio cannot be installed here: pip took more than 15 minutes")
        if done.returncode:
            shutil.rmtree(folder)
            pytest.skip(f"Label Studio cannot be installed here: {done.stderr[-300:]}")
    return python


@contextmanager
def label_studio(python: Path, folder: Path) -> Iterator[httpx.Client]:
    """Starts Label Studio on loopback with an empty database; yields a client of its API.

    A database takes it minutes to create, so an empty one is kept beside the environment.
    """
    database = folder / "label_studio.sqlite3"
    empty = python.parents[2] / database.name
    if empty.exists():
        shutil.copy(empty, database)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    quiet = ("COLLECT_ANALYTICS", "LATEST_VERSION_CHECK", "SENTRY_RATE", "FRONTEND_SENTRY_RATE")
    command = [str(python.parent / "label-studio"), "start", "--no-browser", "--port", str(port)]
    command += ["--internal-host", "127.0.0.1", "--data-dir", str(folder)]
    command += ["--username", "a@example.com", "--password", "secret-of-a-test"]
    command += ["--user-token", USER_TOKEN, "--enable-legacy-api-token"]
    with open(folder / "log", "w") as log:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env={
                **os.environ,
                **dict.fromkeys(quiet, "0"),
                "LABEL_STUDIO_BASE_DATA_DIR": str(folder),
                # Otherwise it asks no backend on loopback, and tells it of no annotations.
                "ML_BLOCK_LOCAL_IP": "false",
                "USE_DEFAULT_BANNED_SUBNETS": "false",
            },
            stdout=log,
            stderr=log,
        )
    try:
        headers = {"authorization": f"Token {USER_TOKEN}"}
        address = f"http://127.0.0.1:{port}"
        with httpx.Client(base_url=address, headers=headers, timeout=120) as client:
            for _ in range(1200):
                try:
                    if client.get("/health").is_success:
                        break
                except httpx.TransportError:
                    pass
                assert process.poll() is None, (folder / "log").read_text()[-2000:]
                time.sleep(0.5)
            if not empty.exists():
                shutil.copy(database, empty)
            yield client
    finally:
        process.terminate()
        process.wait(60)


@pytest.mark.slow
@pytest.mark.process
def test_the_real_label_studio_gets_the_predictors_mask(
    label_studio_python: Path,
    torch_backend: TorchBackend,
    predictor: SamPredictor,
    tmp_path: Path,
) -> None:
    with label_studio(label_studio_python, tmp_path) as studio:
        api = create_api(Engine(torch_backend))
        add_label_studio(api, url=str(studio.base_url))
        with serving(api) as backend:
            made = studio.post("/api/projects", json={"label_config": CONFIGURATION})
            project = made.raise_for_status().json()["id"]
            image = {"image": ("coffee.png", (PHOTOGRAPHS / "coffee.png").read_bytes())}
            studio.post(f"/api/projects/{project}/import", files=image).raise_for_status()
            (task,) = studio.get("/api/tasks", params={"project": project}).json()["tasks"]
            connection = {"project": project, "url": str(backend.base_url), "is_interactive": True}
            connected = studio.post("/api/ml", json=connection)
            assert connected.is_success, connected.text
            asked = {"task": task["id"], "context": {"result": [click(300, 130)]}}
            number = connected.json()["id"]
            answer = studio.post(f"/api/ml/{number}/interactive-annotating", json=asked).json()
            assert "data" in answer, answer
            (region,) = answer["data"]["result"]
            annotation = {"result": [region]}
            saved = studio.post(f"/api/tasks/{task['id']}/annotations", json=annotation)
            (region,) = saved.raise_for_status().json()["result"]
    subprocess.run(
        [str(label_studio_python), "-c", CONVERT, str(tmp_path / "mask.npy")],
        input=json.dumps(region),
        text=True,
        check=True,
    )
    masks, scores, _ = predictor.predict([[300, 130]], [1])
    np.testing.assert_array_equal(np.load(tmp_path / "mask.npy") == 255, masks[scores.argmax()])
    assert region["value"]["brushlabels"] == ["Cup"] and region["from_name"] == "brush"
