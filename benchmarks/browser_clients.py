"""Pages of others in Chromium, on the files of ``mobile-sam export --for``.

    python -m benchmarks.browser_clients transformers.js
    python -m benchmarks.browser_clients sam-web-demo --source CHECKOUT_OF_SEGMENT_ANYTHING

npm brings transformers.js, the onnxruntime-web that it asks for, and what SAM's demo is built with.
Printed are the IoU of a page's masks with those of ``SamPredictor``. The browser resizes what it
gives transformers.js, so its masks are compared with those on the same picture, too. SAM's demo
knows single clicks only, and has its embedding from torch.
"""

import argparse
import base64
import io
import json
import os
import runpy
import shutil
import subprocess
import tarfile
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from mobile_sam_plugin import MobileSam, SamPredictor, build_sam_vit_t
from mobile_sam_plugin.deploy import export
from mobile_sam_plugin.inputs import PIXEL_MEAN, PIXEL_STD

from .clients import BOX, CLICKS, TWO_CLICKS, Pixels, overlap

Handler: Any = runpy.run_path(f"{Path(__file__).parent.parent}/examples/web/serve.py")["Handler"]
# A click, two clicks, and a box as two points: positions XY, and labels.
PROMPTS = [CLICKS, TWO_CLICKS, ([BOX[:2], BOX[2:]], [2, 3])]
HOVERS = [[330, 150], [120, 330], [500, 60]]  # XY

ENCODE = """async () => {
    window.transformers = await import("/transformers/transformers.min.js");
    const { env, SamModel, AutoProcessor, RawImage } = transformers;
    env.allowRemoteModels = false;
    env.allowLocalModels = true;
    env.localModelPath = "/";
    env.useWasmCache = false;
    env.backends.onnx.wasm.wasmPaths = "/onnxruntime-web/";
    window.model = await SamModel.from_pretrained("model", { device: "wasm" });
    window.processor = await AutoProcessor.from_pretrained("model");
    window.inputs = await processor(await RawImage.read("/image.png"));
    const start = performance.now();
    window.embeddings = await model.get_image_embeddings(inputs);
    const seconds = (performance.now() - start) / 1000;
    window.asBase64 = (data) => new Promise((resolve) => {
        const reader = new FileReader();
        reader.onload = () => resolve(reader.result.split(",")[1]);
        reader.readAsDataURL(new Blob([data]));
    });
    return [inputs.reshaped_input_sizes[0], await asBase64(inputs.pixel_values.data), seconds];
}"""
DECODE = """async ([points, labels]) => {
    const { original_sizes, reshaped_input_sizes } = inputs;
    const start = performance.now();
    const outputs = await model({
        ...embeddings,
        input_points: processor.reshape_input_points(
            [[points]], original_sizes, reshaped_input_sizes),
        input_labels: new transformers.Tensor(
            "int64", BigInt64Array.from(labels.map(BigInt)), [1, 1, labels.length]),
    });
    const masks = await processor.post_process_masks(
        outputs.pred_masks, original_sizes, reshaped_input_sizes);
    const seconds = (performance.now() - start) / 1000;
    const scores = Array.from(outputs.iou_scores.data);
    return [masks[0].dims, await asBase64(masks[0].data), scores, seconds];
}"""


class Quiet(Handler):
    def log_message(self, *_: Any) -> None:
        pass


class TransformersJs:
    """A photograph that transformers.js has encoded, in a page.

    Attributes:
        picture: what it gives the model, (h, w, 3) RGB before normalising, whole numbers or nearly.
        seconds: time of encoding.
    """

    def __init__(self, page: Any) -> None:
        self._page = page
        (height, width), values, self.seconds = page.evaluate(ENCODE)
        pixels = np.frombuffer(base64.b64decode(values), np.float32).reshape(3, 1024, 1024)
        picture = pixels.transpose(1, 2, 0)[:height, :width]
        self.picture = picture * np.array(PIXEL_STD, np.float32) + np.array(PIXEL_MEAN, np.float32)

    def predict(
        self, points: Any, labels: Any
    ) -> tuple[NDArray[np.bool_], NDArray[np.float64], float]:
        """Returns the three masks (3, H, W), their scores and the seconds of a prompt."""
        dims, data, scores, seconds = self._page.evaluate(DECODE, [points, labels])
        masks = np.frombuffer(base64.b64decode(data), np.bool_).reshape(dims)[0]
        return masks, np.array(scores), seconds


