"""``mobile-sam app`` as a Space on the Hugging Face Hub."""

import threading

from mobile_sam_plugin import build_sam_vit_t
from mobile_sam_plugin.app.server import serve
from mobile_sam_plugin.engine import Engine, Limits, TorchBackend

PORT = 7860  # where the Hub looks for the page


def main() -> None:
    engine = Engine(TorchBackend(build_sam_vit_t()), Limits(seconds=300))
    with serve(engine, "0.0.0.0", PORT):
        threading.Event().wait()


if __name__ == "__main__":
    main()
