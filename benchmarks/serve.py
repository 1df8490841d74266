"""The HTTP service under load: clients that click on ten images, beside the decoder's own time.

The service runs in a process of its own, the clients in this one. Each client clicks on one of the
ten images at a random place, waits for the mask, and clicks again. All images have been sent
before, so that a click is a request with a digest.
"""

import argparse
import json
import random
import re
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from .report import seconds

PHOTOGRAPHS = Path(__file__).parent.parent / "examples" / "images"
PORT = 8765


def measure(duration: float, clients: list[int], workers: int) -> list[str]:
    """Returns the lines of a report."""
    import httpx

    address = f"http://127.0.0.1:{PORT}"
    command = [sys.executable, "-m", "mobile_sam_plugin", "serve", "--checkpoint", "bundled"]
    command += ["--port", str(PORT), "--workers", str(workers), "--queue", "128"]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        _await(address, process)
        images = [_send(address, index) for index in range(10)]
        lines = [f"decoder alone: {seconds(_decode_alone())} a click, median of 50"]
        for number in clients:
            before = _memory(process.pid)
            times, refused = _load(address, images, number, duration)
            grown = _memory(process.pid) - before
            cuts = statistics.quantiles(times, n=100)
            lines.append(
                f"{number} clients: {len(times) / duration:.1f} masks a second, median "
                f"{seconds(cuts[49])}, 99th percentile {seconds(cuts[98])}, {len(times):,} "
                f"answered, {refused} refused, memory {grown / 1e6:+.1f} MB"
            )
        metrics = httpx.get(f"{address}/metrics").text
        total, count = (
            float(re.findall(rf'work_seconds_{kind}{{work="decode"}} (\S+)', metrics)[0])
            for kind in ("sum", "count")
        )
        lines.append(f"decoder in the service: {seconds(total / count)} a click on average")
    finally:
        process.terminate()
        process.wait(60)
    return lines


def _await(address: str, process: "subprocess.Popen[bytes]") -> None:
    import httpx

    for _ in range(600):
        try:
            httpx.get(f"{address}/v1/health")
            return
        except httpx.TransportError:
            if process.poll() is not None:
                raise OSError("the service has ended: is its port taken?") from None
            time.sleep(0.2)


def _send(address: str, index: int) -> dict[str, Any]:
    """Sends one of ten images: the photographs, and turned copies of them."""
    import httpx
    import numpy as np

    from mobile_sam_plugin.files import encode_image
    from mobile_sam_plugin.images import load_image
    from mobile_sam_plugin.photographs import list_photographs

    photographs = [load_image(path) for path in list_photographs()]
    pixels = np.rot90(photographs[index % len(photographs)], index // len(photographs))
    image = encode_image(".png", np.ascontiguousarray(pixels))
    data = {"request": json.dumps({"prompts": [{"points": [[1, 1]], "labels": [1]}]})}
    answer = httpx.post(f"{address}/v1/predict", files={"image": image}, data=data, timeout=120)
    described: dict[str, Any] = answer.raise_for_status().json()["image"]
    return described


def _load(
    address: str, images: list[dict[str, Any]], number: int, duration: float
) -> tuple[list[float], int]:
    """Returns the seconds of each click that was answered, and how many got a 503."""
    import httpx

    times: list[float] = []
    refused = 0
    end = time.monotonic() + duration

    def click(seed: int) -> None:
        nonlocal refused
        chance = random.Random(seed)
        with httpx.Client(base_url=address, timeout=120) as client:
            while time.monotonic() < end:
                image = chance.choice(images)
                point = chance.randrange(image["width"]), chance.randrange(image["height"])
                prompt = {"points": [point], "labels": [1]}
                asked = {"image": {"sha256": image["sha256"]}, "prompts": [prompt]}
                start = time.perf_counter()
                answer = client.post("/v1/predict", json=asked)
                if answer.status_code == 503:
                    refused += 1
                    time.sleep(0.1)
                    continue
                answer.raise_for_status()
                times.append(time.perf_counter() - start)

    threads = [threading.Thread(target=click, args=(seed,)) for seed in range(number)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return times, refused


def _decode_alone() -> float:
    """The median of a click in this process, while the service has nothing to do."""
    from mobile_sam_plugin import SamPredictor, build_sam_vit_t
    from mobile_sam_plugin.images import load_image

    predictor = SamPredictor(build_sam_vit_t("bundled"))
    predictor.set_image(load_image(PHOTOGRAPHS / "coffee.png"))
    times = []
    for _ in range(50):
        start = time.perf_counter()
        predictor.predict([[300, 130]], [1])
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def _memory(pid: int) -> int:
    """Resident bytes of a process."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of this benchmark."""
    parser.add_argument("--seconds", type=float, default=60, help="for each number of clients")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--workers", type=int, default=2)


def run(arguments: argparse.Namespace) -> None:
    """Measures and prints."""
    print(*measure(arguments.seconds, arguments.clients, arguments.workers), sep="\n")
