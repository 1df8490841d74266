"""The page: a picture to click on, and a tab for each thing to do with it."""

from pathlib import Path
from typing import Any

from PIL import Image

from ..images import load_image
from ..photographs import list_photographs
from . import gradio as gr
from .click import BACKGROUND, CORNER, OBJECT, ClickTab
from .everything import EverythingTab, show_everything
from .parts import Stage, look
from .pipelines import InpaintTab, LabelTab, TextTab, TrackTab
from .sessions import Sessions, read_picture

STYLE = (Path(__file__).parent / "style.css").read_text()
_FONTS = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"]
THEME = gr.themes.Soft(
    primary_hue="teal",
    secondary_hue="teal",
    neutral_hue="slate",
    radius_size="md",
    font=_FONTS,  # names alone: those of a machine that has them, none is fetched
    font_mono=["ui-monospace", "Consolas", "monospace"],
).set(  # besides Soft's own background, what is paler than WCAG's 4.5 to 1 by default
    background_fill_primary="*neutral_50",
    body_text_color_subdued="*neutral_500",
    body_text_color_subdued_dark="*neutral_400",
    block_info_text_color="*neutral_500",
    block_info_text_color_dark="*neutral_400",
    block_label_text_color="*primary_800",
    block_title_text_color="*primary_800",
    button_primary_background_fill="*primary_700",
    button_primary_background_fill_hover="*primary_600",
    button_primary_background_fill_dark="*primary_700",
    checkbox_label_background_fill_selected="*primary_700",
    checkbox_label_background_fill_selected_dark="*primary_700",
)

_TITLE = """<h1>MobileSAM</h1>
<p>Click on an object, and get its mask. The picture stays on this server, and is forgotten when you
close the page.</p>"""

# What gradio's components do not offer: a status line that is read out when it changes,
# photographs with names of their own, and radio buttons that are a group, for arrow keys, too.
_ON_LOAD = """() => {
    const status = document.querySelector("#status .html-container");
    status.setAttribute("role", "status");
    status.setAttribute("aria-live", "polite");
    for (const button of document.querySelectorAll("#photographs button"))
        button.setAttribute("aria-label", button.innerText.trim());
    const group = () => {
        for (const block of document.querySelectorAll(".block:has(input[type=radio])")) {
            block.setAttribute("role", "radiogroup");
            block.setAttribute("aria-label", block.querySelector("span").innerText);
            const buttons = block.querySelectorAll("input");
            buttons.forEach((button) => (button.name = buttons[0].name));
        }
    };
    group();
    new MutationObserver(group).observe(document.body, { childList: true, subtree: true });
}"""


