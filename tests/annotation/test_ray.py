"""Annotating on a real cluster of Ray, of two workers on this machine."""

import copy
import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import torch

from mobile_sam_plugin import MobileSam, annotate
from mobile_sam_plugin.annotation import AnnotationOptions, AnnotationRun, open_source
from mobile_sam_plugin.annotation.ray_engine import run_ray
from mobile_sam_plugin.annotation.stages import Job
from mobile_sam_plugin.annotation.storage import Folder
from mobile_sam_plugin.cli import main
from mobile_sam_plugin.engine import TorchBackend
from mobile_sam_plugin.integrations.video import VideoWriter

from .test_annotation import FORMATS, SEARCH, draw, files_in, save_images

pytestmark = [
    pytest.mark.process,
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

IMAGES = 8
CORES = torch.get_num_threads()  # as many local workers compute with one thread each, as on Ray


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = save_images(tmp_path_factory.mktemp("ray") / "images", IMAGES)
    (folder / "broken.png").write_bytes(b"no image")
    return folder


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """Its address."""
    context = ray.init(
        num_cpus=1,  # that two actors share; with more, Ray starts more workers for reading
        include_dashboard=False,
        log_to_driver=False,
        # Idle workers are kept, since to start one imports torch, which takes seconds.
        _system_config={"idle_worker_killing_time_threshold_ms": 600_000},
    )
    yield context.address_info["address"]
    ray.shutdown()


@dataclass
class KillOnce:
    """A hook of a model: of the processes that have it, the first at its second image is killed."""

    killed: Path
    images: int = 0

    def __call__(self, *_: Any) -> None:
        self.images += 1
        if self.images == 2:
            try:
                self.killed.touch(exist_ok=False)
            except FileExistsError:
                return
            os.kill(os.getpid(), signal.SIGKILL)


def test_a_worker_that_is_killed_halfway_loses_nothing(
    cluster: str, images: Path, tiny_sam: MobileSam, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"formats": FORMATS, **SEARCH}
    local = annotate(images, tmp_path / "local", model=tiny_sam, workers=CORES, **options)
    expected = {result.key: result for result in local}

    sam = copy.deepcopy(tiny_sam)
    sam.image_encoder.register_forward_hook(KillOnce(tmp_path / "killed"))
    run = AnnotationRun(
        open_source(images),
        tmp_path / "ray",
        sam,
        AnnotationOptions(formats=FORMATS, generator_options=SEARCH),
    )
    results = list(run.run_on_ray(workers=2))
    assert (tmp_path / "killed").exists()
    assert results == list(expected.values()) and run.done == IMAGES and run.failed == 1
    assert files_in(tmp_path / "ray") == files_in(tmp_path / "local")


def test_the_command_goes_on_with_a_local_run_on_a_cluster_by_url(
    cluster: str,
    images: Path,
    tiny_file: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    flags = ["--points-per-side", "1", "--pred-iou-thresh", "0", "--checkpoint", str(tiny_file)]
    source = [f"file://{images}/image_00.png", f"file://{images}/image_01.png"]
    command = ["annotate", *source, "--out", f"file://{tmp_path}/out", *flags]
    assert main([*command, "--engine", "ray", "--workers", "1"]) == 0
    whole = files_in(tmp_path / "out")
    assert "2 of 2 images are done" in capsys.readouterr().out
    (tmp_path / "out" / "sa1b" / "image_01.json").unlink()
    assert main([*command, "--workers", str(CORES)]) == 0
    assert files_in(tmp_path / "out") == whole


def test_workers_know_the_folder_and_the_limit_of_pixels(
    cluster: str, tiny_sam: MobileSam, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They were started elsewhere, and open images in processes of their own."""
    monkeypatch.chdir(tmp_path)
    draw(0, 80, 60).save(tmp_path / "a.png")
    draw(0, 80, 59).save(tmp_path / "b.png")
    options = AnnotationOptions(generator_options={**SEARCH, "points_per_side": 1})
    source = open_source(["a.png", "b.png"])
    run = AnnotationRun(source, "out", tiny_sam, options, max_pixels=80 * 59)
    large, small = run.run_on_ray()
    assert large.error is not None and small.error is None and run.done == 1
    assert (tmp_path / "out" / "sa1b" / "b.json").exists()


def test_an_error_of_the_folder_is_raised_as_it_is(
    cluster: str, tiny_sam: MobileSam, tmp_path: Path
) -> None:
    """Here the workers do not see what the command has written there."""
    draw(0).save(tmp_path / "a.png")
    items = open_source(tmp_path / "a.png").items(lambda _: True)
    options = AnnotationOptions(generator_options={**SEARCH, "points_per_side": 1})
    job = Job(items, TorchBackend(tiny_sam), options, {1: "object"}, Folder(tmp_path / "out"))
    with pytest.raises(OSError, match="not the same on all machines"):
        list(run_ray(job))
    assert not (tmp_path / "out").exists()


def test_videos_are_refused(tiny_sam: MobileSam, tmp_path: Path) -> None:
    with VideoWriter(tmp_path / "video.mp4", 25) as video:
        video.write(np.asarray(draw(0)))
    run = AnnotationRun(open_source(tmp_path / "video.mp4"), None, tiny_sam, AnnotationOptions())
    with pytest.raises(ValueError, match="engine local"):
        run.run_on_ray()
