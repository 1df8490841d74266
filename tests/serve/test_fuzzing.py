"""Requests that no one meant, from the OpenAPI document and made by hand: none is a fault."""

import json
import os
import random
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings

from mobile_sam_plugin.engine import Engine, Limits, TorchBackend
from mobile_sam_plugin.serve.api import create_api

from ..conftest import PHOTOGRAPHS
from .conftest import serving

COFFEE = (PHOTOGRAPHS / "coffee.png").read_bytes()
ENDPOINTS = ("/v1/predict", "/v1/everything", "/v1/embed")
NAMES = ("image", "prompts", "points", "labels", "box", "mask", "size", "counts", "sha256", "path")
HAND_MADE = int(os.environ.get("HAND_MADE_REQUESTS", "500"))
GENERATED = int(os.environ.get("GENERATED_REQUESTS", "15"))  # of each kind and endpoint
REFUSALS = {400, 404, 405, 408, 413, 415, 421, 422}


@pytest.fixture(scope="module")
def service(torch_backend: TorchBackend) -> Iterator[httpx.Client]:
    limits = Limits(max_bytes=2**20, max_pixels=1_000_000, max_prompts=8, seconds=20)
    with serving(create_api(Engine(torch_backend, limits))) as client:
        yield client


def break_bytes(content: bytes, chance: random.Random) -> bytes:
    """A truncated, altered or repeated copy."""
    broken = bytearray(content[: chance.randrange(len(content) + 1)])
    for _ in range(chance.randrange(20)):
        if broken:
            broken[chance.randrange(len(broken))] = chance.randrange(256)
    return bytes(broken) * chance.choice([1, 1, 1, 2])


def any_value(chance: random.Random, depth: int = 0) -> Any:
    leaves: list[Any] = [None, True, 0, -1, 1e308, 2**70, "", "../x", "\0", "é", "0" * 64]
    if depth > 3 or chance.random() < 0.4:
        return chance.choice(leaves)
    if chance.random() < 0.5:
        return [any_value(chance, depth + 1) for _ in range(chance.randrange(4))]
    return {chance.choice(NAMES): any_value(chance, depth + 1) for _ in range(chance.randrange(4))}


def any_request(chance: random.Random) -> dict[str, Any]:
    """Arguments of ``httpx.Client.post``."""
    url = chance.choice(ENDPOINTS)
    value = any_value(chance)
    if url == "/v1/predict" and chance.random() < 0.7:
        value = {"prompts": [any_value(chance, 1) for _ in range(chance.randrange(12))]}
    text = json.dumps(value).encode()
    way = chance.randrange(4)
    if way == 0:
        return {"url": url, "content": text, "headers": {"content-type": "application/json"}}
    if way == 1:
        kind = chance.choice(["application/json", "multipart/form-data; boundary=a", "text/plain"])
        content = break_bytes(text + b"--a\r\n\r\n--a--", chance)
        return {"url": url, "content": content, "headers": {"content-type": kind}}
    data = {"request": '{"prompts": [{"box": [1, 1, 9, 9]}]}' if way == 2 else text.decode()}
    return {"url": url, "files": {"image": ("a.png", break_bytes(COFFEE, chance))}, "data": data}


def memory() -> int:
    """Resident bytes of this process, in which the service runs."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096


def test_hand_made_requests_are_refused(service: httpx.Client) -> None:
    chance = random.Random(0)
    refused = 0
    for number in range(HAND_MADE):
        if number == HAND_MADE // 5:  # by now all has been imported and allocated
            before = memory()
        request = any_request(chance)
        started = time.monotonic()
        answer = service.post(**request)
        assert answer.status_code in REFUSALS | {200}, (request, answer.text)
        assert time.monotonic() - started < 25, request
        refused += answer.status_code != 200
    assert refused > HAND_MADE // 2
    assert memory() - before < 100 * 2**20
    assert service.get("/v1/health").status_code == 200


@pytest.mark.parametrize("endpoint", ENDPOINTS)
@pytest.mark.parametrize("mode", list(schemathesis.GenerationMode))
def test_generated_requests_are_no_faults(
    service: httpx.Client, endpoint: str, mode: schemathesis.GenerationMode
) -> None:
    schema = schemathesis.openapi.from_url(f"{service.base_url}/openapi.json")
    schema.config.generation.update(modes=[mode])
    cases = schema[endpoint]["POST"].as_strategy(generation_mode=mode)

    @settings(
        max_examples=GENERATED,
        deadline=None,
        database=None,
        derandomize=True,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(cases)
    def call(case: Any) -> None:
        answer = case.call(timeout=25)
        assert answer.status_code in REFUSALS | {200}, answer.text

    call()
