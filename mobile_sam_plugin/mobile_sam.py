"""The model: SAM's prompt encoder and mask decoder behind the image encoder TinyViT."""

import os
from pathlib import Path
from typing import Any

from huggingface_hub import PyTorchModelHubMixin
from segment_anything.modeling import MaskDecoder, Sam, TwoWayTransformer
from typing_extensions import Self

from .checkpoint import HUB_FILE, download, load_checkpoint, save_checkpoint
from .model import PromptEncoder, TinyVitImageEncoder

_MODEL_CARD = """---
{{ card_data }}
---

# MobileSAM

A [MobileSAM]({{ paper_url }}) model, saved by mobile-sam-plugin: `model.safetensors` has the key
layout of the authors' `mobile_sam.pt`.

```python
from mobile_sam_plugin import MobileSam, SamPredictor

predictor = SamPredictor(MobileSam.from_pretrained("{{ repo_id | default('OWNER/REPO', true) }}"))
```

{{ description | default("What it was trained on, and how well it does, its makers have not said.",
true) }}
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

    def _save_pretrained(self, save_directory: Path) -> None:
        save_checkpoint(self.state_dict(), save_directory / HUB_FILE)

    @classmethod
    def _from_pretrained(
        cls,
        *,
        model_id: str,
        map_location: str = "cpu",
        **options: Any,
    ) -> Self:
        # The mixin hands over what a config.json says of the constructor's arguments, too; the
        # architecture is fixed, so the file is not asked.
        hub_options = {k: v for k, v in options.items() if k not in cls._hub_mixin_init_parameters}
        if os.path.isdir(model_id):
            path = Path(model_id) / HUB_FILE
        else:
            path = download(model_id, **hub_options)
        model = cls.untrained()
        load_checkpoint(model, path)
        return model.to(map_location)

    @classmethod
    def untrained(cls) -> Self:
        """MobileSAM's architecture with weights drawn at random, in eval mode."""
        embed_dim, img_size = 256, 1024
        image_embedding_size = (img_size // 16, img_size // 16)
        sam = cls(
            image_encoder=TinyVitImageEncoder(img_size=img_size, out_chans=embed_dim),
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
            pixel_mean=[123.675, 116.28, 103.53],
            pixel_std=[58.395, 57.12, 57.375],
        )
        return sam.eval()
