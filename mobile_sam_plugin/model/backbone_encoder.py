"""Any timm backbone as SAM's image encoder: a feature map of stride 16, and SAM's neck."""

import copy
import inspect
from difflib import get_close_matches
from typing import Any

import timm
import torch
import torch.nn.functional as F
from segment_anything.modeling.common import LayerNorm2d
from torch import Tensor, nn

from ..errors import UserError

_STRIDE = 16


class BackboneImageEncoder(nn.Module):
    """A timm network in place of SAM's ViT, for students other than TinyViT.

    It uses the network's deepest feature map that is at most 16 times smaller than the image, and
    drops the layers after it. A finer map is averaged down to a stride of 16. If the network's
    stride does not divide 16, as with a ViT with patches of 14 pixels, the image is resized first.
    The neck of SAM's ``ImageEncoderViT`` follows. The keys of ``state_dict()`` are timm's after
    ``backbone.``, and ``neck.``.

    A network that timm can build for one image size only takes images of ``img_size`` alone.

    Args:
        backbone: a name in timm, such as ``"repvit_m0_9"``; a tag after it, as in
            ``"resnet18.a1_in1k"``, selects the pretrained weights.
        img_size: side, in pixels, of the square image that SAM pads its input to.
        out_chans: channels of the image embeddings, 256 in SAM.
        pretrained: whether to load timm's weights of the network from the Hub.

    Attributes:
        backbone_name (str): `backbone` without a tag.
        img_size (int): `img_size`.

    Raises:
        UserError: if timm does not have the network, or its requested pretrained weights, or gives
            no feature map of it that is fine enough.

    Examples:
        >>> encoder = BackboneImageEncoder("resnet18")
        >>> encoder(torch.zeros(1, 3, 1024, 1024)).shape
        torch.Size([1, 256, 64, 64])
    """

    def __init__(
        self, backbone: str, img_size: int = 1024, out_chans: int = 256, pretrained: bool = False
    ) -> None:
        super().__init__()
        self.backbone_name = backbone.partition(".")[0]
        self.img_size = img_size
        self.backbone = _build_backbone(backbone, img_size, pretrained)
        features = _choose_feature_map(self.backbone, backbone)
        self._index = features["index"]
        self._reduction = features["reduction"]
        self.neck = nn.Sequential(
            nn.Conv2d(features["num_chs"], out_chans, kernel_size=1, bias=False),
            LayerNorm2d(out_chans),
            nn.Conv2d(out_chans, out_chans, kernel_size=3, padding=1, bias=False),
            LayerNorm2d(out_chans),
        )
        self._check_and_prune()

    def forward(self, x: Tensor) -> Tensor:
        """Encodes images as ``Sam.preprocess`` gives them.

        Args:
            x: normalised images, (B, 3, H, W) float; H and W multiples of 16, in SAM 1024.

        Returns:
            The image embeddings, (B, 256, H / 16, W / 16).
        """
        if _STRIDE % self._reduction:
            resized = [side // _STRIDE * self._reduction for side in x.shape[2:]]
            # In float32 at least, since not all of it is there for half precision on a CPU.
            wide = x.to(torch.promote_types(x.dtype, torch.float32))
            x = F.interpolate(wide, resized, mode="bilinear", antialias=True).to(x.dtype)
        (features,) = self.backbone.forward_intermediates(
            x, indices=[self._index], stop_early=True, intermediates_only=True
        )
        if self._reduction < _STRIDE and _STRIDE % self._reduction == 0:
            features = F.avg_pool2d(features, _STRIDE // self._reduction)
        embeddings: Tensor = self.neck(features)
        return embeddings

    def _check_and_prune(self) -> None:
        """Drops the layers that the embeddings do not depend on.

        Raises:
            UserError: if the embeddings do not have the size that SAM needs.
        """
        size = self.img_size // _STRIDE
        used: set[str] = set()
        try:
            with torch.enable_grad():  # on the device "meta" nothing is computed but shapes
                twin = copy.deepcopy(self).to("meta").train()
                for name, module in twin.named_modules():
                    module.register_forward_hook(lambda *_, name=name: used.add(name))
                found = twin(torch.empty(2, 3, self.img_size, self.img_size, device="meta"))
                found.sum().backward()
        except Exception as error:  # networks made for other sizes raise errors of any kind
            raise UserError(
                f"{self.backbone_name!r} cannot take images of {self.img_size} x {self.img_size} "
                f"pixels in timm {timm.__version__} ({error}): choose another backbone, or a later "
                "release of timm"
            ) from error
        if found.shape[2:] != (size, size):
            raise UserError(
                f"the feature map of {self.backbone_name!r} leaves out the edges of the image, it "
                f"is {found.shape[3]} x {found.shape[2]}, expected {size} x {size}: choose another"
                " backbone"
            )
        for name, weight in twin.named_parameters():
            if (
                weight.grad is None
            ):  # training on several GPUs needs a gradient of every weight that is left
                self.get_parameter(name).requires_grad_(False)
            else:
                used.add(name)
        used |= {
            name.rsplit(".", depth)[0] for name in used for depth in range(name.count(".") + 1)
        }
        # From the inside out; containers stay, since networks iterate over them.
        for name, module in reversed(list(self.named_modules())):
            if name not in used and any(True for _ in module.parameters(recurse=False)):
                self.set_submodule(name, nn.Identity())


def _build_backbone(name: str, img_size: int, pretrained: bool) -> Any:
    if not timm.is_model(name):
        close = get_close_matches(name, timm.list_models(), n=5)
        raise UserError(
            f"timm {timm.__version__} has no backbone {name!r}: "
            + (f"did you mean {', '.join(close)}? " if close else "")
            + "timm.list_models() lists all"
        )
    try:
        network = type(timm.create_model(name))
        backbone = timm.create_model(name, pretrained, **_size_options(network, img_size))
    except RuntimeError as error:  # an unknown tag, no pretrained weights, or others than expected
        raise UserError(f"timm {timm.__version__} cannot build {name!r}: {error}") from error
    for module in backbone.modules():
        if hasattr(module, "attention_bias_cache"):
            module.attention_bias_cache = _NoCache()
    return backbone


def _size_options(network: type[nn.Module], img_size: int) -> dict[str, Any]:
    """Returns constructor arguments for an image size, and for others too where possible."""
    parameters = {
        parameter for base in network.__mro__ for parameter in inspect.signature(base).parameters
    }
    options: dict[str, Any] = {"img_size": img_size} if "img_size" in parameters else {}
    if "dynamic_img_size" in parameters:
        options["dynamic_img_size"] = True
    elif "strict_img_size" in parameters:  # Swin in older releases of timm
        options["strict_img_size"] = False
    return options


def _choose_feature_map(backbone: Any, name: str) -> dict[str, int]:
    """Returns the deepest feature map that is fine enough.

    Returns:
        Its index, its reduction (how many times smaller than the image it is) and its num_chs.
    """
    if not hasattr(backbone, "forward_intermediates"):
        raise UserError(
            f"timm {timm.__version__} gives no feature maps of {name!r}: choose another backbone, "
            "or a later release of timm"
        )
    maps = [{**entry, "index": index} for index, entry in enumerate(backbone.feature_info)]
    fine = [entry for entry in maps if entry["reduction"] <= _STRIDE]
    if not fine:
        finest = min(entry["reduction"] for entry in maps)
        raise UserError(
            f"the finest feature map of {name!r} is {finest} times smaller than the image, SAM's "
            f"decoder needs {_STRIDE} times at most: choose another backbone"
        )
    return fine[-1]


class _NoCache(dict[str, Tensor]):
    """Replaces timm's cache of attention biases in eval mode, which ignores changed weights."""

    def __contains__(self, key: object) -> bool:
        return False

    def __reduce__(self) -> tuple[type, tuple[()]]:
        return type(self), ()
