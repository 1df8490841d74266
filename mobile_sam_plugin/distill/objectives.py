"""The objectives of training: prompts, losses, and the modules that combine them.

Supervised training follows SAM's recipe (arXiv 2304.02643, appendix A), distillation MobileSAM's
(arXiv 2306.14289, section 3). In shapes, B counts images, P prompts per image, N prompts and M
masks per prompt; S is the side of the square input, and (C, h, w) the shape of the image embedding.
"""

from collections.abc import Collection
from copy import deepcopy
from typing import NamedTuple

import torch
from segment_anything.modeling import Sam
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import masks_to_boxes, sigmoid_focal_loss

from ..errors import UserError
from ..sam_hq import unpack
from .options import DEFAULT_FOCAL_WEIGHT, PARTS

LOW_RES = 4
"""Ratio of the input's side to that of the decoder's masks, at which masks are compared."""

Batch = dict[str, Tensor]
Losses = dict[str, Tensor]


class Prompts(NamedTuple):
    """First prompts, each a point or a box, in pixels of the input.

    Attributes:
        points: (N, 2) float32, XY, on the object.
        boxes: (N, 4) float32, XYXY.
        is_box: (N,) bool, whether the prompt is the box.
    """

    points: Tensor
    boxes: Tensor
    is_box: Tensor


def focal_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Returns the focal loss (arXiv 1708.02002) of each mask, with its paper's alpha and gamma.

    Args:
        logits: (..., H, W).
        targets: of the same shape, 0 or 1, floating point.

    Returns:
        (...), the mean over pixels.
    """
    loss: Tensor = sigmoid_focal_loss(logits, targets, alpha=0.25, gamma=2)
    return loss.mean((-2, -1))


def dice_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Returns the dice loss (arXiv 1606.04797) of each mask, smoothed by 1 as in MaskFormer's code.

    Args:
        logits: (..., H, W).
        targets: of the same shape, 0 or 1, floating point.

    Returns:
        (...), between 0 and 1.
    """
    probabilities = logits.sigmoid()
    overlap = (probabilities * targets).sum((-2, -1))
    return 1 - (2 * overlap + 1) / (probabilities.sum((-2, -1)) + targets.sum((-2, -1)) + 1)


def mask_iou(masks: Tensor, targets: Tensor) -> Tensor:
    """Returns the intersection over union of masks (..., H, W) bool; 0 if both are empty."""
    intersection = (masks & targets).sum((-2, -1))
    return intersection / (masks | targets).sum((-2, -1)).clamp(min=1)


