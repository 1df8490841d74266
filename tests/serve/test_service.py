"""The HTTP service, asked over a socket as clients do."""

import base64
import ctypes
import io
import json
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pycocotools.mask
import pytest
from numpy.typing import NDArray
from PIL import Image

from mobile_sam_plugin import MobileSam, SamAutomaticMaskGenerator, SamPredictor
from mobile_sam_plugin.cli import main
from mobile_sam_plugin.engine import Backend, Engine, Limits, OnnxBackend, TorchBackend
from mobile_sam_plugin.records import decode_mask, encode_mask
from mobile_sam_plugin.serve.api import create_api
from mobile_sam_plugin.serve.schemas import RunLengths

from ..conftest import PHOTOGRAPHS
from .conftest import serving

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "serve.md"
COFFEE = (PHOTOGRAPHS / "coffee.png").read_bytes()
CUP: dict[str, Any] = {"points": [[300, 130]], "labels": [1]}


def upload(client: httpx.Client, endpoint: str, image: bytes = COFFEE, **request: Any) -> Any:
    return client.post(
        f"/v1/{endpoint}", files={"image": ("a.png", image)}, data={"request": json.dumps(request)}
    )


@pytest.fixture(scope="module")
def coffee_id(service: httpx.Client) -> str:
    answer = upload(service, "predict", prompts=[CUP]).json()
    assert answer["image"].items() >= {"width": 600, "height": 400}.items()
    return str(answer["image"]["sha256"])


@pytest.fixture(scope="module")
def predictor(tiny_sam: MobileSam, coffee: NDArray[np.uint8]) -> SamPredictor:
    predictor = SamPredictor(tiny_sam)
    predictor.set_image(coffee)
    return predictor


def test_an_image_by_upload_digest_and_path_gives_the_predictors_masks(
    service: httpx.Client, coffee_id: str, predictor: SamPredictor
) -> None:
    masks, scores, _ = predictor.predict(CUP["points"], CUP["labels"])
    best = int(scores.argmax())
    given: list[dict[str, str] | None]
    given = [None, {"sha256": coffee_id}, {"path": "photos/coffee.png"}]
    for image in given:
        if image is None:
            answer = upload(service, "predict", prompts=[CUP])
        else:
            answer = service.post("/v1/predict", json={"image": image, "prompts": [CUP]})
        assert answer.status_code == 200, answer.text
        assert answer.json()["image"]["sha256"] == coffee_id
        (((mask),),) = answer.json()["masks"]
        np.testing.assert_array_equal(decode_mask(mask), masks[best])
        assert mask["area"] == masks[best].sum()
        assert mask["predicted_iou"] == pytest.approx(scores[best], abs=1e-6)


def test_prompts_of_one_image_in_three_forms(
    service: httpx.Client, coffee_id: str, predictor: SamPredictor
) -> None:
    box = [170, 10, 430, 300]
    prompts = [{**CUP, "box": box}, {"box": box}, {**CUP, "multimask": True}]
    expected = [
        predictor.predict(CUP["points"], CUP["labels"], box, multimask_output=False)[0],
        predictor.predict(box=box, multimask_output=False)[0],
        predictor.predict(CUP["points"], CUP["labels"])[0],
    ]
    asked = {"image": {"sha256": coffee_id}, "prompts": prompts}
    for form in ("rle", "png", "polygons"):
        answer = service.post("/v1/predict", json={**asked, "format": form}).json()
        assert [len(candidates) for candidates in answer["masks"]] == [1, 1, 3]
        for candidates, masks in zip(answer["masks"], expected, strict=True):
            for candidate, mask in zip(candidates, masks, strict=True):
                segmentation = candidate["segmentation"]
                if form == "png":
                    png = io.BytesIO(base64.b64decode(segmentation))
                    found = np.asarray(Image.open(png)) == 255
                elif form == "polygons":
                    rles = pycocotools.mask.frPyObjects(segmentation, 400, 600)
                    found = pycocotools.mask.decode(pycocotools.mask.merge(rles)).astype(bool)
                    assert not (mask & ~found).any()  # holes alone are lost
                    continue
                else:
                    found = decode_mask(candidate)
                np.testing.assert_array_equal(found, mask)


