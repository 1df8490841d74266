"""What the tabs share: the picture to click on, its status line, and how errors are told."""

import functools
import html
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from . import gradio as gr
from .sessions import Session, Sessions

P = ParamSpec("P")
R = TypeVar("R")

HEAVY: dict[str, Any] = {"concurrency_id": "heavy", "concurrency_limit": 1}
"""Of events that take long: one at a time, the others wait in a queue."""

PRIVATE: Any = "private"  # no event of the page is an interface for programs

_MISTAKES = (ValueError, TypeError, OSError, ImportError, MemoryError)


@dataclass
class Stage:
    """The picture, what is told of it, and what changes them both.

    Attributes:
        sessions: of all open pages.
        picture: to click on.
        status: a line below it.
        candidates: to choose from.
        pending: changes when the picture must be encoded before there can be masks.
        file: what the browser is to download next.
    """

    sessions: Sessions
    picture: Any
    status: Any
    candidates: Any
    pending: Any
    file: Any

    @property
    def views(self) -> list[Any]:
        """The components that :func:`look` is for."""
        return [self.picture, self.status, self.candidates]

    def session(self, request: gr.Request) -> Session:
        return self.sessions.get(str(request.session_hash))

    def listen(self, event: Callable[..., Any], fn: Callable[..., Any], **options: Any) -> Any:
        """Registers what happens on an event, with the options that all events have."""
        options.setdefault("show_progress", "hidden")
        return event(self._held(tell(fn)), api_visibility=PRIVATE, **options)

    def _held(self, fn: Callable[P, R]) -> Callable[P, R]:
        """A callback whose page keeps its files and masks until it has ended."""

        @functools.wraps(fn)
        def held(*args: P.args, **kwargs: P.kwargs) -> R:
            given = [*args, *kwargs.values()]
            request = next(each for each in given if isinstance(each, gr.Request))
            with self.sessions.using(str(request.session_hash)):
                return fn(*args, **kwargs)

        return held

    def receive(self, event: Callable[..., Any], fn: Callable[..., Any], **options: Any) -> Any:
        """As :meth:`listen`, for a file that is the only input: ``fn`` gets its path.

        Gradio, which would decode a picture here, has seen to it that the file was uploaded.
        """

        @functools.wraps(fn)
        def received(payload: dict[str, Any] | None, request: gr.Request) -> Any:
            return fn(None if payload is None else Path(payload["path"]), request)

        return self.listen(event, received, preprocess=False, **options)

    def offer(self, button: Any, fn: Callable[[gr.Request], str]) -> None:
        """Has a button download the file that a function writes."""
        written = self.listen(button.click, fn, outputs=self.file)
        written.success(None, self.file, None, js=_DOWNLOAD, api_visibility=PRIVATE)


# A link that is clicked at once; the file's address is this server's.
_DOWNLOAD = """(file) => {
    const link = document.createElement("a");
    link.href = file.url;
    link.download = file.orig_name || file.path.split("/").pop();
    document.body.append(link);
    link.click();
    link.remove();
}"""


def look(session: Session, message: str | None = None, mistake: bool = False) -> tuple[Any, ...]:
    """What the page shows of a session: picture, status and candidates."""
    step = session.steps[-1] if session.steps else None
    if session.scores is None or step is None:
        candidates = gr.Radio(choices=[], value=None, visible="hidden")
    else:
        choices = [
            (f"{index + 1}: {score:.3f}", index) for index, score in enumerate(session.scores)
        ]
        candidates = gr.Radio(choices=choices, value=step.chosen, visible=True)
    if message is None:
        message = _describe(session)
    return session.draw(), say(message, mistake), candidates


def _describe(session: Session) -> str:
    picture = session.picture
    if picture is None:
        return "Choose a picture: drop, paste, photograph or pick one."
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
        f"{session.scores[chosen]:.3f}, {int(mask.sum()):,} pixels ({share:.1%} of the picture)."
    )


def say(message: str, mistake: bool = False) -> str:
    """The HTML of the status line."""
    kind = "mistake" if mistake else "state"
    return f'<p class="{kind}">{html.escape(message)}</p>'


def tell(fn: Callable[P, R]) -> Callable[P, R]:
    """A callback whose errors are messages on the page; the server goes on in any case."""

    @functools.wraps(fn)
    def told(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return fn(*args, **kwargs)
        except _MISTAKES as error:
            message = str(error) or type(error).__name__
            raise gr.Error(html.escape(message), print_exception=False) from error

    return told
