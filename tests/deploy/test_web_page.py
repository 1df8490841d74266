"""examples/web in a real browser, with onnxruntime-web from the npm registry, served from disk."""

import os
import shutil
import subprocess
import tarfile
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from mobile_sam_plugin import MobileSam, SamPredictor
from mobile_sam_plugin.deploy.onnx_export import _add_preprocessing

from ..conftest import HERE, PHOTOGRAPHS
from .conftest import Files

sync_api: Any = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

CHROMIUM = shutil.which("chromium")
CLICK = (550, 60)


class Handler(SimpleHTTPRequestHandler):
    """Serves quietly, and lets the page use threads."""

    extensions_map = {**SimpleHTTPRequestHandler.extensions_map, ".mjs": "text/javascript"}

    def end_headers(self) -> None:
        self.send_header("Cross-Origin-Opener-Policy", "same-origin")
        self.send_header("Cross-Origin-Embedder-Policy", "require-corp")
        super().end_headers()

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture(scope="module")
def site(files: Files, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of the page, with the two files and onnxruntime-web beside it."""
    if CHROMIUM is None:
        pytest.skip("there is no chromium on this machine")
    folder = tmp_path_factory.mktemp("site")
    shutil.copytree(HERE.parent / "examples" / "web", folder, dirs_exist_ok=True)
    _unpack_onnxruntime_web(folder)
    encoder, _ = (Path(shutil.copy(path, folder)) for path in files)
    _add_preprocessing(encoder, size=1024, opset=18)
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()


def _unpack_onnxruntime_web(folder: Path) -> None:
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("there is no npm on this machine to get onnxruntime-web by")
    done = subprocess.run(
        [npm, "pack", "--silent", "onnxruntime-web"], cwd=folder, capture_output=True, text=True
    )
    if done.returncode:
        pytest.skip(f"npm cannot get onnxruntime-web: {done.stderr.strip()[:200]}")
    (archive,) = folder.glob("onnxruntime-web-*.tgz")
    with tarfile.open(archive) as package:
        package.extractall(folder, filter="data")
    os.rename(folder / "package" / "dist", folder / "onnxruntime-web")


@pytest.fixture(scope="module")
def page(site: str) -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"]
        )
        page = browser.new_page(viewport={"width": 1000, "height": 800})
        page.set_default_timeout(300_000)
        errors: list[str] = []
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(site)
        page.get_by_text("Choose a photograph.").wait_for()
        yield page
        assert errors == []
        browser.close()


def shown_mask(page: Any) -> NDArray[np.bool_]:
    """The overlay's pixels that are not transparent, (H, W)."""
    width, height, alpha = page.evaluate(
        """() => {
            const canvas = document.getElementById("mask");
            const pixels = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
            const alpha = [];
            for (let i = 3; i < pixels.data.length; i += 4) alpha.push(pixels.data[i] > 0 ? 1 : 0);
            return [canvas.width, canvas.height, alpha];
        }"""
    )
    return np.array(alpha, dtype=bool).reshape(height, width)


def shown_score(page: Any) -> float:
    return float(page.inner_text("#status").split()[2].rstrip(","))


@pytest.mark.browser
def test_clicks_give_the_masks_that_python_gives(
    page: Any, bundled_sam: MobileSam, coffee: NDArray[np.uint8]
) -> None:
    page.set_input_files("#file", PHOTOGRAPHS / "coffee.png")
    page.get_by_text("Click on an object.", exact=True).wait_for()
    assert not shown_mask(page).any()
    predictor = SamPredictor(bundled_sam)
    predictor.set_image(coffee)

    page.click("#mask", position=dict(zip("xy", CLICK, strict=True)))
    page.get_by_text("Predicted IoU").wait_for()
    masks, scores, _ = predictor.predict([CLICK], [1])
    assert_same(shown_mask(page), masks[scores.argmax()])
    assert shown_score(page) == pytest.approx(scores.max(), abs=5e-3)
    if "WEB_PAGE_PICTURE" in os.environ:
        page.locator("body").screenshot(path=os.environ["WEB_PAGE_PICTURE"])

    before = page.inner_text("#status")
    page.click("#mask", position={"x": 40, "y": 30}, modifiers=["Shift"])
    masks, scores, _ = predictor.predict([CLICK, (40, 30)], [1, 0], multimask_output=False)
    page.wait_for_function(f"document.querySelector('#status').textContent !== {before!r}")
    page.get_by_text("Predicted IoU").wait_for()
    assert shown_score(page) == pytest.approx(scores[0], abs=5e-3)
    assert_same(shown_mask(page), masks[0])

    page.click("#clear")
    assert not shown_mask(page).any()


def assert_same(mask: NDArray[np.bool_], expected: NDArray[np.bool_]) -> None:
    assert expected.any() and not expected.all()
    assert mask.shape == expected.shape
    assert (mask & expected).sum() >= 0.99 * (mask | expected).sum()
