"""The tab *Everything*: all masks of the picture, in colours, each to be asked about."""

import json
from typing import Any

import numpy as np

from .. import SamAutomaticMaskGenerator
from ..coco import records_dataset
from ..errors import UserError
from ..everything import drop_empty
from ..records import Record, decode_mask
from . import gradio as gr
from .parts import HEAVY, Stage, look, say
from .sessions import Picture, Session

_PROGRESS = gr.Progress()


class EverythingTab:
    """Its components and callbacks."""

    def __init__(self, stage: Stage) -> None:
        """Lays the tab out where gradio is, and connects it."""
        self.stage = stage
        gr.Markdown(
            "Find every mask in the picture, then click on one to learn its area and scores."
        )
        points = gr.Slider(
            2,
            64,
            32,
            step=1,
            label="Points a side",
            info="More find smaller things, but take longer",
        )
        iou = gr.Slider(0, 1, 0.88, step=0.01, label="Least predicted IoU")
        stability = gr.Slider(0, 1, 0.95, step=0.01, label="Least stability score")
        offset = gr.Slider(
            0.1, 3, 1, step=0.1, label="Stability offset", info="By which the cutoff moves for it"
        )
        area = gr.Slider(
            0, 5000, 0, step=10, label="Least area", info="Pixels; smaller islands and holes go"
        )
        find = gr.Button("Segment everything", variant="primary")
        number = gr.Number(
            1, label="Tell about mask number", info="Enter shows it", minimum=1, precision=0
        )
        download = gr.DownloadButton("Download COCO JSON", interactive=False, size="sm")

        stage.listen(
            find.click,
            self.find,
            inputs=[points, iou, stability, offset, area],
            outputs=[*stage.views, download],
            show_progress="full",
            show_progress_on=stage.status,
            **HEAVY,
        )
        stage.listen(number.submit, self.tell, inputs=number, outputs=stage.views)

    def find(
        self,
        points_per_side: float,
        pred_iou_thresh: float,
        stability_score_thresh: float,
        stability_score_offset: float,
        min_mask_region_area: float,
        request: gr.Request,
        progress: gr.Progress = _PROGRESS,
    ) -> Any:
        session = self.stage.session(request)
        picture = session.require_picture()
        generator = SamAutomaticMaskGenerator(
            self.stage.sessions.model,
            points_per_side=int(points_per_side),
            points_per_batch=16,  # how often progress is told
            pred_iou_thresh=pred_iou_thresh,
            stability_score_thresh=stability_score_thresh,
            stability_score_offset=stability_score_offset,
            min_mask_region_area=int(min_mask_region_area),
            output_mode="coco_rle",
        )
        progress(0, desc="Encoding the picture")

        def report(done: int, total: int) -> None:
            progress((done, total), desc="Looking for masks", unit="points")

        predictor = self.stage.sessions.predictor(picture)
        records = drop_empty(generator.generate(picture.pixels, report, predictor))
        with session.lock:
            if session.picture is not picture:
                raise UserError("another picture has come meanwhile: press the button again")
            session.records = records
            session.numbers = paint_numbers(records, picture)
            path = session.path("_everything.json")
            coco = records_dataset(records, picture.pixels.shape[:2], picture.name)
            path.write_text(json.dumps(coco, allow_nan=False))
            return *show_everything(session), gr.DownloadButton(value=str(path), interactive=True)

    def tell(self, number: float | None, request: gr.Request) -> Any:
        session = self.stage.session(request)
        with session.lock:
            return show_everything(session, None if number is None else int(number) - 1)


def show_everything(session: Session, index: int | None = None) -> tuple[Any, ...]:
    """As ``parts.look``: the coloured picture, or one mask of it with what is known of that."""
    _, _, candidates = look(session)
    picture = session.picture
    if picture is None or session.numbers is None:
        return look(session)
    if index is not None and not 0 <= index < len(session.records):
        index = None
    if index is not None:
        masks = [picture.shrink_mask(decode_mask(session.records[index]))]
        message = describe_record(session.records[index], index)
    elif session.records:
        masks = [picture.shrink_mask(decode_mask(record)) for record in session.records]
        message = f"{len(session.records)} masks: click on one to learn more about it."
    else:
        masks = []
        message = "No mask passed: lower the least predicted IoU or the least stability score."
    return picture.draw(masks), say(message), candidates


def inspect(session: Session, x: int, y: int) -> tuple[Any, ...]:
    """As :func:`show_everything`, of the mask at a pixel of what is shown."""
    if session.numbers is None:
        return look(session, "Press the button first: then a click tells about a mask.")
    height, width = session.numbers.shape
    index = int(session.numbers[min(max(y, 0), height - 1), min(max(x, 0), width - 1)])
    return show_everything(session, None if index < 0 else index)


def describe_record(record: Record, index: int) -> str:
    x, y, width, height = record["bbox"]
    return (
        f"Mask {index + 1}: {record['area']:,} pixels, predicted IoU "
        f"{record['predicted_iou']:.3f}, stability score {record['stability_score']:.3f}, "
        f"box {width:g} x {height:g} at ({x:g}, {y:g})."
    )


def paint_numbers(records: list[Record], picture: Picture) -> np.ndarray[Any, np.dtype[np.int32]]:
    """The index of the smallest record at each pixel shown, -1 where there is none."""
    numbers = np.full(picture.shown.shape[:2], -1, dtype=np.int32)
    for index in sorted(range(len(records)), key=lambda i: -records[i]["area"]):
        numbers[picture.shrink_mask(decode_mask(records[index]))] = index
    return numbers
