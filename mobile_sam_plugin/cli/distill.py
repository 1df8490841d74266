"""``mobile-sam distill``: the group of its commands."""

import typer

from .distill_embed import embed
from .distill_scenes import scenes
from .distill_train import supervised, train

app = typer.Typer(rich_markup_mode=None)
app.command()(embed)
app.command()(train)
app.command()(supervised)
app.command()(scenes)


@app.callback()
def distill() -> None:
    """Train a student of your own: teacher's embeddings, distillation, training, and data."""
