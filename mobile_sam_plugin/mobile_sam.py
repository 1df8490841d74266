"""The model: TinyViT, or another image encoder, with SAM's prompt encoder and mask decoder."""

import os
from pathlib import Path
from typing import Any

import segment_anything
import torch
from huggingface_hub import PyTorchModelHubMixin
from segment_anything.modeling import Sam, TwoWayTransformer
from torch import Tensor
from typing_extensions import Self

from .checkpoint import HUB_FILE, download, load_checkpoint, read_backbone, save_checkpoint
from .errors import UserError
from .inputs import PIXEL_MEAN, PIXEL_STD
from .model import MaskDecoder, PromptEncoder, TinyVitImageEncoder
from .model.backbone_encoder import BackboneImageEncoder
from .sam_hq import return_pairs, unpack, unpacks_pairs

_MODEL_CARD = """---
{{ card_data }}
---

# MobileSAM

A [MobileSAM]({{ paper_url }}) model, saved by mobile-sam-plugin: `model.safetensors` has the key
layout of the authors' `mobile_sam.pt`, unless its metadata names another backbone than TinyViT.

```python
from mobile_sam_plugin import MobileSam, SamPredictor

predictor = SamPredictor(MobileSam.from_pretrained("{{ repo_id | default('OWNER/REPO', true) }}"))
```

{{ description | default("Training data and results: not stated.", true) }}
"""


