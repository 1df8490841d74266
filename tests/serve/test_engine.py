"""The engine that the page and the service share: workers, queue, limits and embeddings."""

import ctypes
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from mobile_sam_plugin import MobileSam, SamAutomaticMaskGenerator, SamPredictor
from mobile_sam_plugin.engine import (
    Backend,
    Deadline,
    Engine,
    Limits,
    OnnxBackend,
    Prompt,
    QueueFull,
    TimedOut,
    TorchBackend,
    Unavailable,
    WorkerDied,
    decode_prompts,
    digest_image,
)
from mobile_sam_plugin.errors import UserError
from mobile_sam_plugin.everything import drop_empty
from mobile_sam_plugin.mask_postprocessing import rle_from_mask

from ..records import assert_same_records

Pixels = NDArray[np.uint8]


def encode(engine: Engine, pixels: Pixels) -> Any:
    return engine.predictor(digest_image(pixels), pixels)


@pytest.fixture(params=["torch", "onnx"])
def backend(
    request: pytest.FixtureRequest, torch_backend: TorchBackend, onnx_backend: OnnxBackend
) -> Backend:
    return torch_backend if request.param == "torch" else onnx_backend


@pytest.fixture
def held(engine: Engine) -> Iterator[threading.Event]:
    """Keeps all decoders busy until it is set."""
    release, started = threading.Event(), threading.Semaphore(0)

    def wait() -> None:
        started.release()
        release.wait(60)

    for _ in engine.decoders.threads:
        engine.decoders.submit(wait)
    for _ in engine.decoders.threads:
        started.acquire()
    yield release
    release.set()


def test_a_batch_of_prompts_gives_the_masks_of_each(backend: Backend, coffee: Pixels) -> None:
    mask = np.zeros(coffee.shape[:2], bool)
    mask[100:200, 200:300] = True
    prompts = [
        Prompt([[300, 130]], [1]),
        Prompt([[40, 30], [300, 130]], [0, 1], box=[170, 10, 430, 300]),
        Prompt(box=[10, 20, 300, 200]),
        Prompt([[500, 300]], [1], multimask=True),
        Prompt([[200, 200]], [1], mask=rle_from_mask(mask)),
        Prompt([[31, 200]], [1]),
    ]
    predictor: Any = backend.encode(coffee)
    decoded = dict(decode_prompts(backend, predictor, prompts, lambda: None))
    assert sorted(decoded) == [*range(len(prompts))]
    for index, prompt in enumerate(prompts):
        _, scores, logits = predictor.predict(
            prompt.points or None,
            prompt.labels or None,
            prompt.box,
            None if prompt.mask is None else mask,
            multimask_output=prompt.multimask or prompt.is_ambiguous,
        )
        best = range(3) if prompt.multimask else [int(scores.argmax())]
        assert len(decoded[index]) == len(best)
        for (found, score), which in zip(decoded[index], best, strict=True):
            np.testing.assert_allclose(found, logits[which], atol=2e-3)
            assert score == pytest.approx(scores[which], abs=1e-4)


def test_everything_comes_from_the_embedding(
    tiny_sam: MobileSam, torch_backend: TorchBackend, onnx_backend: OnnxBackend, coffee: Pixels
) -> None:
    options: dict[str, Any] = {
        "points_per_side": 2,
        "pred_iou_thresh": 0,
        "stability_score_thresh": 0,
    }
    expected = SamAutomaticMaskGenerator(tiny_sam, output_mode="coco_rle", **options)
    records = [record for record in expected.generate(coffee) if record["area"]]
    assert len(records) > 3
    predictor = torch_backend.encode(coffee)
    options["output_mode"] = "coco_rle"
    found = torch_backend.generator(**options).generate(None, predictor=predictor)
    assert_same_records(drop_empty(found), records)
    progress: list[tuple[int, int]] = []
    others = onnx_backend.generator(**options).generate(
        None, lambda *counts: progress.append(counts), onnx_backend.encode(coffee)
    )
    others = drop_empty(others)
    assert abs(len(others) - len(records)) <= 1 and progress[-1] == (4, 4)


def test_requests_beyond_the_queue_are_refused(torch_backend: TorchBackend) -> None:
    engine = Engine(torch_backend, workers=1, queue_length=2)
    release, started = threading.Event(), threading.Event()

    def hold() -> bool:
        started.set()
        return release.wait(60)

    first = engine.decoders.submit(hold)
    started.wait(60)
    waiting = [engine.decoders.submit(lambda: 7), engine.encoder.submit(lambda: 8)]
    while engine.queue.waiting > 1:  # the encoder takes its job
        time.sleep(0.001)
    waiting.append(engine.decoders.submit(lambda: 9))
    with pytest.raises(QueueFull, match="2 requests are waiting"):
        engine.run(lambda: 10)
    release.set()
    assert [job.result(engine.deadline()) for job in waiting] == [7, 8, 9]
    assert first.result(engine.deadline()) and engine.queue.waiting == 0
    engine.close()
    with pytest.raises(Unavailable, match="stopping"):
        engine.run(lambda: 10)


def test_a_request_that_waits_too_long_is_dropped(engine: Engine, held: threading.Event) -> None:
    ran: list[int] = []
    with pytest.raises(TimedOut, match=r"more than 0\.05 seconds"):
        engine.run(lambda: ran.append(1), Deadline(0.05))
    held.set()
    engine.run(lambda: None)
    assert not ran and engine.decoders.replaced == 0


