"""MobileSAM from segment-anything and timm's TinyViT: what a user has without this package."""

from segment_anything.modeling import MaskDecoder, PromptEncoder, Sam, TwoWayTransformer
from segment_anything.modeling.common import LayerNorm2d
from timm.models.tiny_vit import TinyVit
from torch import Tensor, nn

from mobile_sam_plugin import MobileSam


class TimmImageEncoder(nn.Module):
    """timm's TinyViT as it is, with the paper's stride, and SAM's neck."""

    def __init__(self) -> None:
        super().__init__()
        self.img_size = 1024
        self.trunk = TinyVit(
            num_classes=0,
            embed_dims=(64, 128, 160, 320),
            num_heads=(2, 4, 5, 10),
            window_sizes=(7, 7, 14, 7),
            drop_path_rate=0.0,
        )
        self.trunk.head = nn.Identity()
        self.trunk.stages[-1].downsample.conv2.conv.stride = (1, 1)
        self.neck = nn.Sequential(
            nn.Conv2d(320, 256, kernel_size=1, bias=False),
            LayerNorm2d(256),
            nn.Conv2d(256, 256, kernel_size=3, padding=1, bias=False),
            LayerNorm2d(256),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, 1024, 1024) to (B, 256, 64, 64)."""
        embeddings: Tensor = self.neck(self.trunk.forward_features(x))
        return embeddings


def build_baseline(sam: MobileSam) -> Sam:
    """segment_anything's ``Sam`` around timm's TinyViT, with the weights of ``sam``."""
    baseline = Sam(
        image_encoder=TimmImageEncoder(),
        prompt_encoder=PromptEncoder(
            embed_dim=256,
            image_embedding_size=(64, 64),
            input_image_size=(1024, 1024),
            mask_in_chans=16,
        ),
        mask_decoder=MaskDecoder(
            num_multimask_outputs=3,
            transformer=TwoWayTransformer(depth=2, embedding_dim=256, mlp_dim=2048, num_heads=8),
            transformer_dim=256,
        ),
    )
    baseline.image_encoder.trunk.load_state_dict(sam.image_encoder.trunk.state_dict())
    for part in ("image_encoder.neck", "prompt_encoder", "mask_decoder"):
        baseline.get_submodule(part).load_state_dict(sam.get_submodule(part).state_dict())
    return baseline.eval()
