"""examples/web in a real browser, with onnxruntime-web from the npm registry, served from disk."""

import math
import os
import re
import runpy
import shutil
import subprocess
import tarfile
import threading
from collections.abc import Callable, Iterator
from functools import partial
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from mobile_sam_plugin import MobileSam, SamAutomaticMaskGenerator, SamPredictor, build_sam_vit_t
from mobile_sam_plugin.deploy.onnx_export import _add_preprocessing

from ..conftest import HERE, PHOTOGRAPHS
from .conftest import Files, write_files

sync_api: Any = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

CHROMIUM = shutil.which("chromium")
CLICK = (550, 60)


WEB = HERE.parent / "examples" / "web"
Handler: Any = runpy.run_path(str(WEB / "serve.py"))["Handler"]


class Quiet(Handler):
    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture(scope="module")
def site(files: Files, tiny_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a folder with the page twice, on the bundled and on the tiny model."""
    if CHROMIUM is None:
        pytest.skip("there is no chromium on this machine")
    whole = tmp_path_factory.mktemp("site")
    _unpack_onnxruntime_web(whole)
    tiny_folder = tmp_path_factory.mktemp("tiny")
    tiny_files = write_files(build_sam_vit_t(tiny_file), tiny_folder, opset=18)
    for name, halves in {"bundled": files, "tiny": tiny_files}.items():
        folder = whole / name
        shutil.copytree(WEB, folder)
        (folder / "onnxruntime-web").symlink_to(whole / "onnxruntime-web")
        encoder, _ = (Path(shutil.copy(path, folder)) for path in halves)
        _add_preprocessing(encoder, size=1024, opset=18)
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(whole)))
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
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"]
        )
        yield browser
        browser.close()


@pytest.fixture
def open_page(site: str, browser: Any) -> Iterator[Callable[[str], Any]]:
    """Opens the page on a model as a visitor does, who has done nothing yet."""
    errors: list[str] = []
    pages = []

    def open_on(model: str) -> Any:
        page = browser.new_page(viewport={"width": 1000, "height": 800})
        pages.append(page)
        page.set_default_timeout(120_000)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(f"{site}{model}/")
        page.get_by_text("Choose a photograph.").wait_for()
        return page

    yield open_on
    assert errors == []
    for page in pages:
        page.close()


def show_coffee(page: Any) -> None:
    """Chooses the photograph, and waits until it is encoded."""
    page.set_input_files("#file", PHOTOGRAPHS / "coffee.png")
    page.get_by_text("Click on an object.", exact=True).wait_for()


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
    return float(page.inner_text("#status").split()[2].rstrip("."))


@pytest.mark.browser
def test_clicks_give_the_masks_that_python_gives(
    open_page: Callable[[str], Any], bundled_sam: MobileSam, coffee: NDArray[np.uint8]
) -> None:
    page = open_page("bundled")
    show_coffee(page)
    assert not shown_mask(page).any()
    predictor = SamPredictor(bundled_sam)
    predictor.set_image(coffee)

    page.click("#mask", position=dict(zip("xy", CLICK, strict=True)))
    page.get_by_text(re.compile(r"^Predicted IoU \d")).wait_for()
    masks, scores, _ = predictor.predict([CLICK], [1])
    assert re.fullmatch(r"First mask in \d+ ms: \d+ to encode, \d+ to decode\.", shown_times(page))
    assert_same(shown_mask(page), masks[scores.argmax()])
    assert shown_score(page) == pytest.approx(scores.max(), abs=5e-3)
    if "WEB_PAGE_PICTURE" in os.environ:
        page.locator("body").screenshot(path=os.environ["WEB_PAGE_PICTURE"])

    before = page.inner_text("#status")
    page.click("#mask", position={"x": 40, "y": 30}, modifiers=["Shift"])
    masks, scores, _ = predictor.predict([CLICK, (40, 30)], [1, 0], multimask_output=False)
    page.wait_for_function(f"document.querySelector('#status').textContent !== {before!r}")
    page.get_by_text(re.compile(r"^Predicted IoU \d")).wait_for()
    assert shown_score(page) == pytest.approx(scores[0], abs=5e-3)
    assert_same(shown_mask(page), masks[0])
    assert re.fullmatch(r"Next mask in \d+ ms\.", shown_times(page))

    page.click("#clear")
    assert not shown_mask(page).any()


@pytest.mark.browser
def test_the_page_tells_why_it_does_not_run_on_webgpu(open_page: Callable[[str], Any]) -> None:
    page = open_page("tiny")
    told = page.inner_text("#runtime")
    threads = r"WebAssembly, (\d+) threads? because WebGPU finds no graphics card"
    found = re.fullmatch(rf"Runs on {threads}; loaded in \d+ ms\.", told)
    cores = page.evaluate("navigator.hardwareConcurrency")
    assert found and int(found[1]) == min(4, math.ceil(cores / 2))


@pytest.mark.browser
def test_everything_is_what_python_finds(
    open_page: Callable[[str], Any], tiny_file: Path, coffee: NDArray[np.uint8]
) -> None:
    page = open_page("tiny")
    show_coffee(page)
    for name, value in (("points", 3), ("score", 0.1), ("stability", 0.25)):
        page.fill(f"#{name}", str(value))
    page.evaluate(
        """() => {
            const progress = document.getElementById("progress");
            window.progressed = [];
            new MutationObserver(() => window.progressed.push(progress.value))
                .observe(progress, { attributes: true });
        }"""
    )
    page.click("#find")
    page.wait_for_function("document.querySelector('#times').textContent.startsWith('Everything')")
    assert set(page.evaluate("window.progressed")) >= {4, 8, 9}
    generator = SamAutomaticMaskGenerator(
        build_sam_vit_t(tiny_file), 3, pred_iou_thresh=0.1, stability_score_thresh=0.25
    )
    records = generator.generate(coffee)
    assert len(records) > 2
    assert page.inner_text("#status") == f"Found {len(records)} masks."
    assert_same(shown_mask(page), np.any([record["segmentation"] for record in records], axis=0))


@pytest.mark.browser
def test_files_that_are_missing_are_told(open_page: Callable[[str], Any]) -> None:
    page = open_page("tiny")
    page.select_option("#precision", "int8/")
    missing = "there is no int8/mobile_sam_encoder.onnx, no int8/mobile_sam_decoder.onnx"
    page.get_by_text(missing).wait_for()
    page.select_option("#precision", "./")
    page.get_by_text("Choose a photograph.").wait_for()


def shown_times(page: Any) -> str:
    return str(page.inner_text("#times"))


def assert_same(mask: NDArray[np.bool_], expected: NDArray[np.bool_]) -> None:
    assert expected.any() and not expected.all()
    assert mask.shape == expected.shape
    assert (mask & expected).sum() >= 0.99 * (mask | expected).sum()
