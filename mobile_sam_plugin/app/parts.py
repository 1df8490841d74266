"""Components that all tabs share, and the display of status and errors."""

import functools
import html
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from ..engine import TimedOut, Unavailable
from . import gradio as gr
from .sessions import Session, Sessions

P = ParamSpec("P")
R = TypeVar("R")

QUEUED: dict[str, Any] = {"concurrency_id": "queued", "concurrency_limit": 1}
"""Options of slow events: one runs at a time, the others wait in a queue."""

PRIVATE: Any = "private"  # events of the page are not a public API

_MISTAKES = (ValueError, TypeError, OSError, ImportError, MemoryError, Unavailable, TimedOut)


@dataclass
class Components:
    """Components that all tabs share.

    Attributes:
        sessions: all open pages.
        picture: the image to click on.
        status: status line below it.
        candidates: radio buttons of the three masks.
        pending: changes when the image must be encoded before it can be segmented.
        file: the file that the browser downloads next.
    """

    sessions: Sessions
    picture: Any
    status: Any
    candidates: Any
    pending: Any
    file: Any

    @property
    def views(self) -> list[Any]:
        """Components that :func:`render` fills."""
        return [self.picture, self.status, self.candidates]

    def session(self, request: gr.Request) -> Session:
        return self.sessions.get(str(request.session_hash))

    @contextmanager
    def locked(self, request: gr.Request) -> Iterator[Session]:
        session = self.session(request)
        with session.lock:
            yield session

    def listen(self, event: Callable[..., Any], fn: Callable[..., Any], **options: Any) -> Any:
        """Registers the callback of an event, with the options common to all."""
        options.setdefault("show_progress", "hidden")
        return event(self._held(show_errors(fn)), api_visibility=PRIVATE, **options)

    def _held(self, fn: Callable[P, R]) -> Callable[P, R]:
        """Returns a callback whose page keeps its files and masks until the callback has ended."""

        @functools.wraps(fn)
        def held(*args: P.args, **kwargs: P.kwargs) -> R:
            given = [*args, *kwargs.values()]
            request = next(each for each in given if isinstance(each, gr.Request))
            with self.sessions.using(str(request.session_hash)):
                return fn(*args, **kwargs)

        return held

    def run(self, button: Any, fn: Callable[..., Any], inputs: Any, outputs: Any) -> None:
        """Makes a button start a slow callback, whose progress the status line shows."""
        self.listen(
            button.click,
            fn,
            inputs=inputs,
            outputs=outputs,
            show_progress="full",
            show_progress_on=self.status,
            **QUEUED,
        )

    def receive(self, event: Callable[..., Any], fn: Callable[..., Any], **options: Any) -> Any:
        """Registers a callback, as :meth:`listen`, whose only input is the path of an upload.

        Gradio has checked that the file was uploaded; it would otherwise decode images itself.
        """

        @functools.wraps(fn)
        def received(payload: dict[str, Any] | None, request: gr.Request) -> Any:
            return fn(None if payload is None else Path(payload["path"]), request)

        return self.listen(event, received, preprocess=False, **options)

    def offer(self, button: Any, fn: Callable[[gr.Request], str]) -> None:
        """Makes a button download the file that a function writes."""
        written = self.listen(button.click, fn, outputs=self.file)
        written.success(None, self.file, None, js=_DOWNLOAD, api_visibility=PRIVATE)


# A link that is clicked at once; the file's URL is on this server.
_DOWNLOAD = """(file) => {
    const link = document.createElement("a");
    link.href = file.url;
    link.download = file.orig_name || file.path.split("/").pop();
    document.body.append(link);
    link.click();
    link.remove();
}"""


def render(session: Session, message: str | None = None, mistake: bool = False) -> tuple[Any, ...]:
    """Returns the values of the views for a session: image, status and candidates."""
    step = session.steps[-1] if session.steps else None
    if session.scores is None or step is None:
        # Not False: gradio never stops the timer of a component that it removes during an event.
        candidates = gr.Radio(choices=[], value=None, visible="hidden")
    else:
        choices = [
            (f"{index + 1}: {score:.3f}", index) for index, score in enumerate(session.scores)
        ]
        candidates = gr.Radio(choices=choices, value=step.chosen, visible=True)
    if message is None:
        message = _describe(session)
    return session.draw(), status_html(message, mistake), candidates


def _describe(session: Session) -> str:
    picture = session.picture
    if picture is None:
        return "Choose an image: drop, paste, photograph or pick one."
    if session.corner is not None:
        return "Now click on the opposite corner of the box."
    mask = session.chosen_mask()
    if mask is None or session.scores is None:
        height, width = picture.pixels.shape[:2]
        return f"{picture.name}, {width:,} x {height:,} pixels: click on an object."
    chosen = session.steps[-1].chosen or 0
    share = mask.mean()
    return (
        f"Candidate {chosen + 1} of {len(session.scores)}: predicted IoU "
        f"{session.scores[chosen]:.3f}, {int(mask.sum()):,} pixels ({share:.1%} of the image)."
    )


def status_html(message: str, mistake: bool = False) -> str:
    """Returns the HTML of the status line."""
    kind = "mistake" if mistake else "state"
    return f'<p class="{kind}">{html.escape(message)}</p>'


def show_errors(fn: Callable[P, R]) -> Callable[P, R]:
    """Returns a callback whose errors appear on the page; the server keeps running."""

    @functools.wraps(fn)
    def told(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return fn(*args, **kwargs)
        except _MISTAKES as error:
            message = str(error) or type(error).__name__
            raise gr.Error(html.escape(message), print_exception=False) from error

    return told