class MobileSam(
    Sam,
    PyTorchModelHubMixin,
    library_name="mobile-sam-plugin",
    paper_url="https://arxiv.org/abs/2306.14289",
    license="apache-2.0",
    pipeline_tag="mask-generation",
    tags=["segment-anything", "mobile-sam"],
    model_card_template=_MODEL_CARD,
):
    """A ``segment_anything.modeling.Sam`` that can be loaded from and pushed to the Hub.

    Build one with :func:`~mobile_sam_plugin.build_sam_vit_t`, or

        sam = MobileSam.from_pretrained("nielsr/mobilesam")
        sam.save_pretrained("my-mobile-sam")
        sam.push_to_hub("me/my-mobile-sam")

    The constructor is upstream's: it takes the three parts.
    """

    @torch.no_grad()
    def forward(
        self,
        batched_input: list[dict[str, Any]],
        multimask_output: bool,
        hq_token_only: bool = False,
    ) -> list[dict[str, Tensor]]:
        """Segments several images at once, as upstream's ``Sam.forward``.

        Args:
            batched_input: one dict per image: ``image`` (3, h, w), resized to the model's input
                size, and ``original_size`` (H, W); any of ``point_coords`` (B, N, 2), XY in the
                resized image, with ``point_labels`` (B, N); ``boxes`` (B, 4), XYXY in the resized
                image; ``mask_inputs`` (B, 1, 256, 256).
            multimask_output: three masks per prompt rather than one.
            hq_token_only: of copies of segment_anything for SAM-HQ; ignored.

        Returns:
            One dict per image: ``masks`` (B, C, H, W) bool, ``iou_predictions`` (B, C) and
            ``low_res_logits`` (B, C, 256, 256).
        """
        # Not upstream's code: in copies for SAM-HQ it expects another output of the image encoder.
        images = torch.stack([self.preprocess(entry["image"]) for entry in batched_input])
        embeddings, _ = unpack(self.image_encoder(images))
        results = []
        for entry, embedding in zip(batched_input, embeddings, strict=True):
            points = None
            if "point_coords" in entry:
                points = entry["point_coords"], entry["point_labels"]
            sparse, dense = self.prompt_encoder(
                points=points, boxes=entry.get("boxes"), masks=entry.get("mask_inputs")
            )
            logits, scores = self.mask_decoder(
                image_embeddings=embedding[None],
                image_pe=self.prompt_encoder.get_dense_pe(),
                sparse_prompt_embeddings=sparse,
                dense_prompt_embeddings=dense,
                multimask_output=multimask_output,
            )
            masks = self.postprocess_masks(
                logits, entry["image"].shape[-2:], entry["original_size"]
            )
            results.append(
                {
                    "masks": masks > self.mask_threshold,
                    "iou_predictions": scores,
                    "low_res_logits": logits,
                }
            )
        return results

    @property
    def backbone(self) -> str | None:
        """Name of the image encoder's timm backbone; None for TinyViT."""
        encoder = self.image_encoder
        return encoder.backbone_name if isinstance(encoder, BackboneImageEncoder) else None

    def _save_pretrained(self, save_directory: Path) -> None:
        save_checkpoint(self.state_dict(), save_directory / HUB_FILE, backbone=self.backbone)

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        *,
        revision: str | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        force_download: bool = False,
        local_files_only: bool = False,
        token: str | bool | None = None,
        map_location: str = "cpu",
    ) -> Self:
        """Loads ``model.safetensors`` from a folder or a repository on the Hub, as the mixin does.

        A ``config.json`` next to it is ignored: the architecture is fixed except for the backbone,
        which the file's metadata names.

        Args:
            pretrained_model_name_or_path: a folder, or ``"owner/repo"``.
            revision: a branch, tag or commit; the default branch if None.
            cache_dir: folder for downloads instead of the Hub's cache.
            force_download: whether to download files that are in the cache.
            local_files_only: whether to use the cache alone, without a connection.
            token: the Hub's token; False for none, None for the one of ``hf auth login``.
            map_location: device of the model.

        Raises:
            FileNotFoundError, PermissionError, ConnectionError, UserError: as
                :func:`~mobile_sam_plugin.build_sam_vit_t`.
        """
        if os.path.isdir(pretrained_model_name_or_path):
            path = Path(pretrained_model_name_or_path) / HUB_FILE
        else:
            path = download(
                str(pretrained_model_name_or_path),
                revision=revision,
                cache_dir=cache_dir,
                force_download=force_download,
                local_files_only=local_files_only,
                token=token,
            )
        model = cls.untrained(read_backbone(path))
        load_checkpoint(model, path)
        return model.to(map_location)

    @classmethod
    def untrained(cls, backbone: str | None = None) -> Self:
        """Returns MobileSAM with random weights, in eval mode.

        Args:
            backbone: timm network for the image encoder; TinyViT if None.

        Raises:
            UserError: if timm's network cannot be used, see
                :class:`~mobile_sam_plugin.model.backbone_encoder.BackboneImageEncoder`.
        """
        embed_dim, img_size = 256, 1024
        image_encoder = (
            TinyVitImageEncoder(img_size=img_size, out_chans=embed_dim)
            if backbone is None
            else BackboneImageEncoder(backbone, img_size=img_size, out_chans=embed_dim)
        )
        image_embedding_size = (img_size // 16, img_size // 16)
        sam = cls(
            image_encoder=image_encoder,
            prompt_encoder=PromptEncoder(
                embed_dim=embed_dim,
                image_embedding_size=image_embedding_size,
                input_image_size=(img_size, img_size),
                mask_in_chans=16,
            ),
            mask_decoder=MaskDecoder(
                num_multimask_outputs=3,
                transformer=TwoWayTransformer(
                    depth=2, embedding_dim=embed_dim, mlp_dim=2048, num_heads=8
                ),
                transformer_dim=embed_dim,
                iou_head_depth=3,
                iou_head_hidden_dim=256,
            ),
            pixel_mean=list(PIXEL_MEAN),
            pixel_std=list(PIXEL_STD),
        )
        return_pairs(sam.image_encoder, unpacks_pairs(segment_anything))
        return sam.eval()


def set_img_size(model: Sam, img_size: int) -> None:
    """Sets the side of a model's square input; the weights fit any side, and no file holds it.

    Args:
        model: a SAM whose image encoder takes images of any size, as TinyViT does.
        img_size: in pixels, a multiple of 16. SAM's is 1024.

    Raises:
        ValueError: if `img_size` is not a positive multiple of 16.
    """
    if img_size < 16 or img_size % 16:
        raise UserError(f"img_size must be a multiple of 16, not {img_size}")
    side = img_size // 16
    model.image_encoder.img_size = img_size
    model.prompt_encoder.input_image_size = (img_size, img_size)
    model.prompt_encoder.image_embedding_size = (side, side)
    model.prompt_encoder.mask_input_size = (4 * side, 4 * side)
