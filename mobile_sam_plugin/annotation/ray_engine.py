"""Runs the stages as a pipeline of Ray Data, on this machine or on a cluster.

Ray schedules tasks, replaces actors that die and repeats their tasks. A stage that is repeated
writes the same files again.
"""

import copy
import logging
import math
import pickle
from collections.abc import Generator, Mapping
from typing import Any

import torch
from PIL import Image
from segment_anything.modeling import Sam

from ..engine import TorchBackend
from ..errors import MissingExtra
from . import stages
from .options import AnnotationOptions, ImageResult
from .storage import RUN_FILE, Folder

try:
    import pyarrow
    import ray
    import ray.data
except ImportError as error:
    raise MissingExtra.of("Ray", "ray") from error

_MOST_BLOCKS = 20_000  # of the data set, so that Ray's bookkeeping stays small
_CPUS_OF_IO = 0.25  # per task that reads or writes


def run_ray(
    job: stages.Job,
    address: str | None = None,
    workers: int | None = None,
    batch_size: int | None = None,
    gpus_per_worker: float | None = None,
) -> Generator[ImageResult, None, None]:
    """Takes the images of a job through all stages; see :meth:`.run.AnnotationRun.run_on_ray`.

    All images are listed before the first is read, and the model is sent to the actors. A cluster
    that is started here is stopped at the end; if Ray has been initialised before, it is used.
    """
    assert isinstance(job.backend, TorchBackend)
    given = job.backend.model
    own_cluster = not ray.is_initialized()
    if own_cluster:
        ray.init(address, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    try:
        if gpus_per_worker is None:
            gpus_per_worker = float(given.device.type == "cuda")
        resources = ray.cluster_resources()
        if workers is None:
            workers = 1
            if gpus_per_worker:
                workers = max(1, int(resources.get("GPU", 0) / gpus_per_worker))
        batch_size = batch_size or (8 if gpus_per_worker else 1)
        # Without a GPU the models get the CPUs, except what reading and writing need.
        cpus = 1.0
        if not gpus_per_worker:
            spare = (resources.get("CPU", 1) - 2 * _CPUS_OF_IO) / workers
            cpus = math.floor(spare) if spare >= 1 else max(math.floor(spare * 4) / 4, _CPUS_OF_IO)

        logging.getLogger("ray.data").setLevel(logging.ERROR)
        context = ray.data.DataContext.get_current()
        context.execution_options.preserve_order = True
        context.enable_progress_bars = False
        rows = [_row(item) for item in job.items]
        if not rows:
            return
        model = given if given.device.type == "cpu" else copy.deepcopy(given).cpu()
        blocks = min(math.ceil(len(rows) / batch_size), _MOST_BLOCKS)
        dataset = (
            ray.data.from_items(rows, override_num_blocks=blocks)
            .map(
                _load,
                fn_kwargs={
                    "img_size": model.image_encoder.img_size,
                    "limit": Image.MAX_IMAGE_PIXELS,  # of this process
                },
                num_cpus=_CPUS_OF_IO,
            )
            .map_batches(
                _Segmenter,
                fn_constructor_args=(ray.put(model), job.options, dict(job.categories), cpus),
                batch_size=batch_size,
                batch_format="pyarrow",
                compute=ray.data.ActorPoolStrategy(size=workers),
                num_cpus=cpus,
                num_gpus=gpus_per_worker,
            )
            .map(
                _write,
                fn_kwargs={"folder": job.folder, "options": job.options},
                num_cpus=_CPUS_OF_IO,
            )
        )
        for row in dataset.iter_rows():
            result = pickle.loads(row["value"])
            if isinstance(result, OSError):
                raise result
            yield result
    finally:
        if own_cluster:
            ray.shutdown()


def _load(row: dict[str, Any], img_size: int, limit: int | None) -> dict[str, Any]:
    Image.MAX_IMAGE_PIXELS = limit
    return _row(stages.load(pickle.loads(row["value"]), img_size))


class _Segmenter:
    """An actor with a model."""

    def __init__(
        self, model: Any, options: AnnotationOptions, categories: Mapping[int, str], cpus: float
    ) -> None:
        torch.set_num_threads(max(1, int(cpus)))
        sam: Sam = ray.get(model)
        if ray.get_gpu_ids():
            sam = sam.to("cuda")
        self._segment = stages.Segmenter(TorchBackend(sam), options, categories)

    def __call__(self, batch: pyarrow.Table) -> pyarrow.Table:
        done = self._segment([pickle.loads(value) for value in batch["value"].to_pylist()])
        return pyarrow.Table.from_pylist([_row(pair) for pair in done])


def _write(
    row: dict[str, Any], folder: Folder | None, options: AnnotationOptions
) -> dict[str, Any]:
    loaded, result = pickle.loads(row["value"])
    try:
        if folder is not None and folder.local is not None and not folder.exists(RUN_FILE):
            raise OSError(
                f"the folder {str(folder.local)!r} is not the same on all machines of the cluster: "
                "use a shared folder, or a URL"
            )
        return _row(stages.write(loaded, result, folder, options))
    except OSError as error:  # returned, since Ray would wrap it and lose its class
        return _row(error)


def _row(value: Any) -> dict[str, Any]:
    """Returns a row of a data set, pickled: Arrow has no type for what the stages pass on."""
    return {"value": pickle.dumps(value)}