def test_a_mask_is_refined(service: httpx.Client, coffee_id: str, predictor: SamPredictor) -> None:
    mask = np.zeros((400, 600), bool)
    mask[90:200, 200:400] = True
    expected, *_ = predictor.predict(
        CUP["points"], CUP["labels"], mask_input=mask, multimask_output=False
    )
    compressed: Any = encode_mask(mask)
    plain: Any = RunLengths(**compressed).expand()
    for rle in (compressed, plain):
        prompt = {**CUP, "mask": rle}
        asked = {"image": {"sha256": coffee_id}, "prompts": [prompt]}
        answer = service.post("/v1/predict", json=asked)
        (((found),),) = answer.json()["masks"]
        np.testing.assert_array_equal(decode_mask(found), expected[0])


def test_everything(service: httpx.Client, coffee_id: str, tiny_sam: MobileSam) -> None:
    options: dict[str, Any] = {"points_per_side": 2, "pred_iou_thresh": 0}
    options["stability_score_thresh"] = 0
    generator = SamAutomaticMaskGenerator(tiny_sam, output_mode="coco_rle", **options)
    with Image.open(PHOTOGRAPHS / "coffee.png") as image:
        records = [record for record in generator.generate(image) if record["area"]]
    answer = service.post("/v1/everything", json={"image": {"sha256": coffee_id}, **options})
    masks = answer.json()["masks"]
    assert len(masks) == len(records) > 3
    for mask, record in zip(masks, records, strict=True):
        assert mask["segmentation"] == record["segmentation"]
        assert mask["stability_score"] == pytest.approx(record["stability_score"])
        assert mask["bbox"][2] == record["bbox"][2] + 1  # COCO's count pixels


def test_the_embedding_is_for_decoders_elsewhere(
    service: httpx.Client, coffee_id: str, onnx_backend: OnnxBackend, predictor: SamPredictor
) -> None:
    answer = service.post("/v1/embed", json={"image": {"sha256": coffee_id}})
    features = np.load(io.BytesIO(answer.content))
    np.testing.assert_array_equal(features, predictor.get_image_embedding().numpy())
    assert answer.headers["x-image-sha256"] == coffee_id
    assert answer.headers["x-original-size"] == "400,600"
    assert answer.headers["x-input-size"] == "171,256"
    client: Any = onnx_backend.graphs
    client.features, client.original_size, client.input_size = features, (400, 600), (171, 256)
    client.is_image_set = True
    masks, *_ = client.predict(CUP["points"], CUP["labels"])
    expected, *_ = predictor.predict(CUP["points"], CUP["labels"])
    assert (masks != expected).mean() < 1e-3


def test_it_runs_without_torch(onnx_folder: Path, onnx_backend: Backend) -> None:
    with serving(create_api(Engine(onnx_backend))) as client:
        answer = upload(client, "predict", prompts=[CUP])
        assert answer.status_code == 200
        info = client.get("/v1/info").json()
        assert info["backend"] == "onnx" and info["encoder"].startswith("onnx-256-")


@pytest.mark.parametrize(
    "path",
    [
        "../secret.png",
        "photos/../../secret.png",
        "/etc/passwd",
        "link.png",
        "pipe.png",
        "photos",
        "missing.png",
        "photos/coffee.png\0",
        "a/" * 2000,
    ],
)
def test_paths_that_lead_elsewhere_or_nowhere_are_told_alike(
    service: httpx.Client, path: str
) -> None:
    answer = service.post("/v1/predict", json={"image": {"path": path}, "prompts": [CUP]})
    assert answer.status_code == 404 and "there is no file" in answer.json()["detail"]