def random_points(regions: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Draws a pixel from each region, uniformly.

    Args:
        regions: (N, H, W) bool.
        generator: the source of randomness; torch's own if None.

    Returns:
        (N, 2) int64, XY; (0, 0) for an empty region.
    """
    in_rows = regions.sum(2, dtype=torch.int32)
    counts = in_rows.cumsum(1, dtype=torch.int32)
    sizes = counts[:, -1:]
    drawn = torch.rand(sizes.shape, generator=generator, device=regions.device) * sizes
    # float32 may round up to the size itself.
    order = torch.minimum(drawn.int(), sizes - 1).clamp(min=0) + 1
    # First the row and then the column: fewer sums than over all pixels.
    y = torch.searchsorted(counts, order).clamp(max=regions.shape[1] - 1)
    row = regions.take_along_dim(y[..., None], dim=1)[:, 0].cumsum(1, dtype=torch.int32)
    x = torch.searchsorted(row, order - (counts - in_rows).take_along_dim(y, dim=1))
    return torch.where(sizes > 0, torch.cat([x, y], dim=1), 0)


def sample_prompts(masks: Tensor, generator: torch.Generator | None = None) -> Prompts:
    """Draws a first prompt for each mask: a point or a box with equal probability.

    As in SAM's training, a point is any pixel of the mask, and each side of the mask's bounding box
    is moved at random: standard deviation a tenth of the box's length, at most 20 pixels of 1024.

    Args:
        masks: (N, S, S) bool.
        generator: the source of randomness; torch's own if None.

    Returns:
        N prompts, in pixels of the masks.
    """
    boxes = masks_to_boxes(masks).float()
    lengths = (boxes[:, 2:] - boxes[:, :2]).repeat(1, 2)
    limit = 20 / 1024 * masks.shape[-1]
    noise = torch.randn(boxes.shape, generator=generator, device=masks.device) * 0.1 * lengths
    is_box = torch.rand(len(masks), generator=generator, device=masks.device) < 0.5
    points = random_points(masks, generator).float()
    return Prompts(points, boxes + noise.clamp(-limit, limit), is_box)


def corrective_clicks(masks: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Draws a point for each mask from its errors, or from the target if it has none.

    Args:
        masks: predictions, (N, H, W) bool.
        targets: (N, H, W) bool.

    Returns:
        Points (N, 2) int64, XY, and labels (N,) int64: 1 if the object is missing there, 0
        if the background was taken for it.
    """
    errors = masks != targets
    regions = torch.where(errors.any(-1).any(-1)[:, None, None], errors, targets)
    points = random_points(regions)
    labels = targets[torch.arange(len(targets), device=targets.device), points[:, 1], points[:, 0]]
    return points, labels.long()


def predict_masks(
    model: Sam,
    embeddings: Tensor,
    prompts: Prompts,
    clicks: Tensor,
    labels: Tensor,
    logits: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Predicts all masks of prompts on different images at once, with gradients.

    segment-anything's decoder takes one image per call. It only adds the image embedding to the
    dense prompt embedding, so here the latter is their sum.

    Args:
        model: the model.
        embeddings: the image embedding of each prompt, (N, C, h, w).
        prompts: the first prompts.
        clicks: further points, (N, K, 2), XY in pixels of the input; K may be 0.
        labels: (N, K), 1 for the object and 0 for the background.
        logits: a mask prompt, (N, 1, 4h, 4w), or None.

    Returns:
        Low-resolution logits (N, M, 4h, 4w) and predicted IoU (N, M), float32. The first of the M
        masks is the one for unambiguous prompts, the others those of ``multimask_output``.
    """
    device = embeddings.device.type
    # Half precision cannot separate neighbouring pixels.
    with torch.autocast(device, enabled=False):
        first = torch.ones_like(prompts.is_box[:, None], dtype=labels.dtype)
        points = torch.cat([prompts.points[:, None], clicks], dim=1)
        # A point and segment-anything's padding point are as many tokens as a box's corners.
        of_click, dense = model.prompt_encoder(
            (points, torch.cat([first, labels], dim=1)), None, logits
        )
        of_box, _ = model.prompt_encoder(
            (clicks, labels) if clicks.shape[1] else None, prompts.boxes, None
        )
        sparse = torch.where(prompts.is_box[:, None, None], of_box, of_click)
        positions = model.prompt_encoder.get_dense_pe()
        pixels = embeddings + dense
    if torch.is_autocast_enabled(device):  # once here instead of in every layer
        dtype = torch.get_autocast_dtype(device)
        pixels, positions = pixels.to(dtype), positions.to(dtype)
    low_res, iou_predictions = model.mask_decoder.predict_masks(
        image_embeddings=torch.zeros_like(pixels[:1]),
        image_pe=positions,
        sparse_prompt_embeddings=sparse,
        dense_prompt_embeddings=pixels,
    )
    return low_res.float(), iou_predictions.float()


def mask_losses(
    logits: Tensor,
    iou_predictions: Tensor,
    targets: Tensor,
    multimask_share: Tensor | None,
    focal_weight: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the focal loss, dice loss and squared error of the predicted IoU, (N,) each.

    Args:
        logits: (N, M, h, w).
        iou_predictions: (N, M).
        targets: (N, h, w) bool.
        multimask_share: (N,), weight of the best multimask output; the first, single mask gets the
            rest. None if there is only the single mask.
        focal_weight: weight of the focal loss, relative to the dice loss, for the best output.
    """
    wanted = targets[:, None].expand_as(logits)
    focal = focal_loss(logits, wanted.float())
    dice = dice_loss(logits, wanted.float())
    iou_error = (iou_predictions - mask_iou(logits.detach() > 0, wanted)) ** 2
    if multimask_share is None:
        return focal[:, 0], dice[:, 0], iou_error[:, 0]
    share = multimask_share[:, None]
    multimasks = (focal_weight * focal + dice)[:, 1:]
    best = F.one_hot(multimasks.argmin(1), multimasks.shape[1])
    weights = torch.cat([1 - share, share * best], dim=1)
    iou_weights = torch.cat([1 - share, (share / best.shape[1]).expand_as(best)], dim=1)
    return (focal * weights).sum(1), (dice * weights).sum(1), (iou_error * iou_weights).sum(1)


class Objective(nn.Module):
    """A model and its objective: called with a batch, returns the losses.

    Args:
        model: the model, with its input size set.
        parts: the parts to train, some of ``"encoder"``, ``"prompt_encoder"`` and
            ``"mask_decoder"``. The others keep their weights, and stay in eval mode.
        focal_weight: weight of the focal loss, relative to the dice loss.
    """

    def __init__(
        self, model: Sam, parts: Collection[str], focal_weight: float = DEFAULT_FOCAL_WEIGHT
    ) -> None:
        super().__init__()
        if unknown := set(parts).difference(PARTS):
            raise UserError(f"parts must be of {', '.join(PARTS)}, not {sorted(unknown)}")
        self.model = model
        self.focal_weight = focal_weight
        self.frozen: list[nn.Module] = []
        modules = model.image_encoder, model.prompt_encoder, model.mask_decoder
        for name, module in zip(PARTS, modules, strict=True):
            module.requires_grad_(name in parts)
            if name not in parts:
                self.frozen.append(module)

    def train(self, mode: bool = True) -> "Objective":
        """Sets the mode of the trained parts; the others stay in eval mode."""
        super().train(mode)
        for module in self.frozen:
            module.eval()
        return self

    def encode(self, batch: Batch) -> Tensor:
        """Returns the embeddings (B, C, h, w) of "pixels", (B, 3, S, S) preprocessed images."""
        pixels = batch["pixels"].contiguous(memory_format=torch.channels_last)
        embeddings, _ = unpack(self.model.image_encoder(pixels))
        return embeddings

    def total(self, focal: Tensor, dice: Tensor, iou_error: Tensor) -> Losses:
        """Returns "loss", the weighted sum, and its parts."""
        loss = self.focal_weight * focal + dice + iou_error
        return {"loss": loss, "focal": focal, "dice": dice, "iou_error": iou_error}


class Decoupled(Objective):
    """The paper's decoupled distillation: mean squared error on a teacher's image embeddings.

    A batch holds "pixels" and "embedding", (B, C, h, w), the teacher's.
    """

    def __init__(self, model: Sam) -> None:
        super().__init__(model, ["encoder"])

    def forward(self, batch: Batch) -> Losses:
        """Returns "loss"."""
        embeddings = self.encode(batch)
        return {"loss": F.mse_loss(embeddings.float(), batch["embedding"].float())}


class Coupled(Objective):
    """Distillation through the mask decoder: the student's masks against the teacher's.

    The teacher's masks come from its stored embeddings and its decoder; the student starts with a
    copy of the latter. Training the "encoder" alone is the paper's semi-coupled distillation,
    training all parts the coupled one.

    Prompts are drawn at random from the whole image, points and boxes with equal probability. The
    target of each mask of the student is the teacher's mask of the same index, and that of its
    predicted IoU the teacher's prediction.

    A batch holds "pixels"; "embedding", (B, C, h, w), the teacher's; and "size", (B, 2), the height
    and width without padding.

    Args:
        model: see :class:`Objective`; has the teacher's decoder.
        parts: see :class:`Objective`.
        prompts_per_image: number of prompts per image.
        focal_weight: see :class:`Objective`.
    """

    def __init__(
        self,
        model: Sam,
        parts: Collection[str],
        prompts_per_image: int,
        focal_weight: float = DEFAULT_FOCAL_WEIGHT,
    ) -> None:
        super().__init__(model, parts, focal_weight)
        self.prompts_per_image = prompts_per_image
        self.teacher = deepcopy(model)
        del self.teacher.image_encoder
        self.teacher.requires_grad_(False)
        self.frozen.append(self.teacher)

    def forward(self, batch: Batch) -> Losses:
        """Returns "loss", and its parts "focal", "dice" and "iou_error"."""
        count = self.prompts_per_image
        prompts = self._random_prompts(batch["size"].repeat_interleave(count, 0))
        no_clicks = prompts.points.new_empty(len(prompts.points), 0, 2)
        inputs = prompts, no_clicks, no_clicks[..., 0], None
        with torch.no_grad():
            embeddings = batch["embedding"].float().repeat_interleave(count, 0)
            teacher_logits, teacher_iou = predict_masks(self.teacher, embeddings, *inputs)
        embeddings = self.encode(batch).repeat_interleave(count, 0)
        logits, iou_predictions = predict_masks(self.model, embeddings, *inputs)
        targets = (teacher_logits > 0).float()
        return self.total(
            focal_loss(logits, targets).mean(),
            dice_loss(logits, targets).mean(),
            F.mse_loss(iou_predictions, teacher_iou),
        )

    def _random_prompts(self, sizes: Tensor) -> Prompts:
        """Draws a prompt for each of the sizes (N, 2), height and width without padding."""
        corners = torch.rand(len(sizes), 2, 2, device=sizes.device) * sizes.flip(1)[:, None]
        boxes = torch.cat([corners.amin(1), corners.amax(1)], dim=1)
        is_box = torch.rand(len(sizes), device=sizes.device) < 0.5
        return Prompts(corners[:, 0], boxes, is_box)


class Supervised(Objective):
    """Training on masks alone, by SAM's own recipe.

    The first prompt is a point or a box. Further rounds prompt with the logits of the previous
    mask, most of them also with one more point from its errors. Losses are averaged over rounds.

    A single point is ambiguous: only the best of its three masks is trained, and the predicted IoU
    of all three, as in SAM 2's code. Later rounds train the mask for unambiguous prompts. A box
    trains both kinds with equal weight, because both are used with boxes.

    A batch holds "pixels", and for P prompts per image "masks", (B, P, S / 4, S / 4) bool;
    "points", "boxes" and "is_box", see :class:`Prompts`; and "is_real", (B, P) bool, False if the
    image has no mask.

    Args:
        model: the model.
        parts: see :class:`Objective`.
        corrective_clicks: number of rounds with a further point; SAM's paper has 8.
        mask_only_rounds: number of rounds without one; SAM's paper has 2. One is the last round,
            the others are at random positions.
        focal_weight: see :class:`Objective`.
    """

    def __init__(
        self,
        model: Sam,
        parts: Collection[str],
        corrective_clicks: int = 1,
        mask_only_rounds: int = 0,
        focal_weight: float = DEFAULT_FOCAL_WEIGHT,
    ) -> None:
        super().__init__(model, parts, focal_weight)
        self.corrective_clicks = corrective_clicks
        self.mask_only_rounds = mask_only_rounds

    def forward(self, batch: Batch) -> Losses:
        """Returns "loss", and its parts "focal", "dice" and "iou_error"."""
        targets = batch["masks"].flatten(0, 1)
        prompts = Prompts(*(batch[name].flatten(0, 1) for name in Prompts._fields))
        embeddings = self.encode(batch).repeat_interleave(batch["masks"].shape[1], 0)
        clicks = prompts.points.new_empty(len(targets), 0, 2)
        labels = clicks[..., 0]

        logits, iou_predictions = predict_masks(
            self.model, embeddings, prompts, clicks, labels, None
        )
        multimask_share = torch.where(prompts.is_box, 0.5, 1.0)
        weight = self.focal_weight
        rounds = [mask_losses(logits, iou_predictions, targets, multimask_share, weight)]
        best = iou_predictions[:, 1:].argmax(1, keepdim=True) + 1
        best = torch.where(prompts.is_box[:, None], 0, best)
        for with_click in self._rounds():
            logits = logits.take_along_dim(best[..., None, None], dim=1).detach()
            if with_click:
                points, label = corrective_clicks(logits[:, 0] > 0, targets)
                # Anywhere in the low-resolution pixel; the prompt encoder adds 0.5.
                points = (points + torch.rand_like(prompts.points)) * LOW_RES - 0.5
                clicks = torch.cat([clicks, points[:, None]], dim=1)
                labels = torch.cat([labels, label[:, None]], dim=1)
            logits, iou_predictions = predict_masks(
                self.model, embeddings, prompts, clicks, labels, logits
            )
            single = logits[:, :1], iou_predictions[:, :1]
            rounds.append(mask_losses(*single, targets, None, weight))
            best = torch.zeros_like(best)

        # Over all prompts, real or not, so that the weights do not depend on the batch.
        means = torch.stack([torch.stack(losses) for losses in rounds]).mean(0)
        return self.total(*(means * batch["is_real"].flatten()).mean(1))

    def _rounds(self) -> list[bool]:
        """Returns whether each round after the first has a further point."""
        rounds = [True] * self.corrective_clicks
        for index in range(self.mask_only_rounds):
            rounds.insert(int(torch.randint(len(rounds), ())) if index else len(rounds), False)
        return rounds
