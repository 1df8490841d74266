"""``mobile-sam app`` as a real server, driven in a real browser with the bundled weights.

Where a test is not about the command or about masks of full size, the server runs in this process,
with the model for small images.
"""

import io
import json
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit
from urllib.request import urlopen

import cv2
import numpy as np
import pytest
import requests
import typer
from numpy.typing import NDArray
from PIL import Image

from mobile_sam_plugin import MobileSam, SamAutomaticMaskGenerator, SamPredictor
from mobile_sam_plugin.cli.app import check_address
from mobile_sam_plugin.deploy import OnnxPredictor
from mobile_sam_plugin.engine import Engine, Limits, OnnxBackend, TorchBackend
from mobile_sam_plugin.everything import drop_empty
from mobile_sam_plugin.integrations.detectors import Detections
from mobile_sam_plugin.integrations.grounded_sam import GroundedMobileSam
from mobile_sam_plugin.integrations.inpaint_anything import InpaintAnything
from mobile_sam_plugin.integrations.video import Video
from mobile_sam_plugin.records import decode_mask

from ..conftest import PHOTOGRAPHS
from ..deploy.conftest import Files, write_files
from ..records import assert_same_records

pytest.importorskip("gradio", reason="gradio, the extra [app], is not installed")
sync_api: Any = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

from mobile_sam_plugin.app import gradio as gr  # noqa: E402
from mobile_sam_plugin.app import pipelines  # noqa: E402
from mobile_sam_plugin.app.click import python_lines  # noqa: E402
from mobile_sam_plugin.app.everything import EverythingTab  # noqa: E402
from mobile_sam_plugin.app.page import build_page  # noqa: E402
from mobile_sam_plugin.app.parts import Components  # noqa: E402
from mobile_sam_plugin.app.server import DECODERS, serve  # noqa: E402
from mobile_sam_plugin.app.sessions import Picture, Sessions, read_picture  # noqa: E402

CHROMIUM = shutil.which("chromium")
# A browser on its own asks for updates and the like; what is asserted is what the page asks for.
QUIET = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--use-fake-device-for-media-stream",
    "--use-fake-ui-for-media-stream",
)
PATIENCE = 120_000  # ms; on a busy machine
KEEP_WHAT_IS_TOLD = """() => {
    const status = document.querySelector("#status");
    window.told = [];
    const keep = () => window.told.push(status.textContent);
    new MutationObserver(keep).observe(status, { childList: true, subtree: true });
}"""
CUP, TABLE = (300, 130), (40, 30)
CUP_BOX = [170, 10, 430, 300]


@dataclass
class Server:
    address: str

    @property
    def host(self) -> str:
        return urlsplit(self.address).netloc


