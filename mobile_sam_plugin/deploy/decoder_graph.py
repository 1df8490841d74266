"""SAM's decoder as one graph: upstream's ``SamOnnxModel`` with about half of the arithmetic.

The image tokens are never projected. A score is ``(W_q t) . (W_k x) = (W_k^T W_q t) . x``, so the
few prompt tokens are projected into image space; attention weights sum to one, so the projections
of values and outputs move to the prompt tokens, too. See ``mobile_sam_plugin.model.mask_decoder``,
which does the same in torch, in place and with what is known of an image kept, as a graph cannot.

In shapes, B is prompts, N points, T tokens, P pixels, C channels, H heads, D channels a head, and
M masks a prompt.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from segment_anything.modeling import Sam
from segment_anything.modeling.transformer import Attention
from segment_anything.utils.onnx import SamOnnxModel
from torch import Tensor, nn

from ..model.differentiable_decoder import upscale


class DecoderGraph(SamOnnxModel):
    """Prompt encoder, mask decoder and upscaling of a SAM; inputs and outputs are upstream's.

    Unlike upstream's it takes several prompts at once, each for an image of its own or all for one,
    and its sizes do not freeze when traced.

    Args:
        sam: the model.
        best_only: whether to give the best of a prompt's masks alone, chosen as by upstream's
            ``return_single_mask``: the first for three points or more, padding included, else that
            of the highest predicted IoU.

    Attributes:
        outputs: names of the outputs.
        logits: name of the output of low-res logits.
        dynamic_axes: names of the sizes that are not fixed, by input or output and axis.
    """

    outputs: ClassVar[Sequence[str]] = ("masks", "iou_predictions", "low_res_masks")
    logits: ClassVar[str] = "low_res_masks"
    dynamic_axes: ClassVar[Mapping[str, Mapping[int, str]]] = {
        "image_embeddings": {0: "images"},
        "point_coords": {0: "prompts", 1: "points"},
        "point_labels": {0: "prompts", 1: "points"},
        "mask_input": {0: "mask_prompts"},
        "masks": {0: "prompts", 2: "height", 3: "width"},
        "iou_predictions": {0: "prompts"},
        "low_res_masks": {0: "prompts"},
    }

    def __init__(self, sam: Sam, best_only: bool = False) -> None:
        super().__init__(sam, return_single_mask=best_only)
        positions = sam.prompt_encoder.get_dense_pe()  # (1, C, h, w)
        self.register_buffer("positions", positions.detach().contiguous())

    def feeds(self, image_embeddings: Tensor, points: Tensor, size: Tensor) -> dict[str, Tensor]:
        """Returns the inputs by name, as clients make them of clicks on an object.

        Args:
            image_embeddings: (1 or B, C, h, w) float32.
            points: (B, N, 2) float32, XY in the frame of the resized image.
            size: (2,) float32, height and width of the image in pixels.
        """
        coords, labels = pad_points(points, torch.ones(points.shape[:2]))
        height, width = image_embeddings.shape[-2:]
        return {
            "image_embeddings": image_embeddings,
            "point_coords": coords,
            "point_labels": labels,
            "mask_input": torch.zeros(1, 1, 4 * height, 4 * width),
            "has_mask_input": torch.zeros(1),
            "orig_im_size": size,
        }

    @torch.no_grad()
    def forward(
        self,
        image_embeddings: Tensor,
        point_coords: Tensor,
        point_labels: Tensor,
        mask_input: Tensor,
        has_mask_input: Tensor,
        orig_im_size: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Decodes prompts.

        Args:
            image_embeddings: (1 or B, C, h, w) float32.
            point_coords: (B, N, 2) float32, XY in the frame of the resized image.
            point_labels: (B, N) float32: 1 object, 0 background, -1 padding, 2 and 3 the top left
                and bottom right corner of a box.
            mask_input: (1 or B, 1, 4h, 4w) float32, low-res logits.
            has_mask_input: (1,) float32, 0 if mask_input is to be ignored, else 1.
            orig_im_size: (2,) float32, height and width of the image in pixels.

        Returns:
            Logits (B, M, height, width) of all mask tokens, the first of which is for unambiguous
            prompts, or (B, 1, height, width) of the best; their predicted IoU (B, M); low-res
            logits (B, M, 4h, 4w).
        """
        low_res_masks, scores = self.decode(
            image_embeddings, point_coords, point_labels, mask_input, has_mask_input
        )
        if self.return_single_mask:
            low_res_masks, scores = self.select_masks(low_res_masks, scores, point_coords.shape[1])
        return self.mask_postprocessing(low_res_masks, orig_im_size), scores, low_res_masks

    def decode(
        self,
        image_embeddings: Tensor,
        point_coords: Tensor,
        point_labels: Tensor,
        mask_input: Tensor,
        has_mask_input: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """As :meth:`forward`, without the upscaling: low-res logits and predicted IoU."""
        return self._decode_tokens(
            image_embeddings + self._embed_masks(mask_input, has_mask_input),
            self.positions,
            self._embed_points(point_coords, point_labels),
        )

    def _decode_tokens(
        self, embeddings: Tensor, positions: Tensor, sparse: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Decodes embedded prompts (B, N, C), for embeddings (1 or B, C, h, w) and positions."""
        decoder = self.mask_decoder
        transformer = decoder.transformer
        size = embeddings.shape[-2:]
        pixels = embeddings.flatten(2).transpose(1, 2)
        positions = positions.flatten(2).transpose(1, 2)
        output_tokens = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight])
        output_tokens = output_tokens.unsqueeze(0).expand(sparse.shape[0], -1, -1)
        prompts = tokens = torch.cat([output_tokens, sparse], dim=1)
        for layer in transformer.layers:
            if layer.skip_first_layer_pe:
                tokens = layer.self_attn(q=tokens, k=tokens, v=tokens)
            else:
                placed = tokens + prompts
                tokens = tokens + layer.self_attn(q=placed, k=placed, v=tokens)
            tokens = layer.norm1(tokens)
            placed_pixels = pixels + positions
            attended = _attend_to_pixels(
                layer.cross_attn_token_to_image, tokens + prompts, placed_pixels, pixels
            )
            tokens = layer.norm2(tokens + attended)
            tokens = layer.norm3(tokens + layer.mlp(tokens))
            attended = _pixels_attend(
                layer.cross_attn_image_to_token, placed_pixels, tokens + prompts, tokens
            )
            pixels = layer.norm4(pixels + attended)
        attended = _attend_to_pixels(
            transformer.final_attn_token_to_image,
            tokens + prompts,
            pixels + positions,
            pixels,
        )
        tokens = transformer.norm_final_attn(tokens + attended)
        scores = decoder.iou_prediction_head(tokens[:, 0])
        weights = torch.stack(
            [
                network(tokens[:, 1 + index])
                for index, network in enumerate(decoder.output_hypernetworks_mlps)
            ],
            dim=1,
        )
        return upscale(decoder.output_upscaling, pixels, weights, size), scores

    def select_masks(
        self, masks: Tensor, iou_preds: Tensor, num_points: int
    ) -> tuple[Tensor, Tensor]:
        """As upstream's, which makes a constant of the number of prompts."""
        first = torch.zeros_like(iou_preds)
        first[:, 0] = 1000
        best = (iou_preds + (num_points - 2.5) * first).argmax(dim=1, keepdim=True)
        size = masks.shape[-2:]
        chosen = masks.gather(1, best[..., None, None].expand(-1, -1, *size))
        return chosen, iou_preds.gather(1, best)

    def mask_postprocessing(self, masks: Tensor, orig_im_size: Tensor) -> Tensor:
        """As upstream's, where ``int()`` makes constants of the sizes of the traced image."""
        model_size = (self.img_size, self.img_size)
        masks = F.interpolate(masks, size=model_size, mode="bilinear", align_corners=False)
        input_size = self.resize_longest_image_size(orig_im_size, self.img_size)
        masks = masks[..., : input_size[0], : input_size[1]]
        # Tensors, which stay dynamic where torch traces.
        size: Any = tuple(orig_im_size.to(torch.int64).unbind())
        return F.interpolate(masks, size=size, mode="bilinear", align_corners=False)


class EdgeSamGraph(DecoderGraph):
    """The same with the inputs and outputs of EdgeSAM's export, for clients that pad no prompt."""

    outputs: ClassVar[Sequence[str]] = ("scores", "masks")
    logits: ClassVar[str] = "masks"
    dynamic_axes: ClassVar[Mapping[str, Mapping[int, str]]] = {
        "image_embeddings": {0: "images"},
        "point_coords": {0: "prompts", 1: "points"},
        "point_labels": {0: "prompts", 1: "points"},
        "scores": {0: "prompts"},
        "masks": {0: "prompts"},
    }

    def feeds(self, image_embeddings: Tensor, points: Tensor, size: Tensor) -> dict[str, Tensor]:
        return {
            "image_embeddings": image_embeddings,
            "point_coords": points,
            "point_labels": torch.ones(points.shape[:2]),
        }

    @torch.no_grad()
    def forward(  # type: ignore[override]
        self, image_embeddings: Tensor, point_coords: Tensor, point_labels: Tensor
    ) -> tuple[Tensor, Tensor]:
        """As :meth:`DecoderGraph.forward`, but the scores come first, and then low-res logits."""
        no_mask = self.model.prompt_encoder.no_mask_embed.weight.reshape(1, -1, 1, 1)
        masks, scores = self._decode_tokens(
            image_embeddings + no_mask,
            self.positions,
            self._embed_points(*pad_points(point_coords, point_labels)),
        )
        return scores, masks


class LowResGraph(DecoderGraph):
    """The same without the upscaling to a size that is known only when it runs."""

    outputs: ClassVar[Sequence[str]] = ("low_res_masks", "iou_predictions")

    def feeds(self, image_embeddings: Tensor, points: Tensor, size: Tensor) -> dict[str, Tensor]:
        feeds = super().feeds(image_embeddings, points, size)
        del feeds["orig_im_size"]
        return feeds

    forward = DecoderGraph.decode  # type: ignore[assignment]


class TransformersGraph(DecoderGraph):
    """The same with the inputs and outputs of ``SamModel`` in transformers' own ONNX export.

    A box is two points, of the labels 2 and 3.
    """

    outputs: ClassVar[Sequence[str]] = ("iou_scores", "pred_masks")
    logits: ClassVar[str] = "pred_masks"
    dynamic_axes: ClassVar[Mapping[str, Mapping[int, str]]] = {
        "image_embeddings": {0: "batch_size"},
        "image_positional_embeddings": {0: "batch_size"},
        "input_points": {0: "batch_size", 1: "point_batch_size", 2: "nb_points_per_image"},
        "input_labels": {0: "batch_size", 1: "point_batch_size", 2: "nb_points_per_image"},
        "iou_scores": {0: "batch_size", 1: "point_batch_size"},
        "pred_masks": {0: "batch_size", 1: "point_batch_size"},
    }

    def feeds(self, image_embeddings: Tensor, points: Tensor, size: Tensor) -> dict[str, Tensor]:
        points = points.unflatten(0, (len(image_embeddings), -1))
        return {
            "image_embeddings": image_embeddings,
            "image_positional_embeddings": self.positions.expand_as(image_embeddings),
            "input_points": points,
            "input_labels": torch.ones(points.shape[:3], dtype=torch.int64),
        }

    @torch.no_grad()
    def forward(  # type: ignore[override]
        self,
        image_embeddings: Tensor,
        image_positional_embeddings: Tensor,
        input_points: Tensor,
        input_labels: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Decodes P prompts of N points for each of B images.

        Args:
            image_embeddings: (B, C, h, w) float32.
            image_positional_embeddings: (B, C, h, w) float32.
            input_points: (B, P, N, 2) float32, XY in the frame of the resized image.
            input_labels: (B, P, N) int64, as in :class:`DecoderGraph`; and -10 for a point that
                counts for nothing.

        Returns:
            Predicted IoU (B, P, 3) and low-res logits (B, P, 3, 4h, 4w) of the candidates.
        """
        images, prompts = input_labels.shape[:2]
        labels = input_labels.flatten(0, 1)
        coords, labels = pad_points(input_points.flatten(0, 1), labels.to(input_points.dtype))
        sparse = self._embed_points(coords, labels) * (labels != -10).unsqueeze(2)
        no_mask = self.model.prompt_encoder.no_mask_embed.weight.reshape(1, -1, 1, 1)
        embeddings, positions = (
            each.unsqueeze(1).expand(-1, prompts, -1, -1, -1).flatten(0, 1)
            for each in (image_embeddings + no_mask, image_positional_embeddings)
        )
        masks, scores = self._decode_tokens(embeddings, positions, sparse)
        by_image = images, prompts
        return scores[:, 1:].unflatten(0, by_image), masks[:, 1:].unflatten(0, by_image)


class EncoderGraph(nn.Module):
    """The image encoder of a SAM, with the outputs of ``SamModel.get_image_embeddings``."""

    positions: Tensor

    def __init__(self, sam: Sam) -> None:
        super().__init__()
        self.image_encoder: nn.Module = sam.image_encoder
        self.register_buffer("positions", sam.prompt_encoder.get_dense_pe().detach())

    @torch.no_grad()
    def forward(self, pixel_values: Tensor) -> tuple[Tensor, Tensor]:
        """Encodes images (B, 3, H, W): embeddings and positional embeddings, (B, C, h, w)."""
        embeddings = self.image_encoder(pixel_values)
        return embeddings, self.positions.expand(embeddings.shape[0], -1, -1, -1)


def pad_points(coords: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Adds the point of the label -1 that SAM adds to prompts without a box.

    Args:
        coords: (B, N, 2) float32.
        labels: (B, N) float32; a corner, 2 or 3, in any prompt is a box in each.

    Returns:
        The same with N or N + 1 points.
    """
    points = labels.shape[1] + 1 - (labels >= 2).any().to(torch.int64)
    coords = torch.cat([coords, torch.zeros_like(coords[:, :1])], dim=1)
    labels = torch.cat([labels, -torch.ones_like(labels[:, :1])], dim=1)
    return coords[:, :points], labels[:, :points]


def _attend_to_pixels(
    attention: Attention, tokens: Tensor, placed_pixels: Tensor, pixels: Tensor
) -> Tensor:
    """Token-to-image attention of tokens (B, T, C) to pixels (1 or B, P, C): (B, T, C).

    Four dimensions, where the model's own decoders fold prompts, tokens and heads into three: in a
    graph the numbers of both prompts and tokens are unknown.
    """
    queries = _by_head(attention, attention.q_proj(tokens)) @ _weights(attention, attention.k_proj)
    queries = queries.flatten(1, 2) / math.sqrt(_head_size(attention))
    # A key's bias adds a constant to all scores of a query, which softmax ignores.
    weights = torch.softmax(queries @ placed_pixels.transpose(1, 2), dim=-1)
    seen = (weights @ pixels).unflatten(1, (attention.num_heads, -1))
    seen = seen @ _weights(attention, attention.v_proj).transpose(1, 2)
    output: Tensor = attention.out_proj(seen.transpose(1, 2).flatten(2) + attention.v_proj.bias)
    return output


def _pixels_attend(
    attention: Attention, placed_pixels: Tensor, placed_tokens: Tensor, tokens: Tensor
) -> Tensor:
    """Image-to-token attention of pixels (1 or B, P, C) to tokens (B, T, C): (B, P, C)."""
    keys = _by_head(attention, attention.k_proj(placed_tokens))
    keys = keys / math.sqrt(_head_size(attention))
    bias = keys @ attention.q_proj.bias.unflatten(0, (attention.num_heads, -1)).unsqueeze(2)
    keys = keys @ _weights(attention, attention.q_proj)
    scores = placed_pixels @ keys.flatten(1, 2).transpose(1, 2) + bias.flatten(1).unsqueeze(1)
    weights = torch.softmax(scores.unflatten(2, (attention.num_heads, -1)), dim=-1).flatten(2)
    # What a head of a token adds to a pixel that attends to it alone. A pixel's weights sum to one
    # in each head, so the heads bring the output's bias together.
    output = attention.out_proj
    by_head = output.weight.t().unflatten(0, (attention.num_heads, -1))
    added = _by_head(attention, attention.v_proj(tokens)) @ by_head
    return weights @ (added + output.bias / attention.num_heads).flatten(1, 2)


def _by_head(attention: Attention, projected: Tensor) -> Tensor:
    """Splits (B, T, H D) into (B, H, T, D)."""
    return projected.unflatten(2, (attention.num_heads, -1)).transpose(1, 2)


def _weights(attention: Attention, projection: nn.Linear) -> Tensor:
    """A projection's weight as (H, D, C)."""
    return projection.weight.unflatten(0, (attention.num_heads, -1))


def _head_size(attention: Attention) -> int:
    size: int = attention.internal_dim // attention.num_heads
    return size
