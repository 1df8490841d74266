"""What a student is trained for: prompts, losses, and the modules that put them together.

Supervised training follows SAM's recipe (arXiv 2304.02643, appendix A), distillation MobileSAM's
(arXiv 2306.14289, section 3). In shapes, B is images, P is prompts an image, N is prompts, M is
masks a prompt, S is the side of the square input, and C, h, w those of the image embedding.
"""

from collections.abc import Collection
from copy import deepcopy
from typing import NamedTuple

import torch
from segment_anything.modeling import Sam
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import masks_to_boxes, sigmoid_focal_loss

from ..sam_hq import unpack

FOCAL_WEIGHT = 20.0
"""Weight of the focal loss where that of the dice loss is 1."""

LOW_RES = 4
"""How many times smaller than the input the decoder's masks are, and so the masks compared."""

Batch = dict[str, Tensor]
Losses = dict[str, Tensor]


class Prompts(NamedTuple):
    """First prompts, each a click or a box, in pixels of the input.

    Attributes:
        points: clicks on the object, (N, 2) float32, XY.
        boxes: (N, 4) float32, XYXY.
        is_box: (N,) bool, which of the two is the prompt.
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
    """Returns the intersection over union of masks (..., H, W) bool, 0 where both are empty."""
    intersection = (masks & targets).sum((-2, -1))
    return intersection / (masks | targets).sum((-2, -1)).clamp(min=1)


def random_points(regions: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Draws a pixel from each region, all of its pixels alike.

    Args:
        regions: (N, H, W) bool.
        generator: the source of randomness; torch's own if None.

    Returns:
        (N, 2) int64, XY; (0, 0) for an empty region.
    """
    counts = regions.flatten(1).cumsum(1, dtype=torch.int32)
    sizes = counts[:, -1:]
    drawn = torch.rand(sizes.shape, generator=generator, device=regions.device) * sizes
    # float32 may round up to the size itself.
    order = torch.minimum(drawn.int(), sizes - 1).clamp(min=0)
    pixels = torch.searchsorted(counts, order + 1)[:, 0]
    pixels = torch.where(sizes[:, 0] > 0, pixels, 0)
    return torch.stack([pixels % regions.shape[2], pixels // regions.shape[2]], dim=1)


def sample_prompts(masks: Tensor, generator: torch.Generator | None = None) -> Prompts:
    """Draws a first prompt for each mask: a click or a box with equal probability.

    As in SAM's training, a click is any pixel of the mask, and the sides of the mask's bounding box
    are each moved by a tenth of the box's length (standard deviation), by at most 20 pixels of
    1024.

    Args:
        masks: (N, S, S) bool.
        generator: the source of randomness; torch's own if None.
    """
    boxes = masks_to_boxes(masks).float()
    lengths = (boxes[:, 2:] - boxes[:, :2]).repeat(1, 2)
    limit = 20 / 1024 * masks.shape[-1]
    noise = torch.randn(boxes.shape, generator=generator, device=masks.device) * 0.1 * lengths
    is_box = torch.rand(len(masks), generator=generator, device=masks.device) < 0.5
    points = random_points(masks, generator).float()
    return Prompts(points, boxes + noise.clamp(-limit, limit), is_box)


def corrective_clicks(masks: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Draws a click for each mask from where it is wrong, or from the target if it is right.

    Args:
        masks: predictions, (N, H, W) bool.
        targets: (N, H, W) bool.

    Returns:
        Points (N, 2) int64, XY, and labels (N,) int64: 1 where the object was missed, 0 where the
        background was taken for it.
    """
    errors = masks != targets
    regions = torch.where(errors.any(-1).any(-1)[:, None, None], errors, targets)
    points = random_points(regions)
    labels = targets[torch.arange(len(targets), device=targets.device), points[:, 1], points[:, 0]]
    return points, labels.long()


def predict_masks(
    sam: Sam,
    embeddings: Tensor,
    prompts: Prompts,
    clicks: Tensor,
    labels: Tensor,
    logits: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Predicts all masks of prompts on different images at once, with gradients.

    Upstream's decoder takes one image a call. It adds the image embedding and the dense prompt
    embedding and nothing else happens to either, so here the sum comes in as the latter.

    Args:
        sam: the model.
        embeddings: the image embedding of each prompt, (N, C, h, w).
        prompts: the first prompts.
        clicks: further clicks, (N, K, 2), XY in pixels of the input; K may be 0.
        labels: theirs, (N, K), 1 for the object and 0 for the background.
        logits: a mask prompt, (N, 1, 4h, 4w), or None.

    Returns:
        Low-resolution logits (N, M, 4h, 4w) and predicted IoU (N, M), float32. The first of the M
        masks is the one for an unambiguous prompt, the others those of ``multimask_output``.
    """
    device = embeddings.device.type
    # Half precision cannot tell neighbouring pixels apart.
    with torch.autocast(device, enabled=False):
        first = torch.ones_like(prompts.is_box[:, None], dtype=labels.dtype)
        points = torch.cat([prompts.points[:, None], clicks], dim=1)
        # A click and upstream's padding point are as many tokens as the corners of a box.
        of_click, dense = sam.prompt_encoder(
            (points, torch.cat([first, labels], dim=1)), None, logits
        )
        of_box, _ = sam.prompt_encoder(
            (clicks, labels) if clicks.shape[1] else None, prompts.boxes, None
        )
        sparse = torch.where(prompts.is_box[:, None, None], of_box, of_click)
        positions = sam.prompt_encoder.get_dense_pe()
        pixels = embeddings + dense
    if torch.is_autocast_enabled(device):  # once here instead of in every layer
        dtype = torch.get_autocast_dtype(device)
        pixels, positions = pixels.to(dtype), positions.to(dtype)
    low_res, iou_predictions = sam.mask_decoder.predict_masks(
        image_embeddings=torch.zeros_like(pixels[:1]),
        image_pe=positions,
        sparse_prompt_embeddings=sparse,
        dense_prompt_embeddings=pixels,
    )
    return low_res.float(), iou_predictions.float()


def mask_losses(
    logits: Tensor, iou_predictions: Tensor, targets: Tensor, multimask_share: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns focal loss, dice loss and squared error of the predicted IoU of prompts, (N,) each.

    Args:
        logits: (N, M, h, w).
        iou_predictions: (N, M).
        targets: (N, h, w) bool.
        multimask_share: (N,), how much of the loss is that of the best of the masks behind the
            first, the rest being that of the first; None where there is only the first.
    """
    wanted = targets[:, None].expand_as(logits)
    focal = focal_loss(logits, wanted.float())
    dice = dice_loss(logits, wanted.float())
    iou_error = (iou_predictions - mask_iou(logits.detach() > 0, wanted)) ** 2
    if multimask_share is None:
        return focal[:, 0], dice[:, 0], iou_error[:, 0]
    share = multimask_share[:, None]
    multimasks = (FOCAL_WEIGHT * focal + dice)[:, 1:]
    best = F.one_hot(multimasks.argmin(1), multimasks.shape[1])
    weights = torch.cat([1 - share, share * best], dim=1)
    iou_weights = torch.cat([1 - share, (share / best.shape[1]).expand_as(best)], dim=1)
    return (focal * weights).sum(1), (dice * weights).sum(1), (iou_error * iou_weights).sum(1)


class Objective(nn.Module):
    """A model and what it is trained for: called with a batch, returns its losses.

    Only the parts named take part in training. The others keep their weights, and are in eval mode.

    Args:
        sam: the model, with its image size set.
        parts: of ``"encoder"``, the image encoder, and ``"decoder"``, the prompt encoder and the
            mask decoder together, as the paper uses the word.
    """

    def __init__(self, sam: Sam, parts: Collection[str]) -> None:
        super().__init__()
        self.sam = sam
        self.frozen: list[nn.Module] = []
        for name, modules in {
            "encoder": [sam.image_encoder],
            "decoder": [sam.prompt_encoder, sam.mask_decoder],
        }.items():
            for module in modules:
                module.requires_grad_(name in parts)
                if name not in parts:
                    self.frozen.append(module)

    def train(self, mode: bool = True) -> "Objective":
        super().train(mode)
        for module in self.frozen:
            module.eval()
        return self

    def encode(self, batch: Batch) -> Tensor:
        """Returns the embeddings (B, C, h, w) of "pixels", (B, 3, S, S) preprocessed images."""
        pixels = batch["pixels"].contiguous(memory_format=torch.channels_last)
        embeddings, _ = unpack(self.sam.image_encoder(pixels))
        return embeddings


class Decoupled(Objective):
    """The paper's decoupled distillation: mean squared error on a teacher's image embeddings.

    Its batch holds, beside "pixels", "embedding": (B, C, h, w), the teacher's.
    """

    def __init__(self, sam: Sam) -> None:
        super().__init__(sam, ["encoder"])

    def forward(self, batch: Batch) -> Losses:
        embeddings = self.encode(batch)
        return {"loss": F.mse_loss(embeddings.float(), batch["embedding"].float())}


class Coupled(Objective):
    """Distillation through the mask decoder: the student's masks against the teacher's.

    The teacher's masks come from its stored embeddings and its decoder, which the student starts
    with a copy of. With the parts "encoder" this is the paper's semi-coupled distillation, the
    decoder frozen; with "encoder" and "decoder" the coupled one.

    Prompts are drawn at random from all of the image, as many clicks as boxes. Each of the
    student's masks has the teacher's mask in the same place as its target, and its predicted IoU
    the teacher's prediction.

    Its batch holds, beside "pixels", "embedding", (B, C, h, w), the teacher's, and "size", (B, 2),
    the height and width of what is not padding.
    """

    def __init__(self, sam: Sam, parts: Collection[str], prompts_per_image: int) -> None:
        super().__init__(sam, parts)
        self.prompts_per_image = prompts_per_image
        self.teacher = deepcopy(sam)
        del self.teacher.image_encoder
        self.teacher.requires_grad_(False)
        self.frozen.append(self.teacher)

    def forward(self, batch: Batch) -> Losses:
        count = self.prompts_per_image
        prompts = self._random_prompts(batch["size"].repeat_interleave(count, 0))
        no_clicks = prompts.points.new_empty(len(prompts.points), 0, 2)
        inputs = prompts, no_clicks, no_clicks[..., 0], None
        with torch.no_grad():
            embeddings = batch["embedding"].float().repeat_interleave(count, 0)
            teacher_logits, teacher_iou = predict_masks(self.teacher, embeddings, *inputs)
        embeddings = self.encode(batch).repeat_interleave(count, 0)
        logits, iou_predictions = predict_masks(self.sam, embeddings, *inputs)
        targets = (teacher_logits > 0).float()
        return _total(
            focal_loss(logits, targets).mean(),
            dice_loss(logits, targets).mean(),
            F.mse_loss(iou_predictions, teacher_iou),
        )

    def _random_prompts(self, sizes: Tensor) -> Prompts:
        """A prompt for each of the sizes (N, 2), height and width, of what is not padding."""
        corners = torch.rand(len(sizes), 2, 2, device=sizes.device) * sizes.flip(1)[:, None]
        boxes = torch.cat([corners.amin(1), corners.amax(1)], dim=1)
        is_box = torch.rand(len(sizes), device=sizes.device) < 0.5
        return Prompts(corners[:, 0], boxes, is_box)


class Supervised(Objective):
    """Training on masks alone, by SAM's own recipe.

    The first prompt is a click or a box. Then follow rounds, each with the previous mask's logits
    as a mask prompt, and with one more click from where that mask is wrong; or, in the rounds
    with the mask only, without. Losses are averaged over rounds.

    A single click is ambiguous: only the best of its three masks is trained, and the predicted IoU
    of all three, as in SAM 2's code. Later rounds train the mask for unambiguous prompts. A box
    trains both kinds, half each, since it is in use with either.

    Its batch holds, beside "pixels", what is known of P prompts on each image: "masks", (B, P,
    S / 4, S / 4) bool; "points", "boxes" and "is_box", see :class:`Prompts`; and "is_real", (B, P)
    bool, False where an image has no mask to give.

    Args:
        sam: the model.
        parts: see :class:`Objective`.
        corrective_clicks: rounds with a further click; SAM's paper has 8.
        mask_only_rounds: rounds with the previous mask only; SAM's paper has 2. One is the last
            round, others are at random places.
    """

    def __init__(
        self,
        sam: Sam,
        parts: Collection[str],
        corrective_clicks: int = 1,
        mask_only_rounds: int = 0,
    ) -> None:
        super().__init__(sam, parts)
        self.corrective_clicks = corrective_clicks
        self.mask_only_rounds = mask_only_rounds

    def forward(self, batch: Batch) -> Losses:
        targets = batch["masks"].flatten(0, 1)
        prompts = Prompts(*(batch[name].flatten(0, 1) for name in Prompts._fields))
        embeddings = self.encode(batch).repeat_interleave(batch["masks"].shape[1], 0)
        clicks = prompts.points.new_empty(len(targets), 0, 2)
        labels = clicks[..., 0]

        logits, iou_predictions = predict_masks(self.sam, embeddings, prompts, clicks, labels, None)
        multimask_share = torch.where(prompts.is_box, 0.5, 1.0)
        rounds = [mask_losses(logits, iou_predictions, targets, multimask_share)]
        best = iou_predictions[:, 1:].argmax(1, keepdim=True) + 1
        best = torch.where(prompts.is_box[:, None], 0, best)
        for with_click in self._rounds():
            logits = logits.take_along_dim(best[..., None, None], dim=1).detach()
            if with_click:
                points, label = corrective_clicks(logits[:, 0] > 0, targets)
                # Anywhere in the low-resolution pixel; the prompt encoder adds the half.
                points = (points + torch.rand_like(prompts.points)) * LOW_RES - 0.5
                clicks = torch.cat([clicks, points[:, None]], dim=1)
                labels = torch.cat([labels, label[:, None]], dim=1)
            logits, iou_predictions = predict_masks(
                self.sam, embeddings, prompts, clicks, labels, logits
            )
            rounds.append(mask_losses(logits[:, :1], iou_predictions[:, :1], targets, None))
            best = torch.zeros_like(best)

        # Over all prompts, real or not, so that it does not matter which images make up a batch.
        means = torch.stack([torch.stack(losses) for losses in rounds]).mean(0)
        return _total(*(means * batch["is_real"].flatten()).mean(1))

    def _rounds(self) -> list[bool]:
        """Whether each round behind the first has a further click."""
        rounds = [True] * self.corrective_clicks
        for index in range(self.mask_only_rounds):
            rounds.insert(int(torch.randint(len(rounds), ())) if index else len(rounds), False)
        return rounds


def _total(focal: Tensor, dice: Tensor, iou_error: Tensor) -> Losses:
    loss = FOCAL_WEIGHT * focal + dice + iou_error
    return {"loss": loss, "focal": focal, "dice": dice, "iou_error": iou_error}
