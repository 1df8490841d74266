"""The tab *Everything*: all masks of the image in colours, with the scores of each."""

import json
from functools import partial
from typing import Any

import numpy as np

from ..annotation.proposals import Proposer
from ..coco import records_dataset
from ..errors import UserError
from ..everything import drop_empty
from ..records import Record, decode_mask
from . import gradio as gr
from .parts import Components, render, status_html
from .sessions import Picture, Session

_PROGRESS = gr.Progress()


class EverythingTab:
    """Components and callbacks of the tab."""

    def __init__(self, components: Components, propose: Proposer | None = None) -> None:
        """Adds the tab to the page that gradio is building.

        Args:
            components: those that all tabs share.
            propose: finds the proposals in an image; None if there is no such search.
        """
        self.components = components
        self._propose = propose
        gr.Markdown("Find every mask in the image, then click on one to see its area and scores.")
        searches = [("Grid", "grid"), ("Hierarchical", "hierarchical")]
        if propose is not None:
            searches.append(("Proposals", "proposals"))
        search = gr.Radio(
            searches,
            value="grid",
            label="Search",
            info="Fewer prompts than a grid's take less time, and find other masks",
        )
        points = gr.Slider(
            2,
            64,
            32,
            step=1,
            label="Points per side",
            info="More points find smaller objects, but take longer",
        )
        iou = gr.Slider(0, 1, 0.88, step=0.01, label="Minimum predicted IoU")
        stability = gr.Slider(0, 1, 0.95, step=0.01, label="Minimum stability score")
        offset = gr.Slider(
            0.1, 3, 1, step=0.1, label="Stability offset", info="Shift of the mask threshold"
        )
        area = gr.Slider(
            0,
            5000,
            0,
            step=10,
            label="Minimum area",
            info="Pixels; smaller islands and holes are removed",
        )
        find = gr.Button("Segment everything", variant="primary")
        number = gr.Number(1, label="Show mask number", info="Press Enter", minimum=1, precision=0)
        download = gr.DownloadButton("Download COCO JSON", interactive=False, size="sm")

        settings = [search, points, iou, stability, offset, area]
        components.run(find, self.find, settings, [*components.views, download])
        components.listen(number.submit, self.show, inputs=number, outputs=components.views)

    def find(
        self,
        search: str,
        points_per_side: float,
        pred_iou_thresh: float,
        stability_score_thresh: float,
        stability_score_offset: float,
        min_mask_region_area: float,
        request: gr.Request,
        progress: gr.Progress = _PROGRESS,
    ) -> Any:
        session = self.components.session(request)
        picture = session.require_picture()
        sessions = self.components.sessions
        generator = sessions.engine.backend.generator(
            points_per_side=int(points_per_side),
            points_per_batch=16,  # between two progress updates
            pred_iou_thresh=pred_iou_thresh,
            stability_score_thresh=stability_score_thresh,
            stability_score_offset=stability_score_offset,
            min_mask_region_area=int(min_mask_region_area),
            output_mode="coco_rle",
            search=search,
        )
        proposals = None
        if search == "proposals" and self._propose is not None:
            progress(0, desc="Looking for objects")
            proposals = self._propose(picture.pixels, picture.name)
        progress(0, desc="Encoding the image")

        predictor = sessions.predictor(picture)
        deadline = sessions.engine.deadline()

        def report(done: int, total: int) -> None:
            deadline.check()
            progress((done, total), desc="Looking for masks", unit="points")

        generate = partial(generator.generate, picture.pixels, report, predictor, proposals)
        records = drop_empty(sessions.engine.run(generate, deadline))
        with session.lock:
            if session.picture is not picture:
                raise UserError("the image changed during the run: press the button again")
            session.records = records
            session.numbers = paint_numbers(records, picture)
            path = session.path("_everything.json")
            coco = records_dataset(records, picture.pixels.shape[:2], picture.name)
            path.write_text(json.dumps(coco, allow_nan=False))
            return *show_everything(session), gr.DownloadButton(value=str(path), interactive=True)

    def show(self, number: float | None, request: gr.Request) -> Any:
        with self.components.locked(request) as session:
            return show_everything(session, None if number is None else int(number) - 1)


def show_everything(session: Session, index: int | None = None) -> tuple[Any, ...]:
    """Returns the views, as ``parts.render``, with all masks or with one and its scores."""
    _, _, candidates = render(session)
    picture = session.picture
    if picture is None or session.numbers is None:
        return render(session)
    if index is not None and not 0 <= index < len(session.records):
        index = None
    if index is not None:
        masks = [picture.shrink_mask(decode_mask(session.records[index]))]
        message = describe_record(session.records[index], index)
    elif session.records:
        masks = [picture.shrink_mask(decode_mask(record)) for record in session.records]
        message = f"{len(session.records)} masks: click on one to see its area and scores."
    else:
        masks = []
        message = "No mask passed: lower the minimum predicted IoU or the minimum stability score."
    return picture.draw(masks), status_html(message), candidates


def inspect(session: Session, x: int, y: int) -> tuple[Any, ...]:
    """Returns the views, as :func:`show_everything`, with the mask at a displayed pixel."""
    if session.numbers is None:
        return render(session, "Press the button first; then click on a mask to see its scores.")
    height, width = session.numbers.shape
    index = int(session.numbers[min(max(y, 0), height - 1), min(max(x, 0), width - 1)])
    return show_everything(session, None if index < 0 else index)


def describe_record(record: Record, index: int) -> str:
    """Returns a line of text about mask number ``index``."""
    x, y, width, height = record["bbox"]
    return (
        f"Mask {index + 1}: {record['area']:,} pixels, predicted IoU "
        f"{record['predicted_iou']:.3f}, stability score {record['stability_score']:.3f}, "
        f"box {width:g} x {height:g} at ({x:g}, {y:g})."
    )


def paint_numbers(records: list[Record], picture: Picture) -> np.ndarray[Any, np.dtype[np.int32]]:
    """Returns the index of the smallest record at each displayed pixel, -1 for none."""
    numbers = np.full(picture.shown.shape[:2], -1, dtype=np.int32)
    for index in sorted(range(len(records)), key=lambda i: -records[i]["area"]):
        numbers[picture.shrink_mask(decode_mask(records[index]))] = index
    return numbers