def build_page(sessions: Sessions, checkpoint: str | None = None) -> gr.Blocks:
    """Puts the page together.

    Args:
        sessions: with the model.
        checkpoint: the model's, for the Python lines that the page gives.
    """
    # Files of uploads and results that are an hour old are deleted, every ten minutes.
    with gr.Blocks(
        title="MobileSAM", analytics_enabled=False, delete_cache=(600, 3600), fill_width=True
    ) as page:
        gr.HTML(_TITLE, elem_id="title")
        with gr.Row(equal_height=False):
            with gr.Column(scale=11, min_width=320):
                picture = gr.Image(
                    label="Picture",
                    sources=["upload", "clipboard", "webcam"],
                    type="filepath",
                    format="jpeg",
                    interactive=True,
                    elem_id="picture",
                    buttons=[],
                    alt_text="The picture, with the mask, the points and the box over it",
                    placeholder="Drop a picture here, or click to choose one",
                )
                status = gr.HTML("", elem_id="status")
                with gr.Row(elem_id="tools"):
                    mode = gr.Radio(
                        [OBJECT, BACKGROUND, CORNER],
                        value=OBJECT,
                        label="A click adds",
                        elem_id="mode",
                        scale=4,
                        min_width=300,
                    )
                    with gr.Row(elem_id="steps", scale=1):
                        undo = gr.Button("Undo", size="md", min_width=70)
                        reset = gr.Button("Reset", size="md", min_width=70)
                photographs = list_photographs()
                if photographs:
                    gr.Markdown("Or take one of these:", elem_classes="photographs")
                gallery = gr.Gallery(
                    [(_thumbnail(path), path.stem) for path in photographs],
                    label="Photographs",
                    show_label=False,
                    columns=max(1, len(photographs)),
                    object_fit="cover",
                    allow_preview=False,
                    interactive=False,
                    buttons=[],
                    format="jpeg",
                    visible=bool(photographs),
                    elem_id="photographs",
                    elem_classes="photographs",
                    container=False,
                )
            stage = Stage(
                sessions,
                picture,
                status,
                candidates=gr.Radio(
                    [],
                    label="Candidates, with their predicted IoU",
                    visible="hidden",
                    elem_id="candidates",
                    render=False,
                ),
                pending=gr.State(""),
                file=gr.File(visible=False),
            )
            opening = Opening(stage, photographs)
            with gr.Column(scale=9, min_width=320):
                with gr.Tabs():
                    tabs = [
                        ("Click", lambda: ClickTab(stage, mode, undo, reset, checkpoint)),
                        ("Everything", lambda: EverythingTab(stage)),
                        ("Text", lambda: TextTab(stage)),
                        ("Remove / fill / replace", lambda: InpaintTab(stage)),
                        ("Track", lambda: TrackTab(stage)),
                        ("Label", lambda: LabelTab(stage)),
                    ]
                    for name, fill in tabs:
                        with gr.Tab(name) as tab:
                            fill()
                        turned = opening.inspect if name == "Everything" else opening.segment
                        stage.listen(tab.select, turned, outputs=stage.views)
        stage.receive(
            picture.input,
            opening.upload,
            inputs=picture,
            outputs=stage.views,
            show_progress="minimal",
            show_progress_on=status,
            trigger_mode="always_last",  # pasting clears first, and what follows must not be lost
        )
        stage.listen(picture.clear, opening.close, outputs=stage.views[1:])
        stage.listen(gallery.select, opening.choose, outputs=stage.views)
        stage.listen(page.load, opening.segment, outputs=stage.views, js=_ON_LOAD)
        page.unload(opening.leave)
    return page


class Opening:
    """The callbacks by which a picture comes and goes."""

    def __init__(self, stage: Stage, photographs: list[Path]) -> None:
        self.stage = stage
        self.photographs = photographs

    def upload(self, path: Path | None, request: gr.Request) -> Any:
        if path is None:  # cleared, see close; a picture that came since then is to stay
            return tuple(gr.skip() for _ in self.stage.views)
        return self._open(request, path)

    def choose(self, event: gr.SelectData, request: gr.Request) -> Any:
        return self._open(request, self.photographs[event.index])

    def close(self, request: gr.Request) -> Any:
        """The picture was cleared, in the browser too, where another one may be on its way."""
        return self._open(request, None)[1:]

    def _open(self, request: gr.Request, path: Path | None) -> Any:
        session = self.stage.session(request)
        if path is None:
            picture = None
        else:
            try:
                picture = read_picture(path, path.name, self.stage.sessions.max_pixels)
            except (ValueError, MemoryError) as error:
                with session.lock:
                    return look(session, str(error) or "The picture needs too much memory.", True)
        with session.lock:
            session.open(picture)
            return look(session)

    def inspect(self, request: gr.Request) -> Any:
        """The tab *Everything* was opened."""
        session = self.stage.session(request)
        with session.lock:
            session.inspecting = True
            return show_everything(session)

    def segment(self, request: gr.Request) -> Any:
        """Another tab was."""
        session = self.stage.session(request)
        with session.lock:
            session.inspecting = False
            return look(session)

    def leave(self, request: gr.Request) -> None:
        self.stage.sessions.drop(str(request.session_hash))


def _thumbnail(path: Path) -> Image.Image:
    thumbnail = Image.fromarray(load_image(path))
    thumbnail.thumbnail((320, 320))
    return thumbnail
