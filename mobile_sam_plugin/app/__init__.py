"""The web page of ``mobile-sam app``: the public API behind a page to click on.

:mod:`.sessions` holds what each open page is about, :mod:`.page` puts the page together,
:mod:`.click`, :mod:`.everything` and :mod:`.pipelines` are its tabs, :mod:`.server` serves it.
"""

import os

from ..errors import MissingExtra

# Gradio reads these when it is imported. Nothing is sent anywhere, unless someone asks for it.
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("GRADIO_RUN_HISTORY", "False")

try:
    import gradio as gradio
except ImportError as error:
    raise MissingExtra.of("gradio", "app") from error