def test_a_worker_that_is_busy_after_the_deadline_is_replaced(engine: Engine) -> None:
    release = threading.Event()
    before = engine.decoders.threads
    with pytest.raises(TimedOut):
        engine.run(lambda: release.wait(60), Deadline(0.05))
    after = engine.decoders.threads
    assert len(after) == len(before) and engine.decoders.replaced == 1
    (lost,) = set(before) - set(after)
    release.set()
    lost.join(60)
    assert not lost.is_alive()
    assert engine.run(lambda: 7) == 7


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_worker_that_dies_is_replaced(engine: Engine, coffee: Pixels) -> None:
    predictor = encode(engine, coffee)
    kill = ctypes.pythonapi.PyThreadState_SetAsyncExc

    def die() -> None:
        kill(ctypes.c_ulong(threading.get_ident()), ctypes.py_object(SystemExit))
        predictor.predict([[300, 130]], [1])

    for number in range(1, 4):
        with pytest.raises(WorkerDied, match="try again"):
            engine.run(die)
        assert engine.decoders.replaced == number and len(engine.decoders.threads) == 2
    masks, _, _ = engine.run(lambda: predictor.predict([[300, 130]], [1]))
    assert masks.shape == (3, 400, 600)


def test_errors_of_the_work_are_the_requests_own(engine: Engine) -> None:
    with pytest.raises(ZeroDivisionError):
        engine.run(lambda: 1 // 0)
    with pytest.raises(TimeoutError):  # of a socket, say, and not the engine's
        engine.run(lambda: (_ for _ in ()).throw(TimeoutError))
    assert engine.decoders.replaced == 0


def test_embeddings_are_bounded_in_bytes(torch_backend: TorchBackend, coffee: Pixels) -> None:
    one = torch_backend.encode(coffee).nbytes
    engine = Engine(torch_backend, cache_bytes=2 * one)
    images = [np.roll(coffee, 9 * step, axis=1) for step in range(3)]
    keys = [digest_image(image) for image in images]
    assert len(set(keys)) == 3 and keys[0] == digest_image(images[0].copy())
    first = encode(engine, images[0])
    encode(engine, images[1])
    assert encode(engine, images[0]) is first
    encode(engine, images[2])
    assert [key in engine.cache for key in keys] == [True, False, True]
    assert engine.cache.nbytes == 2 * one and len(engine.cache) == 2
    engine.cache.forget(keys)
    assert engine.cache.nbytes == len(engine.cache) == 0
    engine.close()


def test_embeddings_on_disk_outlive_the_engine(
    backend: Backend, coffee: Pixels, tmp_path: Path
) -> None:
    key = digest_image(coffee)
    engine = Engine(backend, cache_folder=tmp_path)
    expected = encode(engine, coffee).predict([[300, 130]], [1])
    engine.close()
    engine = Engine(backend, cache_folder=tmp_path)
    found: Any = engine.cache.find(key)
    for one, other in zip(found.predict([[300, 130]], [1]), expected, strict=True):
        np.testing.assert_array_equal(one, other)
    (file,) = (path for path in tmp_path.rglob("*") if path.is_file())
    assert file.parent.name == backend.encoder and file.stem == key
    file.write_bytes(file.read_bytes()[:-100])
    engine.cache.forget([key])
    assert engine.cache.find(key) is None and not file.exists()
    encode(engine, coffee)
    assert file.exists()
    engine.close()


def test_embeddings_on_disk_are_bounded_in_bytes(
    torch_backend: TorchBackend, coffee: Pixels, tmp_path: Path
) -> None:
    images = [np.roll(coffee, 9 * step, axis=1) for step in range(3)]
    one = torch_backend.encode(coffee).features.nbytes
    engine = Engine(
        torch_backend, cache_bytes=1, cache_folder=tmp_path, cache_folder_bytes=int(2.5 * one)
    )
    for image in (*images[:2], images[0], images[2]):
        encode(engine, image)
        time.sleep(0.02)  # times of files are coarse
    kept = {path.stem for path in tmp_path.rglob("*.safetensors")}
    assert kept == {digest_image(images[0]), digest_image(images[2])}
    assert engine.cache.hits == 1  # the first one's, from disk
    engine.close()


def test_an_image_that_many_ask_for_is_encoded_once(
    tiny_sam: MobileSam, engine: Engine, coffee: Pixels
) -> None:
    encoded: list[int] = []
    hook = tiny_sam.image_encoder.register_forward_hook(lambda *_: encoded.append(1))
    key = digest_image(coffee)
    jobs = [engine.submit_encoding(key, coffee) for _ in range(4)]
    predictors = {id(job.result(engine.deadline())) for job in jobs}
    hook.remove()
    assert len(predictors) == 1 and encoded == [1]


def test_limits_are_told(torch_backend: TorchBackend) -> None:
    engine = Engine(torch_backend, Limits(max_prompts=2))
    with pytest.raises(UserError, match="3 prompts are too many"):
        engine.check_prompts([0, 0, 0])
    with pytest.raises(UserError, match="3 points are too many"):
        engine.check_prompts([1, 3])
    engine.close()


def test_the_mask_of_another_image_is_refused(torch_backend: TorchBackend, coffee: Pixels) -> None:
    prompt = Prompt(mask=rle_from_mask(np.ones((4, 6), bool)))
    predictor = torch_backend.encode(coffee)
    assert isinstance(predictor, SamPredictor)
    with pytest.raises(UserError, match=r"has the size \[4, 6\], and the image \[400, 600\]"):
        next(decode_prompts(torch_backend, predictor, [prompt], lambda: None))