def huge_png(width: int, height: int) -> bytes:
    """A small file whose header promises many pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = zlib.compress(bytes(1000))
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (COFFEE[:9000], "cannot be read"),
        (b"", "not an image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image"),
        (huge_png(1200, 900), "too large: it has 1,200 x 900 pixels, the limit here is 1,000,000"),
        (huge_png(2**31 - 1, 2**31 - 1), "too large to be safe"),
    ],
)
def test_images_that_cannot_be_used(service: httpx.Client, image: bytes, message: str) -> None:
    answer = upload(service, "predict", image, prompts=[CUP])
    assert answer.status_code == 422 and message in answer.json()["detail"]


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"prompts": []}, "prompts: List should have at least 1 item"),
        ({"prompts": [{}]}, "prompts.0: Value error, give points and labels, a box or a mask"),
        ({"prompts": [{"points": [[1, 2]]}]}, "points and labels must be equally many"),
        ({"prompts": [{"points": [[1, 2]], "labels": [2]}]}, "prompts.0.labels.0"),
        ({"prompts": [{"points": [[1e30, 2]], "labels": [1]}]}, "prompts.0.points.0.0"),
        ({"prompts": [{"box": [9, 9, 1, 1]}]}, "box must be left, top, right, bottom"),
        ({"prompts": [CUP] * 9}, "9 prompts are too many: give up to 8"),
        (
            {"prompts": [{"points": [[1, 2]] * 9, "labels": [1] * 9}]},
            "9 points are too many",
        ),
        ({"prompts": [CUP], "colour": 1}, "colour: Extra inputs are not permitted"),
        ({"prompts": [CUP], "format": "gif"}, "format: Input should be 'rle', 'polygons' or 'png'"),
        ({"prompts": [{**CUP, "mask": {"size": [4, 6], "counts": [24]}}]}, "has the size [4, 6]"),
        ({"prompts": [{**CUP, "mask": {"size": [400, 600], "counts": [7]}}]}, "do not add up"),
        ({"prompts": [{**CUP, "mask": {"size": [400, 600], "counts": "oo"}}]}, "damaged"),
        ({"prompts": [{**CUP, "mask": {"size": [400, 600], "counts": "é"}}]}, "damaged"),
    ],
)
def test_requests_that_cannot_be_used(
    service: httpx.Client, request_: dict[str, Any], message: str
) -> None:
    answer = upload(service, "predict", **request_)
    assert answer.status_code == 422 and message in answer.json()["detail"]


@pytest.mark.parametrize(
    ("kind", "body", "status"),
    [
        ("application/json", b"", 422),
        ("application/json", b"{", 422),
        ("application/json", b"[" * 100_000, 422),
        ("application/json", b'{"prompts": [{"box": [NaN, 0, 1, 1]}]}', 422),
        ("application/json", b'{"prompts": "\xff\xfe"}', 422),
        ("application/json", b" " * (2**20 + 1), 413),
        ("application/x-www-form-urlencoded", b"image=1", 415),
        ("multipart/form-data", b"", 422),
        ("multipart/form-data; boundary=a", b"--b\r\n\r\n", 422),
        ("multipart/form-data; boundary=a", b"--a\r\nx: y\r\n\r\n--a--\r\n", 422),
        (
            "multipart/form-data; boundary=a",
            b'--a\r\nContent-Disposition: form-data; name="image"\r\n\r\nx\r\n--a--\r\n',
            422,
        ),
    ],
)
def test_bodies_that_cannot_be_read(
    service: httpx.Client, kind: str, body: bytes, status: int
) -> None:
    answer = service.post("/v1/predict", content=body, headers={"content-type": kind})
    assert answer.status_code == status, answer.text
    assert answer.json()["detail"]


def test_a_request_has_one_image(service: httpx.Client) -> None:
    asked = {"image": {"path": "photos/coffee.png"}, "prompts": [CUP]}
    files = {"image": ("a.png", COFFEE)}
    for answer in (
        service.post("/v1/predict", files=files, data={"request": json.dumps(asked)}),
        service.post("/v1/predict", json={"prompts": [CUP]}),
    ):
        assert answer.status_code == 422 and "give one image" in answer.json()["detail"]


def test_an_image_that_is_not_here_is_asked_for(service: httpx.Client) -> None:
    asked = {"image": {"sha256": "0" * 64}, "prompts": [CUP]}
    answer = service.post("/v1/predict", json=asked)
    assert answer.status_code == 404 and answer.json()["detail"].endswith("send it again")


def test_the_client_of_the_page_works(
    service: httpx.Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (code,) = re.findall("```python\n(.+?)```", PAGE.read_text(), re.DOTALL)
    code = code.replace("http://127.0.0.1:8000", str(service.base_url))
    (tmp_path / "dog.jpg").write_bytes(COFFEE)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(code, names)
    assert len(names["first"]["masks"]) == 1 and len(names["again"]["masks"]) == 2


def test_openapi_has_examples_that_the_service_understands(service: httpx.Client) -> None:
    document = service.get("/openapi.json").json()
    schemas = document["components"]["schemas"]
    for endpoint in ("predict", "everything", "embed"):
        content = document["paths"][f"/v1/{endpoint}"]["post"]["requestBody"]["content"]
        assert content.keys() == {"application/json", "multipart/form-data"}
        name = content["application/json"]["schema"]["$ref"].rpartition("/")[2]
        (example,) = schemas[name]["examples"]
        answer = service.post(f"/v1/{endpoint}", json=example)
        assert answer.status_code == 404  # understood; the image of the example is not here


def test_a_token_is_asked_for(torch_backend: TorchBackend) -> None:
    api = create_api(Engine(torch_backend), token="geheim", loopback=False)
    with serving(api) as client:
        assert client.get("/v1/health").json() == {"status": "ok"}
        for header in ("", "Bearer", "Bearer geheimer", "Basic !", "Digest geheim"):
            answer = client.get("/v1/info", headers={"authorization": header})
            assert answer.status_code == 401 and "www-authenticate" in answer.headers
        assert client.get("/metrics").status_code == 401
        assert client.get("/v1/info", auth=("label-studio", "geheim")).status_code == 200
        bearer = {"authorization": "Bearer geheim"}
        assert client.get("/v1/info", headers=bearer).status_code == 200


def test_other_names_do_not_lead_to_loopback(service: httpx.Client) -> None:
    for host in ("evil.example", "evil.example:80", "", "[", "[::1"):
        answer = service.get("/v1/info", headers={"host": host})
        assert answer.status_code in (400, 421), host
    for host in ("localhost:1", "127.0.0.1", "[::1]:80"):
        assert service.get("/v1/info", headers={"host": host}).status_code == 200


def test_metrics_and_logs(torch_backend: TorchBackend, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "mobile_sam_plugin.serve")
    with serving(create_api(Engine(torch_backend))) as client:
        answer = upload(client, "predict", prompts=[CUP, CUP])
        client.get("/nowhere")
        metrics = client.get("/metrics").text
    assert 'mobile_sam_requests_total{endpoint="/v1/predict",status="200"} 1.0' in metrics
    assert 'mobile_sam_requests_total{endpoint="other",status="404"} 1.0' in metrics
    assert 'mobile_sam_work_seconds_count{work="encode"} 1.0' in metrics
    assert "mobile_sam_cached_images 1.0" in metrics
    logged: list[Any] = [each for each in caplog.records if each.message == "request"]
    # A request of an earlier test may end now, and be logged as well.
    (about,) = (
        record.about
        for record in logged
        if record.about["request_id"] == answer.headers["x-request-id"]
    )
    assert about["path"] == "/v1/predict" and about["status"] == 200 and about["prompts"] == 2


def test_requests_beyond_the_queue_get_503(torch_backend: TorchBackend) -> None:
    engine = Engine(torch_backend, workers=1, queue_length=1)
    release, started = threading.Event(), threading.Event()

    def hold() -> None:
        started.set()
        release.wait(60)

    with serving(create_api(engine)) as client, ThreadPoolExecutor() as pool:
        engine.decoders.submit(hold)
        started.wait(60)
        waiting = pool.submit(upload, client, "predict", prompts=[CUP])
        while not engine.queue.waiting:
            time.sleep(0.01)
        refused = upload(client, "predict", prompts=[CUP])
        assert refused.status_code == 503 and refused.headers["retry-after"] == "1"
        assert client.get("/v1/health").status_code == 200
        release.set()
        assert waiting.result().status_code == 200


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_the_request_of_a_worker_that_dies_gets_503(torch_backend: TorchBackend) -> None:
    engine = Engine(torch_backend, workers=1)
    kill = ctypes.pythonapi.PyThreadState_SetAsyncExc
    with serving(create_api(engine)) as client, ThreadPoolExecutor() as pool:
        sha256 = upload(client, "embed").headers["x-image-sha256"]
        slow = {"image": {"sha256": sha256}, "points_per_side": 64, "pred_iou_thresh": 0}
        (worker,) = engine.decoders.threads
        asked = pool.submit(client.post, "/v1/everything", json=slow)
        while not engine.cache.hits:
            time.sleep(0.01)
        kill(ctypes.c_ulong(worker.ident or 0), ctypes.py_object(SystemExit))
        answer = asked.result()
        assert answer.status_code == 503 and "has died and was replaced" in answer.text
        worker.join(60)
        assert upload(client, "predict", prompts=[CUP]).status_code == 200
        assert "mobile_sam_replaced_workers 1.0" in client.get("/metrics").text


def test_what_takes_too_long_is_given_up(torch_backend: TorchBackend) -> None:
    limits = Limits(seconds=0.5)
    with serving(create_api(Engine(torch_backend, limits, workers=1))) as client:
        sha256 = upload(client, "embed").headers["x-image-sha256"]
        slow = {"image": {"sha256": sha256}, "points_per_side": 64, "pred_iou_thresh": 0}
        answer = client.post("/v1/everything", json=slow)
        assert answer.status_code == 504 and "more than 0.5 seconds" in answer.text
        address = client.base_url.host, client.base_url.port or 0
        with socket.create_connection(address) as connection:  # a request that never ends
            connection.sendall(
                b"POST /v1/predict HTTP/1.1\r\nhost: localhost\r\n"
                b"content-type: application/json\r\ncontent-length: 100\r\n\r\n{"
            )
            assert connection.recv(100).startswith(b"HTTP/1.1 408")


def test_stopping_answers_what_has_begun(torch_backend: TorchBackend) -> None:
    engine = Engine(torch_backend)
    with ThreadPoolExecutor() as pool:
        with serving(create_api(engine)) as client:
            sha256 = upload(client, "embed").headers["x-image-sha256"]
            options = {"points_per_side": 8, "pred_iou_thresh": 0, "stability_score_thresh": 0}
            asked = pool.submit(
                httpx.post,
                f"{client.base_url}/v1/everything",
                json={"image": {"sha256": sha256}, **options},
                timeout=60,
            )
            while not engine.cache.hits:  # it has begun
                time.sleep(0.01)
        assert asked.result().status_code == 200
    assert engine.decoders.threads == []


def test_the_page_and_the_service_share_an_engine(
    torch_backend: TorchBackend, coffee: NDArray[np.uint8], tmp_path: Path
) -> None:
    pytest.importorskip("gradio", reason="gradio, the extra [app], is not installed")
    from mobile_sam_plugin.app.sessions import Picture, Sessions

    engine = Engine(torch_backend)
    picture = Picture("coffee.png", coffee)
    Sessions(engine, tmp_path).predictor(picture)
    with serving(create_api(engine)) as client:
        asked = {"image": {"sha256": picture.key}, "prompts": [CUP]}
        assert client.post("/v1/predict", json=asked).status_code == 200


@pytest.mark.process
def test_the_command_serves_without_torch_until_it_is_stopped(onnx_folder: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    code = (
        "import sys\nsys.modules['torch'] = None\n"
        "from mobile_sam_plugin.cli import main\nsys.exit(main(sys.argv[1:]))"
    )
    options = ("--backend", "onnx", "--onnx-dir", str(onnx_folder), "--port", str(port))
    process = subprocess.Popen(
        [sys.executable, "-c", code, "serve", *options], stderr=subprocess.PIPE, text=True
    )
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
        for _ in range(600):
            try:
                assert client.get("/v1/health").status_code == 200
                break
            except httpx.ConnectError:
                assert process.poll() is None, process.stderr
                time.sleep(0.1)
        assert upload(client, "predict", prompts=[CUP]).status_code == 200
    process.send_signal(signal.SIGTERM)
    _, log = process.communicate(timeout=60)
    lines = [json.loads(line) for line in log.splitlines()]
    assert any(line.get("path") == "/v1/predict" and line["status"] == 200 for line in lines)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--host", "0.0.0.0"], "give a --token, or --insecure"),
        (["--backend", "onnx"], "required for --backend onnx"),
        (["--backend", "torch", "--onnx-dir", "."], "required for --backend onnx"),
    ],
)
def test_options_that_contradict(
    options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["serve", *options]) == 2
    assert message in capsys.readouterr().err
