"""What clients send and get, as JSON."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator
from typing_extensions import Self

from ..datasets.segmentations import run_lengths
from ..errors import UserError
from ..inputs import MAX_COORDINATE
from ..mask_postprocessing import UncompressedRLE

Number = Annotated[float, Field(ge=-MAX_COORDINATE, le=MAX_COORDINATE, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Form = Annotated[
    Literal["rle", "polygons", "png"],
    Field(
        description="Form of the masks: COCO's run lengths; outer outlines, x0, y0, x1, y1 and so "
        "on, in which holes are filled; or a PNG of 0 and 255 in base64."
    ),
]
_SHA256 = "6fa1d5c5b7c3c2d16e7e5e3f4f8f4e4ac9c3d4a2f5f1f6d1a8a3c1f4f0a2b3c4"


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class ByDigest(_Strict):
    """An image that was sent before."""

    sha256: str = Field(
        pattern="^[0-9a-f]{64}$",
        description="The digest in an earlier answer.",
        examples=[_SHA256],
    )


class ByPath(_Strict):
    """An image on the server."""

    path: str = Field(
        min_length=1,
        max_length=4096,
        description="Relative to the folder --root of the server.",
        examples=["photos/dog.jpg"],
    )


class RunLengths(_Strict):
    """A mask as COCO's run lengths, column by column."""

    size: tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]] = Field(
        description="Height and width."
    )
    counts: str | list[Annotated[int, Field(ge=0)]] = Field(
        description="Compressed, as pycocotools has them, or numbers."
    )

    def expand(self) -> UncompressedRLE:
        """Returns the run lengths as numbers.

        Raises:
            UserError: if they are damaged, or do not add up to the size.
        """
        height, width = self.size
        counts = self.counts
        if isinstance(counts, str):
            try:
                counts = run_lengths(counts).tolist()
            except ValueError as error:
                raise UserError(f"the run lengths of a mask are damaged: {error}") from error
        if min(counts, default=0) < 0 or sum(counts) != height * width:
            raise UserError(f"the run lengths do not add up to {height} x {width} pixels")
        return {"size": [height, width], "counts": counts}


class Prompt(_Strict):
    """What one object is asked for by: points, a box, a mask, or several of them."""

    points: list[tuple[Number, Number]] = Field(
        default=[], description="X and Y in pixels of the upright image."
    )
    labels: list[Literal[0, 1]] = Field(
        default=[], description="1 for each point on the object, 0 on the background."
    )
    box: tuple[Number, Number, Number, Number] | None = Field(
        default=None, description="Left, top, right and bottom in pixels."
    )
    mask: RunLengths | None = Field(
        default=None, description="A mask of the image's size to refine, with a point or a box."
    )
    multimask: bool = Field(
        default=False,
        description="Three candidates instead of one. Without it a single point gives the best of "
        "three, and other prompts SAM's single-mask output.",
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if len(self.points) != len(self.labels):
            raise ValueError("points and labels must be equally many")
        if not self.points and self.box is None and self.mask is None:
            raise ValueError("give points and labels, a box or a mask")
        if self.box is not None and (self.box[0] > self.box[2] or self.box[1] > self.box[3]):
            raise ValueError("box must be left, top, right, bottom")
        return self


class ImageRequest(_Strict):
    """An image: of an earlier request or on the server; left out where it is uploaded."""

    image: ByDigest | ByPath | None = None


class PredictRequest(ImageRequest):
    """Prompts on an image."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "image": {"sha256": _SHA256},
                    "prompts": [
                        {"points": [[320, 240]], "labels": [1]},
                        {"box": [100, 80, 500, 400], "points": [[120, 90]], "labels": [0]},
                    ],
                    "format": "polygons",
                }
            ]
        }
    )
    prompts: list[Prompt] = Field(min_length=1)
    format: Form = "rle"


class EverythingRequest(ImageRequest):
    """Options of everything mode, as SAM's generator has them."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"image": {"path": "dog.jpg"}, "points_per_side": 16}]}
    )
    points_per_side: int = Field(default=32, ge=1, le=64)
    pred_iou_thresh: Share = 0.88
    stability_score_thresh: Share = 0.95
    box_nms_thresh: Share = 0.7
    min_mask_region_area: int = Field(default=0, ge=0, le=1_000_000)
    format: Form = "rle"


class EmbedRequest(ImageRequest):
    """The image to encode."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"image": {"sha256": _SHA256}}]},
    )


class ImageInfo(BaseModel):
    """The image of an answer."""

    sha256: str = Field(description="By which later requests can name the image.")
    width: int
    height: int


class Mask(BaseModel):
    """A mask."""

    segmentation: Any = Field(description="In the form that was asked for.")
    area: int = Field(description="Pixels.")
    bbox: tuple[float, float, float, float] = Field(description="X, Y, width and height.")
    predicted_iou: float
    stability_score: float | None = Field(default=None, description="Of everything mode.")


class PredictResponse(BaseModel):
    """For each prompt its candidates, one or three."""

    image: ImageInfo
    masks: list[list[Mask]]


class EverythingResponse(BaseModel):
    """All masks of the image."""

    image: ImageInfo
    masks: list[Mask]


class Health(BaseModel):
    """Whether the service answers."""

    status: Literal["ok"] = "ok"


class Info(BaseModel):
    """What answers, and within which limits."""

    version: str
    backend: str
    encoder: str = Field(description="Embeddings of other encoders do not fit its decoder.")
    max_bytes: int
    max_pixels: int
    max_prompts: int
    seconds: float
    workers: int
    queue_length: int
    waiting: int
    cached_images: int
    cached_bytes: int


class Problem(BaseModel):
    """What was wrong, and the way out."""

    detail: str
