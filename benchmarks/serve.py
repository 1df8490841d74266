"""The HTTP service under load: clients that click on ten images, beside the decoder's own time.

The service runs in a process of its own, the clients in this one. Each client clicks on one of the
ten images at a random place, waits for the mask, and clicks again. All images have been sent
before, so that a click is a request with a digest.
"""

import argparse
import itertools
import json
import random
import re
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .endurance import describe_growth
from .report import seconds

PHOTOGRAPHS = Path(__file__).parent.parent / "examples" / "images"
PORT = 8765


def measure(duration: float, clients: list[int], workers: int) -> list[str]:
    """Returns the lines of a report on so many seconds with each number of clients."""
    import httpx

    with _service(workers) as (address, process):
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
    return [*lines, f"decoder in the service: {seconds(total / count)} a click on average"]


def measure_memory(requests: int, clients: int, workers: int) -> str:
    """Returns a line on the memory of the service over so many clicks."""
    step = max(1, requests // 100)
    with _service(workers) as (address, process):
        images = [_send(address, index) for index in range(10)]
        megabytes = _load_and_weigh(address, images, clients, requests, step, process.pid)
    grown = describe_growth(megabytes, step, "a request")
    return f"{requests:,} requests of {clients} clients: {grown}"


@contextmanager
def _service(workers: int) -> "Iterator[tuple[str, subprocess.Popen[bytes]]]":
    """Runs the service; yields its address and its process."""
    address = f"http://127.0.0.1:{PORT}"
    command = [sys.executable, "-m", "mobile_sam_plugin", "serve", "--checkpoint", "bundled"]
    command += ["--port", str(PORT), "--workers", str(workers), "--queue", "128"]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        _await(address, process)
        yield address, process
    finally:
        process.terminate()
        process.wait(60)


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
    times: list[float] = []
    refused = 0
    end = time.monotonic() + duration

    def click(seed: int) -> None:
        nonlocal refused
        for seconds_taken in _clicks(address, images, seed):
            if seconds_taken is None:
                refused += 1
                time.sleep(0.1)
            else:
                times.append(seconds_taken)
            if time.monotonic() > end:
                return

    _run_clients(click, number)
    return times, refused


def _load_and_weigh(
    address: str, images: list[dict[str, Any]], number: int, requests: int, step: int, pid: int
) -> list[float]:
    """Returns the megabytes of a process after every so many answered clicks."""
    numbers = itertools.count(1)
    megabytes: list[float] = []

    def click(seed: int) -> None:
        for _ in _clicks(address, images, seed):
            count = next(numbers)
            if count > requests:
                return
            if count % step == 0:
                megabytes.append(_memory(pid) / 2**20)

    _run_clients(click, number)
    return megabytes


def _run_clients(click: Callable[[int], None], number: int) -> None:
    """Calls a function in so many threads, with a number each, to their ends."""
    threads = [threading.Thread(target=click, args=(seed,)) for seed in range(number)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _clicks(address: str, images: list[dict[str, Any]], seed: int) -> Iterator[float | None]:
    """Clicks for ever; yields the seconds of each answer, None for a 503."""
    import httpx

    chance = random.Random(seed)
    with httpx.Client(base_url=address, timeout=120) as client:
        while True:
            image = chance.choice(images)
            point = chance.randrange(image["width"]), chance.randrange(image["height"])
            prompt = {"points": [point], "labels": [1]}
            asked = {"image": {"sha256": image["sha256"]}, "prompts": [prompt]}
            start = time.perf_counter()
            answer = client.post("/v1/predict", json=asked)
            if answer.status_code != 503:
                answer.raise_for_status()
            yield None if answer.status_code == 503 else time.perf_counter() - start


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
    parser.add_argument(
        "--requests", type=int, help="instead: memory over so many clicks of the first --clients"
    )


def run(arguments: argparse.Namespace) -> None:
    """Measures and prints."""
    clients, workers = arguments.clients, arguments.workers
    if arguments.requests:
        print(measure_memory(arguments.requests, clients[0], workers))
    else:
        print(*measure(arguments.seconds, clients, workers), sep="\n")
