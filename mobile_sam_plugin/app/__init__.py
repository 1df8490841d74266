"""The web page of ``mobile-sam app``, on the :mod:`~mobile_sam_plugin.engine`.

:mod:`.sessions` holds the state of each open page, :mod:`.page` builds the page, :mod:`.click`,
:mod:`.everything` and :mod:`.pipelines` are its tabs, and :mod:`.server` serves it.
"""

import os

from ..errors import MissingExtra

# Gradio reads these when it is imported: it then sends nothing unless someone asks for it.
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("GRADIO_RUN_HISTORY", "False")

try:
    import gradio as gradio
except ImportError as error:
    raise MissingExtra.of("gradio", "app") from error