def engine_of(model: MobileSam) -> Engine:
    return Engine(TorchBackend(model))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class Command(Server):
    """``mobile-sam app`` in a process of its own, and the folder for its temporary files."""

    process: "subprocess.Popen[str]"
    folder: Path


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Command]:
    """Shared, as its start takes seconds, until a test stops it by Ctrl-C."""
    port, folder = free_port(), tmp_path_factory.mktemp("command")
    command = [sys.executable, "-m", "mobile_sam_plugin", "app", "--checkpoint", "bundled"]
    process = subprocess.Popen(
        [*command, "--port", str(port)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        # Whatever would look something up at the Hub now fails instead of waiting for it.
        env={
            **os.environ,
            "PYTHONUNBUFFERED": "1",
            "HF_HUB_OFFLINE": "1",
            "TMPDIR": str(folder),
        },
        # Tests that a shell runs in the background are started with Ctrl-C ignored.
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith(f"http://127.0.0.1:{port}"), line
        yield Command(line.split()[0], process, folder)
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def server(small_sam: MobileSam) -> Iterator[Server]:
    with serve(engine_of(small_sam), port=free_port(), checkpoint="bundled") as address:
        yield Server(address)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if CHROMIUM is None:
        pytest.skip("there is no chromium on this machine: apt-get install chromium")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(QUIET))
        yield browser
        browser.close()


@dataclass
class Visit:
    """A page as a visitor handles it."""

    page: Any
    requested: list[str]

    @property
    def status(self) -> str:
        return str(self.page.inner_text("#status p"))

    def await_status(self, text: str) -> str:
        self.page.locator("#status p", has_text=re.compile(text)).wait_for()
        return self.status

    def has_told(self, text: str) -> bool:
        """Whether the status ever was that, were it for a frame."""
        return any(text in told for told in self.page.evaluate("window.told"))

    def upload(self, path: Path, expected: str = "click on an object") -> str:
        clear = self.page.get_by_label("Remove Image")
        if clear.count():
            clear.click()
            self.await_status("Choose an image")
        self.page.locator("#picture input[type=file]").set_input_files(path)
        return self.await_status(expected)

    def click(self, x: float, y: float, width: int, height: int) -> None:
        """Clicks where a pixel of a picture of that size is shown."""
        self.page.wait_for_function(
            """ratio => {
                const image = document.querySelector("#picture img");
                const shown = image?.complete && image.clientWidth / image.clientHeight;
                return Math.abs(shown - ratio) < 0.02 * ratio;
            }""",
            arg=width / height,
        )
        box = self.page.locator("#picture img").bounding_box()
        position = {"x": x * box["width"] / width, "y": y * box["height"] / height}
        self.page.locator("#picture img").click(position=position)

    def click_coffee(self, x: float, y: float) -> str:
        """As :meth:`click`, and waits for another mask, whose line of text it returns."""
        before = self.status
        self.click(x, y, 600, 400)
        return self.await_mask(before)

    def await_mask(self, before: str) -> str:
        """Waits for a mask of which another line is told than before."""
        self.page.wait_for_function(
            """before => {
                const line = document.querySelector("#status p").innerText;
                return line !== before && line.startsWith("Candidate");
            }""",
            arg=before,
        )
        return self.status

    def download(self, button: str) -> bytes:
        with self.page.expect_download() as download:
            self.page.get_by_role("button", name=button, exact=True).click()
        return Path(download.value.path()).read_bytes()

    def mask(self) -> NDArray[np.bool_]:
        """The mask that the page gives away."""
        pixels = np.asarray(Image.open(io.BytesIO(self.download("Mask (PNG)"))))
        assert set(np.unique(pixels)) <= {0, 255}
        return pixels == 255

    def switch(self, mode: str) -> None:
        self.page.get_by_label(mode, exact=True).check()

    def press(self, button: str) -> None:
        self.page.get_by_role("button", name=button, exact=True).click()

    def fill(self, slider: str, value: float) -> None:
        field = self.page.get_by_label(f"number input for {slider}").locator("visible=true")
        field.fill(str(value))
        field.press("Tab")

    def open_tab(self, name: str) -> None:
        self.page.get_by_role("tab", name=name, exact=True).click()
        self.page.get_by_role("tabpanel").get_by_role("button").last.wait_for()
        self.settle()

    def settle(self) -> None:
        """Gradio sets fields back to their first values, one frame after they first appear."""
        self.page.evaluate(
            "() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))"
        )

    def photograph(self, name: str) -> None:
        """For the README, into the folder that the variable APP_PICTURES names, if it does."""
        folder = os.environ.get("APP_PICTURES")
        if folder:
            self.page.mouse.move(2, 2)
            shot = Image.open(io.BytesIO(self.page.screenshot())).convert("RGB")
            colors = shot.quantize(256)  # without them it has three times as many bytes
            shot.quantize(palette=colors).save(Path(folder) / name, optimize=True)


@contextmanager
def visiting(browser: Any, server: Server, **options: Any) -> Iterator[Visit]:
    """A page in a browser profile of its own, of which every request must be to the server."""
    options = {"viewport": {"width": 1280, "height": 900}, "color_scheme": "light", **options}
    context = browser.new_context(**options)
    requested: list[str] = []
    errors: list[str] = []
    context.on("request", lambda request: requested.append(request.url))
    page = context.new_page()
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.set_default_timeout(PATIENCE)
    page.goto(server.address)
    visit = Visit(page, requested)
    visit.await_status("Choose an image")
    page.evaluate(KEEP_WHAT_IS_TOLD)
    yield visit
    context.close()
    assert errors == []
    hosts = {urlsplit(url).netloc for url in requested if not url.startswith(("blob:", "data:"))}
    assert hosts == {server.host}


@pytest.fixture
def visit(browser: Any, server: Server) -> Iterator[Visit]:
    with visiting(browser, server) as visit:
        yield visit


@pytest.fixture(scope="module")
def predictor(small_sam: MobileSam, coffee: NDArray[np.uint8]) -> SamPredictor:
    predictor = SamPredictor(small_sam)
    predictor.set_image(coffee)
    return predictor


def iou(one: NDArray[np.bool_], other: NDArray[np.bool_]) -> float:
    assert one.shape == other.shape
    return float((one & other).sum() / (one | other).sum())


@pytest.mark.browser
@pytest.mark.process
def test_clicks_undo_box_and_downloads_of_the_command(
    browser: Any,
    command: Command,
    bundled_sam: MobileSam,
    coffee: NDArray[np.uint8],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    predictor = SamPredictor(bundled_sam)
    predictor.set_image(coffee)
    with visiting(browser, command) as visit:
        visit.upload(PHOTOGRAPHS / "coffee.png")
        visit.click(*CUP, 600, 400)
        first = visit.await_status("^Candidate")
        assert visit.has_told("Encoding the image")
        masks, scores, logits = predictor.predict([CUP], [1])
        best = int(scores.argmax())
        mask = visit.mask()
        assert 0.01 < mask.mean() < 0.99
        assert iou(mask, masks[best]) >= 0.99
        candidates = visit.page.locator("#candidates label").all_inner_texts()
        assert [float(text.split()[-1]) for text in candidates] == pytest.approx(scores, abs=2e-3)

        # Another candidate, and back.
        other = (best + 1) % 3
        visit.page.locator("#candidates input").nth(other).check()
        visit.await_status(f"^Candidate {other + 1}")
        assert iou(visit.mask(), masks[other]) >= 0.99
        visit.page.locator("#candidates input").nth(best).check()
        visit.await_status(f"^Candidate {best + 1}")

        # The background, from the logits of the chosen candidate.
        visit.switch("Background point")
        visit.click_coffee(*TABLE)
        masks, scores, _ = predictor.predict([CUP, TABLE], [1, 0], mask_input=logits[best])
        refined = visit.mask()
        assert iou(refined, masks[scores.argmax()]) >= 0.99
        assert iou(refined, mask) < 0.99

        visit.press("Undo")
        visit.await_status(re.escape(first))
        np.testing.assert_array_equal(visit.mask(), mask)

        visit.press("Reset")
        visit.await_status("click on an object")
        visit.switch("Box corner")
        visit.click(430, 300, 600, 400)
        visit.await_status("opposite corner")
        visit.click(170, 10, 600, 400)
        visit.await_status("^Candidate")
        masks, scores, _ = predictor.predict(box=CUP_BOX)
        assert iou(visit.mask(), masks[scores.argmax()]) >= 0.99

        visit.switch("Object point")
        visit.click_coffee(*CUP)
        check_downloads(visit, tmp_path, monkeypatch)


def check_downloads(visit: Visit, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All four open, and tell of the same mask; the lines are run."""
    mask = visit.mask()
    cutout = np.asarray(Image.open(io.BytesIO(visit.download("Cut-out (PNG)"))))
    photograph = np.asarray(Image.open(PHOTOGRAPHS / "coffee.png").convert("RGB"))
    x, y, width, height = cv2.boundingRect(mask.astype(np.uint8))
    place = np.s_[y : y + height, x : x + width]
    np.testing.assert_array_equal(cutout[..., 3] == 255, mask[place])
    np.testing.assert_array_equal(cutout[mask[place], :3], photograph[mask])
    (record,) = json.loads(visit.download("COCO RLE (JSON)"))
    np.testing.assert_array_equal(decode_mask(record), mask)
    assert record["area"] == mask.sum()
    assert record["point_coords"] == [pytest.approx(CUP, abs=1)]
    shutil.copy(PHOTOGRAPHS / "coffee.png", folder)
    monkeypatch.chdir(folder)
    names: dict[str, Any] = {}
    exec(visit.download("Python lines"), names)
    assert iou(names["mask"], mask) >= 0.99


@pytest.mark.browser
def test_everything(visit: Visit) -> None:
    visit.upload(PHOTOGRAPHS / "coffee.png")
    visit.open_tab("Everything")
    for label, value in {
        "Points per side": 8,
        "Minimum predicted IoU": 0.2,
        "Minimum stability score": 0.5,
        "Stability offset": 0.3,
        "Minimum area": 100,
    }.items():
        visit.fill(label, value)
    visit.press("Segment everything")
    count = int(visit.await_status("masks: click on one").split()[0])
    assert visit.has_told("Looking for masks")
    data = json.loads(visit.download("Download COCO JSON"))
    assert data["images"] == [{"id": 1, "file_name": "coffee.png", "height": 400, "width": 600}]
    annotations = data["annotations"]
    assert count == len(annotations) > 1

    smallest = min(range(count), key=lambda index: annotations[index]["area"])
    mask = decode_mask(annotations[smallest])
    assert mask.sum() == annotations[smallest]["area"]
    distances = cv2.distanceTransform(mask.astype(np.uint8), cv2.DIST_L2, 5)
    y, x = np.unravel_index(distances.argmax(), mask.shape)
    visit.click(float(x), float(y), 600, 400)
    told = visit.await_status("stability score")
    assert f"Mask {smallest + 1}: {annotations[smallest]['area']:,} pixels" in told
    assert f"predicted IoU {annotations[smallest]['predicted_iou']:.3f}" in told

    # By keyboard.
    visit.page.get_by_label("Show mask number").fill("1")
    visit.page.keyboard.press("Enter")
    visit.await_status("^Mask 1:")


@pytest.mark.browser
def test_two_visitors_clicking_in_turn_never_mix(
    browser: Any, server: Server, small_sam: MobileSam
) -> None:
    clicks = [(0.5, 0.5), (0.3, 0.4), (0.7, 0.6)]
    with visiting(browser, server) as one, visiting(browser, server) as other:
        visits = [(one, "chelsea.png"), (other, "flower.jpg")]
        predictors, sizes = [], []
        for visit, name in visits:
            visit.upload(PHOTOGRAPHS / name)
            visit.page.get_by_label("Refine the chosen candidate").uncheck()
            pixels = np.asarray(Image.open(PHOTOGRAPHS / name).convert("RGB"))
            predictors.append(SamPredictor(small_sam))
            predictors[-1].set_image(pixels)
            sizes.append((pixels.shape[1], pixels.shape[0]))
        for count, (x, y) in enumerate(clicks, 1):
            for (visit, _), (width, height) in zip(visits, sizes, strict=True):
                before = visit.status
                visit.click(x * width, y * height, width, height)
                visit.await_mask(before)
            for (visit, _), (width, height), predictor in zip(
                visits, sizes, predictors, strict=True
            ):
                (record,) = json.loads(visit.download("COCO RLE (JSON)"))
                coords = record["point_coords"]
                expected = np.array(clicks[:count]) * (width, height)
                np.testing.assert_allclose(coords, expected, atol=2)
                masks, scores, _ = predictor.predict(coords, [1] * count)
                assert iou(decode_mask(record), masks[scores.argmax()]) >= 0.99


class Caller:
    """A visitor without a browser, of which twenty would be too many for a machine of two cores.

    Sends what the page sends. Events of one visitor are answered in the order of their ends.
    """

    def __init__(self, server: Server, name: str) -> None:
        self.api = f"{server.address}/gradio_api"
        self.name = name
        config = requests.get(f"{server.address}/config", timeout=60).json()
        self.events = {each["api_name"]: each["id"] for each in config["dependencies"]}

    def upload(self, path: Path) -> None:
        files = {"files": (path.name, path.read_bytes())}
        (uploaded,) = requests.post(f"{self.api}/upload", files=files, timeout=60).json()
        data = {"path": uploaded, "orig_name": path.name, "meta": {"_type": "gradio.FileData"}}
        self.send("upload", [data])

    def send(self, event: str, data: Sequence[Any] = (), event_data: Any = None) -> None:
        body = {
            "data": list(data),
            "event_data": event_data,
            "fn_index": self.events[event],
            "session_hash": self.name,
        }
        requests.post(f"{self.api}/queue/join", json=body, timeout=60).raise_for_status()

    def receive(self) -> list[Any]:
        """Waits for the event that was sent, and returns what it puts on the page."""
        stream = requests.get(f"{self.api}/queue/data?session_hash={self.name}", timeout=120).text
        messages = [json.loads(line[6:]) for line in stream.splitlines() if line.startswith("data")]
        (done,) = [each for each in messages if each["msg"] == "process_completed"]
        assert done["success"], done
        output: list[Any] = done["output"]["data"]
        return output


def test_twenty_visitors_at_once_all_get_their_masks(
    server: Server, small_sam: MobileSam, tmp_path: Path
) -> None:
    """Each with a small picture of its own; encoding them is one queue."""
    callers = [Caller(server, f"visitor{index}") for index in range(20)]
    predictor = SamPredictor(small_sam)
    for index, caller in enumerate(callers):
        color = np.random.default_rng(index).integers(0, 256, 3)
        pixels = np.full((72, 96, 3), 255 - color, dtype=np.uint8)
        cv2.circle(pixels, (30 + index, 36), 18, color.tolist(), cv2.FILLED)
        Image.fromarray(pixels).save(tmp_path / f"{index}.png")
        caller.upload(tmp_path / f"{index}.png")
    for index, caller in enumerate(callers):
        assert f"{index}.png, 96 x 72 pixels" in caller.receive()[1]
        caller.send("click", ["Object point", True], {"index": [30 + index, 36], "value": None})
    for caller in callers:
        assert "Encoding the image" in caller.receive()[1]
        caller.send("encode")
    for caller in callers:  # none waits for another's answer
        assert "Candidate" in caller.receive()[1]
        caller.send("write_record")
    for index, caller in enumerate(callers):
        (file,) = caller.receive()
        (record,) = requests.get(file["url"], timeout=60).json()
        assert record["point_coords"] == [[30 + index, 36]]
        predictor.set_image(Image.open(tmp_path / f"{index}.png"))
        masks, scores, _ = predictor.predict(record["point_coords"], [1])
        assert iou(decode_mask(record), masks[scores.argmax()]) >= 0.99


@pytest.mark.browser
def test_who_waits_is_told_the_place_in_the_queue(
    browser: Any, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = threading.Event()
    generate = SamAutomaticMaskGenerator.generate

    def generate_late(*args: Any) -> Any:
        ended.wait(PATIENCE / 1000)
        return generate(*args)

    monkeypatch.setattr(SamAutomaticMaskGenerator, "generate", generate_late)
    with visiting(browser, server) as busy, visiting(browser, server) as waiting:
        waiting.upload(PHOTOGRAPHS / "coffee.png")
        busy.upload(PHOTOGRAPHS / "flower.jpg")
        busy.open_tab("Everything")
        busy.fill("Points per side", 2)
        busy.press("Segment everything")
        busy.page.locator("#status .progress-bar").first.wait_for(state="attached")
        waiting.click(*CUP, 600, 400)
        waiting.page.locator("#status").get_by_text(re.compile("^queue: ")).wait_for()
        ended.set()
        waiting.await_status("^Candidate")


def write_bad_files(folder: Path) -> dict[Path, str]:
    """Files that are no pictures, or not to be opened, and what the page says of each."""
    text = folder / "text.jpg"
    text.write_text("This is no picture.\n" * 100)
    truncated = folder / "truncated.jpg"
    truncated.write_bytes((PHOTOGRAPHS / "flower.jpg").read_bytes()[:20_000])
    return {
        text: "'text.jpg' is not an image that can be read",
        write_huge_png(folder / "huge.png", 20_000, 10_000): "'huge.png' is too large",
        write_huge_png(folder / "large.png", 6_000, 5_000): "large.png is too large",
        truncated: "'truncated.jpg' cannot be read",
    }


def write_huge_png(path: Path, width: int, height: int) -> Path:
    """All white, one bit a pixel, a few kilobytes: a bomb."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        checksum = zlib.crc32(kind + content)
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)

    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    rows = zlib.compress((b"\0" + b"\xff" * (width // 8)) * height)
    signature = b"\x89PNG\r\n\x1a\n"
    path.write_bytes(
        signature + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    )
    return path


@pytest.mark.browser
def test_bad_uploads_are_told_and_the_server_goes_on(visit: Visit, tmp_path: Path) -> None:
    for path, message in write_bad_files(tmp_path).items():
        visit.upload(path, message)
        assert visit.page.locator("#status p.mistake").count() == 1
        assert str(tmp_path) not in visit.page.inner_text("body")
    visit.press("Mask (PNG)")
    visit.page.get_by_text("there is no image yet").wait_for()
    visit.upload(PHOTOGRAPHS / "coffee.png")
    visit.click(*CUP, 600, 400)
    visit.await_status("^Candidate")


@pytest.mark.browser
def test_without_a_mouse(visit: Visit, predictor: SamPredictor) -> None:
    """A photograph, the place of a point and a candidate, all by keys."""
    page = visit.page
    page.get_by_role("button", name="coffee", exact=True).focus()
    page.keyboard.press("Enter")
    visit.await_status("coffee.png")
    page.get_by_role("button", name="Without a mouse").focus()
    page.keyboard.press("Enter")
    fields = page.get_by_label("X, in pixels"), page.get_by_label("Y, in pixels")
    fields[1].wait_for()
    visit.settle()
    for field, coordinate in zip(fields, CUP, strict=True):
        field.fill(str(coordinate))
        page.keyboard.press("Tab")
    page.get_by_role("button", name="Add it here").focus()
    page.keyboard.press("Enter")
    visit.await_status("^Candidate")
    masks, scores, _ = predictor.predict([CUP], [1])
    assert iou(visit.mask(), masks[scores.argmax()]) >= 0.99
    page.get_by_role("radiogroup", name="Candidates").get_by_role("radio", checked=True).focus()
    for step in (1, 2):
        page.keyboard.press("ArrowRight")
        visit.await_status(f"^Candidate {(int(scores.argmax()) + step) % 3 + 1}")
    page.get_by_role("radiogroup", name="A click adds").get_by_label("Background point").focus()
    page.keyboard.press("Space")
    assert page.get_by_role("radio", name="Background point").is_checked()
    assert page.locator("#status [role=status]").get_attribute("aria-live") == "polite"


@pytest.mark.browser
def test_controls_have_names(visit: Visit) -> None:
    """What a screen reader would say of each button and field, in every tab."""
    for name in ("Click", "Everything", "Text", "Remove / fill / replace", "Track", "Label"):
        visit.open_tab(name)
        nameless = visit.page.evaluate(
            """() => [...document.querySelectorAll("button, input, select, textarea, img")]
                .filter(e => e.checkVisibility() && !e.closest("[aria-hidden=true]"))
                .filter(e => !(e.ariaLabel || e.innerText || e.alt || e.title || e.labels?.length
                    || e.labels?.[0]?.innerText || e.placeholder))
                .map(e => e.outerHTML.slice(0, 200))"""
        )
        assert nameless == []


@pytest.mark.browser
def test_webcam(visit: Visit) -> None:
    page = visit.page
    page.get_by_label("Capture from camera").click()
    page.get_by_text("Click to Access Webcam").click()
    page.wait_for_function("document.querySelector('#picture video')?.videoWidth > 0")
    page.get_by_label("capture photo").click()
    visit.await_status("click on an object")


@pytest.mark.browser
def test_paste(visit: Visit) -> None:
    visit.page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    visit.page.evaluate(
        """async () => {
            const canvas = new OffscreenCanvas(120, 80);
            canvas.getContext("2d").fillRect(20, 20, 50, 40);
            const png = await canvas.convertToBlob({ type: "image/png" });
            await navigator.clipboard.write([new ClipboardItem({ "image/png": png })]);
        }"""
    )
    visit.page.get_by_label("Paste from clipboard").click()
    visit.await_status("120 x 80 pixels: click on an object")


@pytest.mark.browser
def test_remove(visit: Visit) -> None:
    visit.upload(PHOTOGRAPHS / "coffee.png")
    visit.click(*CUP, 600, 400)
    visit.await_status("^Candidate")
    mask = visit.mask()
    visit.open_tab("Remove / fill / replace")
    visit.press("Paint")
    visit.await_status("Done")
    painted = np.asarray(Image.open(io.BytesIO(visit.download("Download PNG"))))
    photograph = np.asarray(Image.open(PHOTOGRAPHS / "coffee.png").convert("RGB"))
    changed = (painted != photograph).any(axis=-1)
    grown = cv2.dilate(mask.astype(np.uint8), np.ones((15, 15), np.uint8)).astype(bool)
    assert changed.any() and not changed[~grown].any()


def write_video(path: Path) -> Path:
    """Four frames of a disc that moves."""
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), 10, (160, 120))
    for index in range(4):
        frame = np.full((120, 160, 3), 40, dtype=np.uint8)
        cv2.circle(frame, (50 + 5 * index, 60), 25, (60, 200, 240), cv2.FILLED)
        writer.write(frame)
    writer.release()
    return path


@pytest.mark.browser
def test_track(visit: Visit, tmp_path: Path) -> None:
    video = write_video(tmp_path / "disc.mp4")
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"no video")

    visit.open_tab("Track")
    field = visit.page.locator("input[type=file][accept*=video]")
    field.set_input_files(broken)
    message = visit.await_status("broken.mp4")
    assert "/" not in message
    visit.page.get_by_label("Remove file").or_(visit.page.get_by_label("Clear")).first.click()
    field.set_input_files(video)
    visit.await_status("disc.mp4, 160 x 120 pixels")
    visit.click(50, 60, 160, 120)
    visit.await_status("^Candidate")
    visit.press("Follow the object")
    visit.await_status("Done")
    tracks = json.loads(visit.download("tracks.json"))
    assert len(tracks["annotations"]) == 1
    lines = visit.download("tracks.csv").decode().splitlines()
    assert len(lines) == 1 + 4
    assert len(visit.download("overlay.mp4")) > 1000


@pytest.mark.browser
def test_what_is_missing_is_told_by_the_line_to_install(
    visit: Visit, monkeypatch: pytest.MonkeyPatch
) -> None:
    visit.open_tab("Text")
    visit.page.get_by_text("hf download IDEA-Research/grounding-dino-tiny").wait_for()
    assert visit.page.get_by_role("button", name="Find it").is_disabled()
    visit.open_tab("Label")
    visit.page.get_by_text("hf download openai/clip-vit-base-patch32").wait_for()
    visit.open_tab("Remove / fill / replace")
    assert visit.page.get_by_label("Remove (OpenCV)").is_checked()
    visit.page.get_by_role("button", name="Remove with LaMa: not installed").click()
    visit.page.get_by_text("hf download Carve/LaMa-ONNX lama_fp32.onnx").wait_for()

    monkeypatch.setattr(pipelines, "find_spec", lambda name: None)
    assert 'pip install "mobile-sam-plugin[grounded]"' in str(pipelines.DETECTOR.missing)


def find_cup(
    image: NDArray[np.uint8], prompts: Sequence[str], box_threshold: float, text_threshold: float
) -> Detections:
    """Stands for a detector's weights, which a machine without a network has not."""
    return Detections(np.array([CUP_BOX], np.float32), np.array([0.9], np.float32), [prompts[0]])


def classify(images: Iterable[NDArray[np.uint8]], texts: Sequence[str]) -> NDArray[np.float32]:
    """Likewise a classifier's: everything is the second name."""
    return np.array([[0, 9, *[0] * (len(texts) - 2)] for _ in images], np.float32)


def paint_white(
    image: NDArray[np.uint8], mask: NDArray[np.bool_], prompt: str
) -> NDArray[np.uint8]:
    return np.full_like(image, 255)


@pytest.mark.browser
def test_text_labels_and_fill_with_backends_of_a_few_lines(
    browser: Any, small_sam: MobileSam, predictor: SamPredictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipelines.Need, "missing", None)
    detecting = GroundedMobileSam(small_sam, find_cup)
    monkeypatch.setattr(pipelines.TextTab, "_pipeline", detecting)
    monkeypatch.setattr(pipelines.LabelTab, "_classifier", staticmethod(classify))
    monkeypatch.setattr(pipelines.InpaintTab, "_painter", InpaintAnything(None, paint_white))
    with (
        serve(engine_of(small_sam), port=free_port(), checkpoint="bundled") as address,
        visiting(browser, Server(address)) as visit,
    ):
        visit.upload(PHOTOGRAPHS / "coffee.png")
        visit.open_tab("Text")
        visit.page.get_by_label("What to find").fill("a cup.")
        visit.press("Find it")
        assert visit.await_status("^Found") == "Found: 1 a cup."
        (found,) = json.loads(visit.download("Download COCO JSON"))["annotations"]
        masks, _, _ = predictor.predict(box=CUP_BOX, multimask_output=False)
        assert iou(decode_mask(found), masks[0]) >= 0.99

        visit.open_tab("Label")
        visit.page.get_by_label("Names, separated by commas").fill("tea, coffee, sky")
        for label, value in {
            "Points per side": 4,
            "Minimum predicted IoU": 0,
            "Minimum stability score": 0,
        }.items():
            visit.fill(label, value)
        visit.press("Name everything")
        assert re.fullmatch(r"Named: \d+ coffee\.", visit.await_status("^Named"))

        visit.open_tab("Click")
        visit.click(*CUP, 600, 400)
        visit.await_status("^Candidate")
        mask = visit.mask()
        visit.open_tab("Remove / fill / replace")
        visit.page.get_by_label("Fill", exact=True).check()
        visit.press("Paint")
        visit.page.get_by_text("the prompt is empty").wait_for()
        visit.page.get_by_label("What to paint").fill("a ball of wool")
        visit.press("Paint")
        visit.await_status("^Done")
        painted = np.asarray(Image.open(io.BytesIO(visit.download("Download PNG"))))
        assert (painted[mask] == 255).all()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(("width", "height"), [(390, 844), (1280, 800)])
@pytest.mark.browser
def test_fits_a_phone_and_a_laptop(
    browser: Any, server: Server, width: int, height: int, scheme: str
) -> None:
    viewport = {"width": width, "height": height}
    with visiting(browser, server, viewport=viewport, color_scheme=scheme) as visit:
        visit.page.get_by_role("button", name="flower", exact=True).click()
        visit.await_status("flower.jpg, 640 x 427")
        visit.click(320, 213, 640, 427)
        visit.await_status("^Candidate")
        assert visit.page.evaluate("document.documentElement.scrollWidth") <= width
        background = visit.page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (sum(map(int, re.findall(r"\d+", background)[:3])) < 384) == (scheme == "dark")
        if (width, scheme) == (1280, "light"):
            visit.photograph("app.png")
        if (width, scheme) == (390, "dark"):
            visit.photograph("app_phone.png")
        if width == 390:
            visit.page.get_by_role("button", name="More tabs").click()
            visit.page.get_by_role("button", name="Track", exact=True).click()
        else:
            visit.open_tab("Track")
        visit.page.get_by_text("Upload a video").wait_for()


def test_no_path_of_the_server_is_readable(server: Server, tmp_path: Path) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text("secret")
    for path in ("/etc/hostname", str(secret), __file__, "../../etc/hostname", "setup.cfg"):
        for prefix in ("/gradio_api/file=", "/file=", "/gradio_api/proxy="):
            answer = requests.get(server.address + prefix + path, timeout=60)
            assert answer.status_code in (403, 404), (prefix, path)
    for address in ("http://127.0.0.1:1/", "https://example.org/"):
        for prefix in ("/gradio_api/file=", "/gradio_api/proxy="):
            answer = requests.get(server.address + prefix + address, timeout=60)
            assert answer.status_code == 404
        answer = requests.get(f"{server.address}/gradio_api/file/{address}", timeout=60)
        assert answer.status_code == 404

    # A page's own requests, with a path that was never uploaded, or with an address.
    config = requests.get(f"{server.address}/config", timeout=60).json()
    events = {each["api_name"]: each for each in config["dependencies"]}
    for event in ("upload", "choose", "find"):  # of a picture, a radio button and sliders
        for path, told in ((str(secret), ""), ("http://example.org/a.png", "not addresses")):
            file = {"path": path, "meta": {"_type": "gradio.FileData"}}
            body = {
                "data": [file] * len(events[event]["inputs"]),
                "fn_index": events[event]["id"],
                "session_hash": "intruder",
            }
            requests.post(f"{server.address}/gradio_api/queue/join", json=body, timeout=60)
            stream = f"{server.address}/gradio_api/queue/data?session_hash=intruder"
            outcome = requests.get(stream, timeout=120).text
            assert '"success":false' in outcome and told in outcome, (event, path)
            assert "secret.txt, " not in outcome


def test_a_video_is_no_list_of_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """FFmpeg would open whatever file such a list names."""
    write_video(tmp_path / "disc.mp4")
    playlist = tmp_path / "list.mp4"
    playlist.write_text("ffconcat version 1.0\nfile 'disc.mp4'\n")
    for name in DECODERS:  # a server of this process has set them
        monkeypatch.delenv(name, raising=False)
    next(iter(Video(playlist)))
    for name, value in DECODERS.items():
        monkeypatch.setenv(name, value)
    next(iter(Video(tmp_path / "disc.mp4")))
    with pytest.raises(ValueError, match="list.mp4"):
        next(iter(Video(playlist)))


def test_too_many_bytes_are_refused(server: Server) -> None:
    files = {"files": ("large.png", bytes(40 * 2**20))}
    answer = requests.post(f"{server.address}/gradio_api/upload", files=files, timeout=120)
    assert answer.status_code == 413


def test_nothing_of_the_page_is_from_elsewhere(server: Server) -> None:
    page = requests.get(server.address, timeout=60)
    assert "default-src 'self'" in page.headers["content-security-policy"]
    loaded = re.findall(r"<(?:script|link|img)[^>]+(?:src|href)=\"(https?:[^\"]*)", page.text)
    assert [url for url in loaded if urlsplit(url).netloc != server.host] == []
    assert "fonts.g" not in page.text


def test_the_package_is_not_written_to(server: Server) -> None:
    """Gradio writes a file beside every class that is derived from a component of its own."""
    assert not list(Path(pipelines.__file__).parent.glob("*.pyi"))


@pytest.mark.browser
def test_closing_the_page_frees_its_memory(browser: Any, small_sam: MobileSam) -> None:
    """With the server in this process, where its sessions can be counted."""
    held: list[Sessions] = []

    class Counted(Sessions):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            held.append(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mobile_sam_plugin.app.server.Sessions", Counted)
        with serve(engine_of(small_sam), port=free_port(), checkpoint="bundled") as address:
            (sessions,) = held
            server = Server(address)
            with visiting(browser, server) as visit:
                visit.upload(PHOTOGRAPHS / "coffee.png")
                visit.click(*CUP, 600, 400)
                visit.await_status("^Candidate")
                visit.mask()
                assert (len(sessions), len(sessions.engine.cache)) == (1, 1)
                assert len(list(sessions.folder.iterdir())) == 1
            with visiting(browser, server) as visit:
                visit.page.wait_for_timeout(0)
                for _ in range(600):
                    if (len(sessions), len(sessions.engine.cache)) == (0, 0):
                        break
                    visit.page.wait_for_timeout(100)
                # Nor is anything kept of the new page, which holds no picture.
                assert (len(sessions), len(sessions.engine.cache)) == (0, 0)
                assert list(sessions.folder.iterdir()) == []


def test_sessions_and_embeddings_are_bounded(small_sam: MobileSam, tmp_path: Path) -> None:
    engine = Engine(TorchBackend(small_sam), cache_bytes=1)  # one embedding is kept nevertheless
    sessions = Sessions(engine, tmp_path, max_sessions=2)
    pixels = np.zeros((40, 60, 3), dtype=np.uint8)
    one, other = Picture("one.png", pixels), Picture("other.png", pixels + 9)
    assert one.key == Picture("same.png", pixels.copy()).key != other.key
    sessions.get("a").open(one)
    sessions.get("b").open(other)
    first = sessions.predictor(one)
    assert sessions.predictor(one) is first
    sessions.predictor(other)
    assert sessions.is_encoded(other) and not sessions.is_encoded(one)
    sessions.get("a")
    sessions.get("c")  # in the place of b, which was used before a
    assert sessions.get("a").picture is one
    assert not sessions.is_encoded(other)


def test_a_page_that_is_closed_while_something_works_leaves_nothing_behind(
    small_sam: MobileSam, tmp_path: Path
) -> None:
    sessions = Sessions(engine_of(small_sam), tmp_path, max_sessions=1)
    picture = Picture("dog.jpg", np.zeros((10, 10, 3), np.uint8))
    with sessions.using("page"), sessions.using("page"):
        session = sessions.get("page")
        session.open(picture)
        sessions.drop("page")
        assert sessions.get("page") is session
        sessions.get("another").open(picture)  # which finds no page to forget in its place
        session.path("_everything.json").write_text("{}")
        assert len(sessions) == 2
    assert list(tmp_path.iterdir()) == [] and len(sessions) == 1
    with sessions.using("page"), pytest.raises(ValueError, match="there is no image yet"):
        sessions.get("page").path("_everything.json")  # its turn in the queue came later
    assert len(sessions) <= 1 and list(tmp_path.iterdir()) == []


@contextmanager
def counting(model: MobileSam) -> Iterator[list[int]]:
    """Counts the images that a model encodes."""
    encoded: list[int] = []
    hook = model.image_encoder.register_forward_hook(lambda *_: encoded.append(1))
    try:
        yield encoded
    finally:
        hook.remove()


def test_tabs_do_not_encode_again_what_a_click_has_encoded(
    small_sam: MobileSam,
    coffee: NDArray[np.uint8],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(pipelines.Need, "missing", None)
    detecting = GroundedMobileSam(small_sam, find_cup)
    monkeypatch.setattr(pipelines.TextTab, "_pipeline", detecting)
    monkeypatch.setattr(pipelines.LabelTab, "_classifier", staticmethod(classify))
    sessions = Sessions(engine_of(small_sam), tmp_path)
    session = sessions.get("page")
    session.open(Picture("coffee.png", coffee))
    session.add((*CUP, 1), None, refine=True)
    request: Any = SimpleNamespace(session_hash="page")
    with counting(small_sam) as encoded:
        session.decode(sessions.predictor(session.require_picture()), sessions.engine)
        with gr.Blocks():
            components = Components(sessions, *(gr.HTML() for _ in range(5)))
            everything, text = EverythingTab(components), pipelines.TextTab(components)
            label = pipelines.LabelTab(components)
        everything.find("grid", 2, 0.0, 0.0, 1.0, 0, request)
        _, status, *_ = text.find("a cup", 0.25, 0.25, request)
        assert "Found: 1 a cup." in status
        label.label("tea, coffee", 2, 0.0, 0.0, request)
    assert session.records and encoded == [1]


def test_everything_searches_where_it_is_told(
    tiny_sam: MobileSam, coffee: NDArray[np.uint8], tmp_path: Path
) -> None:
    sessions = Sessions(engine_of(tiny_sam), tmp_path)
    session = sessions.get("page")
    session.open(Picture("coffee.png", coffee))
    request: Any = SimpleNamespace(session_hash="page")
    asked: list[str] = []

    def propose(pixels: NDArray[np.uint8], name: str) -> list[list[int]]:
        asked.append(name)
        return [[0, 0, 200, 200], [300, 100, 600, 400]]

    with gr.Blocks():
        everything = EverythingTab(Components(sessions, *(gr.HTML() for _ in range(5))), propose)
    everything.find("hierarchical", 2, 0.0, 0.0, 1.0, 0, request)
    assert asked == [] and all(record["point_coords"] for record in session.records)
    everything.find("proposals", 2, 0.0, 0.0, 1.0, 0, request)
    assert asked == ["coffee.png"] and 0 < len(session.records) <= 2
    assert not any(record["point_coords"] for record in session.records)


def test_the_first_frame_of_a_track_is_not_encoded_again(
    small_sam: MobileSam, tmp_path: Path
) -> None:
    video = write_video(tmp_path / "disc.mp4")
    sessions = Sessions(engine_of(small_sam), tmp_path)
    request: Any = SimpleNamespace(session_hash="page")
    session = sessions.get("page")
    with counting(small_sam) as encoded:
        with gr.Blocks():
            track = pipelines.TrackTab(Components(sessions, *(gr.HTML() for _ in range(5))))
        track.open(video, request)
        session.add((50, 60, 1), None, refine=True)
        session.decode(sessions.predictor(session.require_picture()), sessions.engine)
        assert encoded == [1]
        track.track(request, lambda *_, **__: None)
    assert len(encoded) == 1 + 3  # of four frames


@pytest.fixture(scope="module")
def exported(tiny_sam: MobileSam, tmp_path_factory: pytest.TempPathFactory) -> Files:
    return write_files(tiny_sam, tmp_path_factory.mktemp("exported"), opset=18)


def test_exported_files_click_and_find_everything(
    exported: Files, tiny_sam: MobileSam, coffee: NDArray[np.uint8], tmp_path: Path
) -> None:
    engine = Engine(OnnxBackend(OnnxPredictor(*exported)))
    sessions = Sessions(engine, tmp_path)
    session = sessions.get("page")
    session.open(Picture(str(PHOTOGRAPHS / "coffee.png"), coffee))
    request: Any = SimpleNamespace(session_hash="page")
    blocks = build_page(sessions).blocks.values()
    labels = {block.label for block in blocks if isinstance(block, gr.Tab)}
    assert labels == {"Click", "Everything"}

    session.add((*CUP, 1), None, refine=True)
    session.decode(sessions.predictor(session.require_picture()), engine)
    predictor = SamPredictor(tiny_sam)
    predictor.set_image(coffee)
    masks, scores, _ = predictor.predict([CUP], [1])
    mask = session.require_mask()
    assert (mask == masks[scores.argmax()]).mean() > 0.999
    lines: dict[str, Any] = {}
    exec(python_lines(session, engine.backend, None), lines)
    np.testing.assert_array_equal(lines["mask"], mask)

    with gr.Blocks():
        everything = EverythingTab(Components(sessions, *(gr.HTML() for _ in range(5))))
    everything.find("grid", 2, 0.0, 0.0, 1.0, 0, request)
    generator = SamAutomaticMaskGenerator(
        tiny_sam, 2, pred_iou_thresh=0, stability_score_thresh=0, output_mode="coco_rle"
    )
    assert_same_records(session.records, drop_empty(generator.generate(coffee)))


@pytest.mark.process
def test_exported_files_are_served_without_torch(exported: Files) -> None:
    port = free_port()
    code = (
        "import sys\nsys.modules['torch'] = None\n"
        "from mobile_sam_plugin.cli import main\nsys.exit(main(sys.argv[1:]))"
    )
    options = ("--backend", "onnx", "--onnx-dir", str(exported[0].parent), "--port", str(port))
    with subprocess.Popen(
        [sys.executable, "-u", "-c", code, "app", *options], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith(f"http://127.0.0.1:{port}")
        with urlopen(f"http://127.0.0.1:{port}/config") as answer:
            assert b"Segment everything" in answer.read()
        process.kill()


def test_images_of_embeddings_are_not_encoded(
    small_sam: MobileSam, predictor: SamPredictor, coffee: NDArray[np.uint8], tmp_path: Path
) -> None:
    predictor.save_embedding(tmp_path / "embeddings" / "coffee.safetensors")
    engine = Engine(TorchBackend(small_sam, tmp_path / "embeddings"))
    sessions = Sessions(engine, tmp_path)
    with counting(small_sam) as encoded:
        found = sessions.predictor(Picture("cup.png", coffee))
        assert encoded == []
        sessions.predictor(Picture("mirrored.png", coffee[:, ::-1].copy()))
        assert encoded == [1]
    for one, other in zip(found.predict([CUP], [1]), predictor.predict([CUP], [1]), strict=True):
        np.testing.assert_array_equal(one, other)


def test_embeddings_of_another_model_are_refused_before_the_page_is_served(
    small_sam: MobileSam, tiny_sam: MobileSam, coffee: NDArray[np.uint8], tmp_path: Path
) -> None:
    other = SamPredictor(tiny_sam)
    other.set_image(coffee)
    other.save_embedding(tmp_path / "coffee.safetensors")
    with pytest.raises(ValueError, match="of another model, test_efficientnet for 256"):
        TorchBackend(small_sam, tmp_path)


@pytest.mark.parametrize("width", [1281, 4000])
def test_large_pictures_are_shown_small_and_segmented_whole(
    small_sam: MobileSam, tmp_path: Path, width: int
) -> None:
    pixels = np.zeros((300, width, 3), dtype=np.uint8)
    pixels[100:200, 400:900] = 200
    Image.fromarray(pixels).save(tmp_path / "wide.png")
    engine = Engine(TorchBackend(small_sam), Limits(max_pixels=2_000_000))
    picture = read_picture(tmp_path / "wide.png", "wide.png", engine)
    assert picture.shown.shape[1] == 1280
    session = Sessions(engine, tmp_path).get("a")
    session.open(picture)
    session.add((600, 150, 1), None, refine=True)
    predictor = SamPredictor(small_sam)
    predictor.set_image(pixels)
    session.decode(predictor, engine)
    assert session.require_mask().shape == (300, width)
    drawn = session.draw()
    assert drawn is not None and drawn.shape == picture.shown.shape


def run_app(*options: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "mobile_sam_plugin", "app", *options],
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.mark.parametrize("host", ["::1", "[::1]", "127.0.0.1"])
def test_addresses_of_both_versions(small_sam: MobileSam, host: str) -> None:
    port = free_port()
    try:
        check_address(host, port)
    except typer.BadParameter as error:
        pytest.skip(f"this machine has no {host}: {error.message}")
    with serve(engine_of(small_sam), host, port) as address:
        assert address == f"http://{'127.0.0.1' if '.' in host else '[::1]'}:{port}"
        assert requests.get(address, timeout=60).ok


@pytest.mark.process
def test_taken_port_is_told_in_one_line() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = run_app("--port", str(port))
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1 and f"port {port}" in done.stderr


@pytest.mark.process
def test_missing_gradio_is_told_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "gradio.py").write_text("raise ImportError('no gradio')")
    done = subprocess.run(
        [sys.executable, "-m", "mobile_sam_plugin", "app", "--port", str(free_port())],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
    )
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        'mobile-sam: gradio is not installed: run pip install "mobile-sam-plugin[app]"'
    ]


@pytest.mark.process
def test_ctrl_c_stops_it_and_takes_the_files_along(command: Command) -> None:
    """The last test of the command, which it ends."""
    assert requests.get(command.address, timeout=60).ok
    assert list(command.folder.glob("mobile-sam-app-*"))
    command.process.send_signal(signal.SIGINT)
    assert command.process.wait(120) == 130
    assert not list(command.folder.glob("mobile-sam-app-*"))