def fetch_packages(folder: Path) -> str:
    """Gets the distributions of transformers.js and of its onnxruntime-web; its version.

    Raises:
        CalledProcessError: if npm cannot get them.
    """
    about = _unpack("@huggingface/transformers", folder / "transformers")
    _unpack(
        f"onnxruntime-web@{about['dependencies']['onnxruntime-web']}", folder / "onnxruntime-web"
    )
    return str(about["version"])


def _unpack(package: str, target: Path) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        subprocess.run(
            ["npm", "pack", "--silent", package],
            cwd=scratch,
            check=True,
            capture_output=True,
            text=True,
        )
        (archive,) = Path(scratch).glob("*.tgz")
        with tarfile.open(archive) as files:
            files.extractall(scratch, filter="data")
        whole = Path(scratch, "package")
        (whole / "dist").rename(target)
        about: dict[str, Any] = json.loads((whole / "package.json").read_text())
        return about


@contextmanager
def open_page(site: Path) -> Iterator[Any]:
    """Opens a folder's ``index.html`` in Chromium."""
    from playwright.sync_api import sync_playwright

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(site)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox", "--disable-gpu"]
        )
        page = browser.new_page()
        page.set_default_timeout(120_000)
        page.goto(f"http://127.0.0.1:{server.server_port}/")
        yield page
        browser.close()
    server.shutdown()
    server.server_close()


@contextmanager
def open_transformers_js(site: Path) -> Iterator[TransformersJs]:
    """Encodes ``image.png`` of a folder that also has ``model`` and the packages."""
    (site / "index.html").write_text("<!doctype html><title>transformers.js</title>")
    with open_page(site) as page:
        yield TransformersJs(page)


def predict_in_torch(
    predictor: SamPredictor,
    encoded: TransformersJs,
    size: tuple[int, int],
    points: Any,
    labels: Any,
) -> tuple[NDArray[np.bool_], NDArray[np.float32]]:
    """The masks and scores of a prompt on the picture that transformers.js made.

    Args:
        predictor: a predictor; its image is replaced.
        encoded: the photograph there.
        size: height and width of the photograph.
        points: positions XY in it; two corners if the labels are 2 and 3.
        labels: their labels.
    """
    height, width = encoded.picture.shape[:2]
    picture = torch.from_numpy(encoded.picture.round()).permute(2, 0, 1)[None]
    predictor.set_torch_image(picture, size)
    coords = torch.tensor(points) * torch.tensor([width / size[1], height / size[0]])
    prompt: tuple[Any, ...] = (coords[None], torch.tensor(labels)[None])
    if 2 in labels:
        prompt = None, None, coords.reshape(1, 4)
    masks, scores, _ = predictor.predict_torch(*prompt)
    return masks[0].numpy(), scores[0].numpy()


def run_transformers_js(site: Path, sam: MobileSam, photograph: Path, pixels: Pixels) -> None:
    version = fetch_packages(site)
    export(sam, site / "model", [photograph], client="transformers.js")
    Image.fromarray(pixels).save(site / "image.png")
    with open_transformers_js(site) as encoded:
        found = [encoded.predict(*prompt) for prompt in PROMPTS]
    predictor = SamPredictor(sam)
    same, own = [], []
    for (points, labels), (masks, scores, _) in zip(PROMPTS, found, strict=True):
        expected, torch_scores = predict_in_torch(
            predictor, encoded, pixels.shape[:2], points, labels
        )
        same.append(overlap(masks[scores.argmax()], expected[torch_scores.argmax()]))
    predictor.set_image(pixels)
    for (points, labels), (masks, scores, _) in zip(PROMPTS, found, strict=True):
        prompt = {"box": BOX} if 2 in labels else {"point_coords": points, "point_labels": labels}
        expected, torch_scores, _ = predictor.predict(**prompt)
        own.append(overlap(masks[scores.argmax()], expected[torch_scores.argmax()]))
    for title, overlaps in (("its picture", same), ("the photograph", own)):
        print(f"transformers.js {version}, {title}: IoU", *(f"{each:.4f}" for each in overlaps))
    prompt_seconds = np.median([seconds for _, _, seconds in found])
    print(f"image {encoded.seconds:.2f} s  prompt {prompt_seconds:.3f} s")


