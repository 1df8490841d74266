"""The page: an image to click on, and one tab per task."""

from pathlib import Path
from typing import Any

from PIL import Image

from ..annotation.proposals import Proposer
from ..engine import TorchBackend
from ..images import load_image
from ..photographs import list_photographs
from . import gradio as gr
from .click import BACKGROUND, CORNER, OBJECT, ClickTab
from .everything import EverythingTab, show_everything
from .parts import Components, render
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
<p>Click on an object to get its mask. The image stays on this server. It is forgotten when you
close the page; uploaded files are deleted after an hour.</p>"""

# Gradio's components lack: a status line that screen readers announce, named photographs, and
# radio buttons that form a group, which arrow keys need.
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


def build_page(
    sessions: Sessions, checkpoint: str | None = None, propose: Proposer | None = None
) -> gr.Blocks:
    """Builds the page.

    Args:
        sessions: the open pages, with the model.
        checkpoint: name of the checkpoint, for the Python lines.
        propose: finds the proposals in an image, for everything mode; None if nothing does.
    """
    # Every ten minutes uploads and results older than an hour are deleted.
    with gr.Blocks(
        title="MobileSAM", analytics_enabled=False, delete_cache=(600, 3600), fill_width=True
    ) as page:
        gr.HTML(_TITLE, elem_id="title")
        with gr.Row(equal_height=False):
            with gr.Column(scale=11, min_width=320):
                picture = gr.Image(
                    label="Image",
                    sources=["upload", "clipboard", "webcam"],
                    type="filepath",
                    format="jpeg",
                    interactive=True,
                    elem_id="picture",
                    buttons=[],
                    alt_text="The image with the mask, the points and the box",
                    placeholder="Drop an image here, or click to choose one",
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
                    gr.Markdown("Or use one of these:", elem_classes="photographs")
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
            components = Components(
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
            opening = Opening(components, photographs)
            with gr.Column(scale=9, min_width=320), gr.Tabs():
                tabs = [
                    ("Click", lambda: ClickTab(components, mode, undo, reset, checkpoint)),
                    ("Everything", lambda: EverythingTab(components, propose)),
                ]
                pipelines = [
                    ("Text", lambda: TextTab(components)),
                    ("Remove / fill / replace", lambda: InpaintTab(components)),
                    ("Track", lambda: TrackTab(components)),
                    ("Label", lambda: LabelTab(components)),
                ]
                if isinstance(sessions.engine.backend, TorchBackend):
                    tabs += pipelines
                for name, fill in tabs:
                    with gr.Tab(name) as tab:
                        fill()
                    turned = opening.inspect if name == "Everything" else opening.segment
                    components.listen(tab.select, turned, outputs=components.views)
        components.receive(
            picture.input,
            opening.upload,
            inputs=picture,
            outputs=components.views,
            show_progress="minimal",
            show_progress_on=status,
            trigger_mode="always_last",  # pasting clears first; the image after it must not be lost
        )
        components.listen(picture.clear, opening.close, outputs=components.views[1:])
        components.listen(gallery.select, opening.choose, outputs=components.views)
        components.listen(page.load, opening.segment, outputs=components.views, js=_ON_LOAD)
        page.unload(opening.leave)
    return page


class Opening:
    """Callbacks that open and close images and tabs."""

    def __init__(self, components: Components, photographs: list[Path]) -> None:
        self.components = components
        self.photographs = photographs

    def upload(self, path: Path | None, request: gr.Request) -> Any:
        if path is None:  # cleared, see close; a newer image stays
            return tuple(gr.skip() for _ in self.components.views)
        return self._open(request, path)

    def choose(self, event: gr.SelectData, request: gr.Request) -> Any:
        return self._open(request, self.photographs[event.index])

    def close(self, request: gr.Request) -> Any:
        """Forgets an image that the browser has cleared, where a newer one may be on its way."""
        return self._open(request, None)[1:]

    def _open(self, request: gr.Request, path: Path | None) -> Any:
        session = self.components.session(request)
        if path is None:
            picture = None
        else:
            try:
                picture = read_picture(path, path.name, self.components.sessions.engine)
            except (ValueError, MemoryError) as error:
                with session.lock:
                    return render(session, str(error) or "The image needs too much memory.", True)
        with session.lock:
            session.open(picture)
            return render(session)

    def inspect(self, request: gr.Request) -> Any:
        """Shows everything, as its tab was opened."""
        with self.components.locked(request) as session:
            session.inspecting = True
            return show_everything(session)

    def segment(self, request: gr.Request) -> Any:
        """Shows the chosen mask, as another tab was opened."""
        with self.components.locked(request) as session:
            session.inspecting = False
            return render(session)

    def leave(self, request: gr.Request) -> None:
        self.components.sessions.drop(str(request.session_hash))


def _thumbnail(path: Path) -> Image.Image:
    thumbnail = Image.fromarray(load_image(path))
    thumbnail.thumbnail((320, 320))
    return thumbnail
