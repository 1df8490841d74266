"""Serves this folder on port 8000, with the headers that let the page use several threads."""

from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class Handler(SimpleHTTPRequestHandler):
    """Isolates the page from those of other origins: only so may its threads share memory."""

    extensions_map = {  # noqa: RUF012
        **SimpleHTTPRequestHandler.extensions_map,
        ".js": "text/javascript",
        ".mjs": "text/javascript",
        ".wasm": "application/wasm",
    }

    def end_headers(self) -> None:
        self.send_header("Cross-Origin-Opener-Policy", "same-origin")
        self.send_header("Cross-Origin-Embedder-Policy", "require-corp")
        super().end_headers()


if __name__ == "__main__":
    print("http://localhost:8000")
    handler = partial(Handler, directory=str(Path(__file__).parent))
    ThreadingHTTPServer(("127.0.0.1", 8000), handler).serve_forever()