def build_sam_web_demo(site: Path, source: Path) -> None:
    """Bundles the demo's own files, with the libraries that its package.json names."""
    wanted = json.loads((source / "demo" / "package.json").read_text())["dependencies"]
    libraries = [f"{name}@{version}" for name, version in wanted.items()]
    Path(site, "package.json").write_text("{}")
    install = ["npm", "install", "--silent", "--ignore-scripts", "--no-audit", "esbuild"]
    subprocess.run([*install, *libraries], cwd=site, check=True)
    modules = site / "node_modules"
    subprocess.run(
        [
            *("node", modules / "esbuild" / "bin" / "esbuild", source / "demo/src/index.tsx"),
            *("--bundle", f"--outfile={site}/index.js", "--loader:.scss=empty"),
            *("--format=esm", "--jsx=transform", '--define:process.env.NODE_ENV="production"'),
        ],
        env={**os.environ, "NODE_PATH": str(modules)},
        check=True,
    )
    for path in (modules / "onnxruntime-web" / "dist").glob("ort-wasm*"):
        shutil.copy(path, site)
    (site / "index.html").write_text(
        '<!doctype html><div id="root"></div><script type="module" src="index.js"></script>'
    )


def run_sam_web_demo(
    site: Path, sam: MobileSam, photograph: Path, pixels: Pixels, source: Path
) -> None:
    build_sam_web_demo(site, source)
    export(sam, site / "model", [photograph], client="sam-web-demo")
    data = site / "assets" / "data"
    data.mkdir(parents=True)
    Image.fromarray(pixels).save(data / "dogs.jpg", format="PNG")  # a browser looks at the content
    predictor = SamPredictor(sam)
    predictor.set_image(pixels)
    np.save(data / "dogs_embedding.npy", predictor.get_image_embedding().numpy())
    # The demo scales clicks by one factor, and SAM the image to whole pixels: this brings them
    # to the same place.
    size = np.array(predictor.original_size[::-1])
    scale = 1024 / size.max() / (np.array(predictor.input_size[::-1]) / size)
    overlaps, seconds = [], []
    with open_page(site) as page:
        photo, mask = page.locator("img").nth(0), page.locator("img").nth(1)
        photo.wait_for()
        corner = photo.bounding_box()
        for step in range(200):  # it tells nowhere that it has loaded
            if mask.count():
                break
            page.mouse.move(corner["x"] + 5 + step % 2, corner["y"] + 5)
            time.sleep(0.5)
        for x, y in HOVERS:
            time.sleep(2)  # for what is still computed
            before = mask.get_attribute("src")
            start = time.perf_counter()
            page.mouse.move(corner["x"] + x, corner["y"] + y)
            page.wait_for_function(
                "before => document.images[1] && document.images[1].src !== before", arg=before
            )
            seconds.append(time.perf_counter() - start)
            png = base64.b64decode(mask.get_attribute("src").partition(",")[2])
            found = np.asarray(Image.open(io.BytesIO(png)))[..., 3] > 0
            masks, scores, _ = predictor.predict([[x, y] * scale], [1])
            overlaps.append(overlap(found, masks[scores.argmax()]))
    print("sam-web-demo: IoU", *(f"{each:.4f}" for each in overlaps), end="  ")
    print(f"prompt {np.median(seconds):.3f} s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=["transformers.js", "sam-web-demo"])
    parser.add_argument("--source", type=Path, help="segment-anything, for its demo")
    parser.add_argument("--image", type=Path, default=Path("examples/images/coffee.png"))
    parser.add_argument("--checkpoint", default="bundled")
    given = parser.parse_args()
    sam = build_sam_vit_t(given.checkpoint)
    pixels = np.asarray(Image.open(given.image).convert("RGB"))
    with tempfile.TemporaryDirectory() as name:
        if given.name == "transformers.js":
            run_transformers_js(Path(name), sam, given.image, pixels)
        else:
            run_sam_web_demo(Path(name), sam, given.image, pixels, given.source.resolve())


if __name__ == "__main__":
    main()
