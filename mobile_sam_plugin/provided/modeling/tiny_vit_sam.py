"""``mobile_sam.modeling.tiny_vit_sam``: the image encoder by its original constructor."""

from collections.abc import Sequence
from typing import Any

from segment_anything.modeling.common import LayerNorm2d

from mobile_sam_plugin.errors import UserError
from mobile_sam_plugin.model import TinyVitImageEncoder

__all__ = ["LayerNorm2d", "TinyViT"]

# TinyViT-5M. What is not in here changes neither the features nor their gradients: a head that
# nothing uses, gradient checkpoints, and attributes for an optimizer.
_ARCHITECTURE: dict[str, Any] = {
    "in_chans": 3,
    "embed_dims": [64, 128, 160, 320],
    "depths": [2, 2, 6, 2],
    "num_heads": [2, 4, 5, 10],
    "window_sizes": [7, 7, 14, 7],
    "mlp_ratio": 4.0,
    "drop_rate": 0.0,
    "drop_path_rate": 0.0,
    "mbconv_expand_ratio": 4.0,
    "local_conv_size": 3,
}


class TinyViT(TinyVitImageEncoder):
    """MobileSAM's image encoder, see :class:`~mobile_sam_plugin.model.TinyVitImageEncoder`.

    The arguments are the original's, with its defaults. They must describe TinyViT-5M, as those in
    the original ``build_sam_vit_t`` do. Inner modules have other names than the original's;
    ``state_dict()`` has the same, without the unused classification head.

    Raises:
        UserError: if they describe another network.
    """

    def __init__(
        self,
        img_size: int = 224,
        in_chans: int = 3,
        num_classes: int = 1000,
        embed_dims: Sequence[int] = (96, 192, 384, 768),
        depths: Sequence[int] = (2, 2, 6, 2),
        num_heads: Sequence[int] = (3, 6, 12, 24),
        window_sizes: Sequence[int] = (7, 7, 14, 7),
        mlp_ratio: float = 4.0,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.1,
        use_checkpoint: bool = False,
        mbconv_expand_ratio: float = 4.0,
        local_conv_size: int = 3,
        layer_lr_decay: float = 1.0,
    ) -> None:
        given = locals()
        for name, expected in _ARCHITECTURE.items():
            value = list(given[name]) if isinstance(expected, list) else given[name]
            if value != expected:
                raise UserError(
                    f"TinyViT's {name} must be {expected}, as in MobileSAM, not {value}: for "
                    "another network install the original mobile_sam"
                )
        super().__init__(img_size)
