"""SAM's image encoder with TinyViT (arXiv 2207.10666): timm's network and SAM's neck."""

import re
from typing import Any

import torch
from segment_anything.modeling.common import LayerNorm2d
from timm.models.tiny_vit import Attention, TinyVit
from torch import Tensor, nn

from .encoder_inference import InferenceEncoder
from .tensors import Snapshot, gradients_wanted
from .upstream import is_hooked

# What a module computes with in addition to its tensors.
_SETTINGS = ("eps", "approximate", "track_running_stats", "stride", "padding", "dilation", "groups")

# An accelerator computes fewer images faster than it starts kernels. The modules start fewer,
# and their weights need not be compared.
_ACCELERATOR_LEAST_IMAGES = 4

# In the authors' checkpoint, but no segmentation uses it.
_CLASSIFICATION_HEAD = ("norm_head.", "head.")


class _Attention(Attention):
    """timm's attention, which looks its biases up every time.

    In eval mode timm keeps the first table, so weights that are loaded or trained after the first
    image would be ignored.
    """

    def get_attention_biases(self, device: torch.device) -> Tensor:
        return self.attention_biases[:, self.attention_bias_idxs]


class TinyVitImageEncoder(nn.Module):
    """The image encoder of MobileSAM (arXiv 2306.14289), in place of SAM's ViT.

    timm's TinyViT-5M with the paper's one change, a stride of 1 in the last downsampling, so that
    the feature map is 16 times smaller than the image as SAM's is; then the neck of SAM's
    ``ImageEncoderViT``. ``state_dict()`` and ``load_state_dict()`` speak the key names of the
    authors' ``mobile_sam.pt``; its unused classification head may be present and is dropped.

    In eval mode and without gradients, images go through an ``InferenceEncoder`` made of the
    weights, and made again whenever their values have changed: the same function, faster. In all
    other cases the modules themselves run: training, tracing, compiling, autocast, hooks on inner
    modules, inner modules that were replaced or have other settings, or few images on an
    accelerator.

    Args:
        img_size: side, in pixels, of the square image that SAM pads its input to.
        out_chans: channels of the image embeddings, 256 in SAM.

    Attributes:
        img_size (int): the side, in pixels, of the square image that SAM pads its input to.
    """

    def __init__(self, img_size: int = 1024, out_chans: int = 256) -> None:
        super().__init__()
        self.img_size = img_size
        self.trunk = TinyVit(
            num_classes=0,
            embed_dims=(64, 128, 160, 320),
            num_heads=(2, 4, 5, 10),
            window_sizes=(7, 7, 14, 7),
            drop_path_rate=0.0,
        )
        self.trunk.head = nn.Identity()
        self.trunk.stages[-1].downsample.conv2.conv.stride = (1, 1)
        for module in self.trunk.modules():
            if isinstance(module, Attention):
                module.__class__ = _Attention
        self.neck = nn.Sequential(
            nn.Conv2d(self.trunk.num_features, out_chans, kernel_size=1, bias=False),
            LayerNorm2d(out_chans),
            nn.Conv2d(out_chans, out_chans, kernel_size=3, padding=1, bias=False),
            LayerNorm2d(out_chans),
        )
        self._upstream_names = {name: _upstream_name(name) for name in super().state_dict()}
        self._own_settings = [_settings(module) for module in self._inner_modules()]
        self._prepared: tuple[Snapshot, InferenceEncoder] | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Encodes images as ``Sam.preprocess`` gives them.

        Args:
            x: normalised images, (B, 3, H, W) float; H and W multiples of 16, in SAM 1024.

        Returns:
            The image embeddings, (B, 256, H / 16, W / 16).
        """
        if self._may_run_prepared(x):
            return self._prepare()(x)
        embeddings: Tensor = self.neck(self.trunk.forward_features(x))
        return embeddings

    def _may_run_prepared(self, x: Tensor) -> bool:
        """Whether an ``InferenceEncoder`` and the modules give the same result."""
        if torch.compiler.is_compiling() or torch.jit.is_tracing() or type(x) is not Tensor:
            return False
        if "_is_replica" in vars(self):  # of nn.DataParallel, which shares what is prepared
            return False
        device = x.device.type
        if device == "meta" or (device != "cpu" and len(x) < _ACCELERATOR_LEAST_IMAGES):
            return False
        if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
            return False
        modules = self._inner_modules()
        return (
            not gradients_wanted(modules, [x])
            and [_settings(module) for module in modules] == self._own_settings
            and not any(
                module.training or "forward" in vars(module) or is_hooked(module)
                for module in modules
            )
        )

    def _prepare(self) -> InferenceEncoder:
        """Returns the encoder for the current weights. Threads may each make one; all are right."""
        modules, prepared = self._inner_modules(), self._prepared
        if prepared is not None and prepared[0].is_of(modules):
            return prepared[1]
        # In this order, so that the next call notices a write in between.
        snapshot = Snapshot(modules)
        encoder = InferenceEncoder(self.trunk, self.neck)
        weight = self.get_parameter("neck.0.weight")
        if weight.is_cuda:  # a thread with a stream of its own must not see it half made
            torch.cuda.synchronize(weight.device)
        self._prepared = snapshot, encoder
        return encoder

    def _inner_modules(self) -> list[nn.Module]:
        found: list[nn.Module] = [self.trunk, self.neck]
        for module in found:  # which grows meanwhile; .modules() takes five times as long
            found += [child for child in module._modules.values() if child is not None]
        return found

    def _apply(self, *args: Any, **kwargs: Any) -> Any:
        self._prepared = None  # frees the memory that .half() or .to() leaves
        return super()._apply(*args, **kwargs)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_prepared": None}

    def state_dict(self, *args: Any, prefix: str = "", **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        """As ``nn.Module.state_dict``, under the authors' key names and in their order."""
        state: dict[str, Any] = super().state_dict(*args, prefix=prefix, **kwargs)
        for name, upstream in self._upstream_names.items():
            if prefix + name in state:  # an adapter takes the place of a layer, and its names
                state[prefix + upstream] = state.pop(prefix + name)
        return state

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        for name, upstream in self._upstream_names.items():
            if prefix + upstream in state_dict:
                state_dict[prefix + name] = state_dict.pop(prefix + upstream)
        for key in list(state_dict):
            if key.startswith(tuple(prefix + name for name in _CLASSIFICATION_HEAD)):
                del state_dict[key]
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


def _settings(module: nn.Module) -> tuple[Any, ...]:
    """What a module computes with: its class, its settings, and which of its tensors are None."""
    own = vars(module)
    tensors = (*module._parameters.values(), *module._buffers.values())
    return type(module), [own.get(name) for name in _SETTINGS], [each is None for each in tensors]


def _upstream_name(name: str) -> str:
    """Turns the name of a tensor in this module into its name in the authors' checkpoint."""
    name = name.removeprefix("trunk.").replace(".conv.weight", ".c.weight")
    name = name.replace("patch_embed.conv1", "patch_embed.seq.0")
    name = name.replace("patch_embed.conv2", "patch_embed.seq.2")
    # timm downsamples at the start of a stage, the authors at the end of the one before.
    name = re.sub(
        r"stages\.(\d+)\.downsample", lambda stage: f"layers.{int(stage[1]) - 1}.downsample", name
    )
    return name.replace("stages.", "layers.")
