"""MobileSAM under the Auto classes of transformers, as ``SamModel`` with another image encoder.

Importing this module registers its classes, after which transformers loads a folder that
``mobile-sam convert --for transformers`` or :func:`save_for_transformers` wrote, without remote
code:

    import mobile_sam_plugin.transformers
    from transformers import AutoModel, AutoProcessor, pipeline

    model = AutoModel.from_pretrained("FOLDER")
    processor = AutoProcessor.from_pretrained("FOLDER")
    generate = pipeline("mask-generation", model="FOLDER")

The prompt encoder, the mask decoder, ``SamProcessor`` and the pipeline are those of transformers.
Only the image encoder is this package's: ``SamModel`` builds a ViT whatever its configuration says,
so no configuration puts TinyViT there by way of ``TimmWrapperModel``.
"""

import os
import re
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .errors import MissingExtra, UserError
from .mobile_sam import MobileSam
from .model import TinyVitImageEncoder

try:
    from transformers import (
        AutoConfig,
        AutoModel,
        AutoModelForMaskGeneration,
        AutoProcessor,
        SamConfig,
        SamImageProcessor,
        SamModel,
        SamProcessor,
    )
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASK_GENERATION_MAPPING_NAMES
    from transformers.models.sam.modeling_sam import SamVisionEncoderOutput
except ImportError as error:
    raise MissingExtra.of("transformers", "transformers") from error

# A ViT without layers, which SamModel builds and MobileSamModel replaces; the width is TinyViT's.
_VISION = {"hidden_size": 320, "num_hidden_layers": 0, "use_abs_pos": False}
# That of the authors' layers; the default of SamConfig is 1e-6.
_MASK_DECODER = {"layer_norm_eps": 1e-5}


class MobileSamConfig(SamConfig):
    """The configuration of :class:`MobileSamModel`.

    Args:
        vision_config: that of the image encoder, as ``SamVisionConfig``, of which the model uses
            ``image_size``.
        prompt_encoder_config: as ``SamPromptEncoderConfig``.
        mask_decoder_config: as ``SamMaskDecoderConfig``.
        options: as ``SamConfig`` takes them.
    """

    model_type = "mobile_sam_plugin"  # in the error of transformers if this module is not imported

    def __init__(
        self,
        vision_config: Any = None,
        prompt_encoder_config: Any = None,
        mask_decoder_config: Any = None,
        **options: Any,
    ) -> None:
        super().__init__(
            vision_config=_VISION if vision_config is None else vision_config,
            prompt_encoder_config=prompt_encoder_config,
            mask_decoder_config=_MASK_DECODER
            if mask_decoder_config is None
            else mask_decoder_config,
            **options,
        )


class _ImageEncoder(TinyVitImageEncoder):
    """MobileSAM's image encoder as transformers saves and loads it, tensor by tensor.

    The keys are the names of the modules. They include the tables by which attention looks its
    biases up: from_pretrained makes anew whatever is not in the file.
    """

    state_dict = nn.Module.state_dict  # type: ignore[assignment]
    _load_from_state_dict = nn.Module._load_from_state_dict

    def __init__(self, img_size: int) -> None:
        super().__init__(img_size)
        for module in self.modules():
            for name, table in list(module.named_buffers(recurse=False)):
                module.register_buffer(name, table, persistent=True)


class MobileSamVisionEncoder(nn.Module):
    """MobileSAM's image encoder with the interface of ``SamVisionEncoder``.

    Args:
        img_size: side, in pixels, of the square image.
    """

    def __init__(self, img_size: int) -> None:
        super().__init__()
        self.encoder = _ImageEncoder(img_size)

    def forward(self, pixel_values: Tensor, **options: Any) -> SamVisionEncoderOutput:
        """Encodes images.

        Args:
            pixel_values: (B, 3, H, W), as ``SamProcessor`` gives them.
            options: ask for outputs that only a ViT has; ignored.

        Returns:
            ``last_hidden_state``, the image embeddings, (B, 256, H / 16, W / 16).
        """
        dtype = self.encoder.get_parameter("neck.0.weight").dtype
        return SamVisionEncoderOutput(last_hidden_state=self.encoder(pixel_values.to(dtype)))

    def get_input_embeddings(self) -> nn.Module:
        """The first layer, as ``SamVisionEncoder`` has it."""
        first: nn.Module = self.encoder.trunk.patch_embed
        return first


class MobileSamModel(SamModel):
    """``SamModel`` with MobileSAM's image encoder.

    Args:
        config: see :class:`MobileSamConfig`; the weights are random.
    """

    config_class = MobileSamConfig

    def __init__(self, config: MobileSamConfig) -> None:
        super().__init__(config)
        self.vision_encoder = MobileSamVisionEncoder(config.vision_config.image_size)
        self.post_init()

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike[str], *arguments: Any, **options: Any
    ) -> Any:
        """Loads a model as ``SamModel.from_pretrained`` does, but from safetensors, and whole.

        Args:
            pretrained_model_name_or_path: a folder, or ``"owner/repo"``.
            arguments: as transformers takes them.
            options: as transformers takes them.

        Returns:
            The model, in eval mode; with ``output_loading_info=True``, also what was loaded.

        Raises:
            UserError: if the file lacks tensors or holds others, where transformers would warn and
                go on with random ones.
        """
        name = pretrained_model_name_or_path
        wanted = options.pop("output_loading_info", False)
        options = {"use_safetensors": True, **options}
        model, loading = super().from_pretrained(
            name, *arguments, output_loading_info=True, **options
        )
        for problem in ("missing", "unexpected"):
            keys = sorted(loading[f"{problem}_keys"])
            if keys:
                raise UserError(
                    f"{str(name)!r} does not fit MobileSamModel: {len(keys)} {problem} "
                    f"tensors, {keys[0]!r} the first; write it again with "
                    "mobile-sam convert --for transformers"
                )
        return (model, loading) if wanted else model


def to_transformers(sam: MobileSam) -> MobileSamModel:
    """Returns a model for transformers with the weights of another, in eval mode.

    Args:
        sam: a MobileSAM with TinyViT.

    Raises:
        UserError: if it has another image encoder.
    """
    if sam.backbone is not None:
        raise UserError(
            f"MobileSamModel has no image encoder but TinyViT, not {sam.backbone!r}: use this "
            "package's own predictor"
        )
    size = {"image_size": sam.image_encoder.img_size}
    config = MobileSamConfig(vision_config=_VISION | size, prompt_encoder_config=size)
    encoder = sam.image_encoder
    tensors = {
        f"vision_encoder.encoder.{name}": tensor
        for name, tensor in (*encoder.named_parameters(), *encoder.named_buffers())
    }
    for part in ("prompt_encoder", "mask_decoder"):
        for name, tensor in sam.get_submodule(part).state_dict().items():
            tensors[_transformers_name(f"{part}.{name}")] = tensor
    tensors["prompt_encoder.shared_embedding.positional_embedding"] = tensors[
        "shared_image_embedding.positional_embedding"
    ]
    model = MobileSamModel(config)
    model.load_state_dict(tensors)
    return model.eval()


def save_for_transformers(
    sam: MobileSam, folder: str | os.PathLike[str], dtype: torch.dtype | None = None
) -> None:
    """Writes a folder for ``AutoModel``, ``AutoProcessor`` and ``pipeline("mask-generation")``.

    Args:
        sam: a MobileSAM with TinyViT.
        folder: where ``model.safetensors`` and the configurations go, each whole or not at all.
        dtype: of the weights, and of the computation where transformers goes by it; None keeps
            theirs.

    Raises:
        UserError: if the model has another image encoder.
    """
    model = to_transformers(sam)
    if dtype is not None:
        model.to(dtype)
    side = sam.image_encoder.img_size
    processor = SamProcessor(
        SamImageProcessor(size={"longest_edge": side}, pad_size={"height": side, "width": side})
    )
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".partial") as partial:
        model.save_pretrained(partial)
        processor.save_pretrained(partial)
        for file in sorted(Path(partial).iterdir()):
            os.replace(file, folder / file.name)


_NAMES = [
    (
        r"^prompt_encoder\.pe_layer\.positional_encoding_gaussian_matrix$",
        "shared_image_embedding.positional_embedding",
    ),
    (r"\.point_embeddings\.", ".point_embed."),
    (r"\.mask_downscaling\.0\.", ".mask_embed.conv1."),
    (r"\.mask_downscaling\.1\.", ".mask_embed.layer_norm1."),
    (r"\.mask_downscaling\.3\.", ".mask_embed.conv2."),
    (r"\.mask_downscaling\.4\.", ".mask_embed.layer_norm2."),
    (r"\.mask_downscaling\.6\.", ".mask_embed.conv3."),
    (r"\.norm(\d|_final_attn)\.", r".layer_norm\1."),
    (r"\.output_upscaling\.0\.", ".upscale_conv1."),
    (r"\.output_upscaling\.1\.", ".upscale_layer_norm."),
    (r"\.output_upscaling\.3\.", ".upscale_conv2."),
    # Of a network of three layers, the first and the last have names of their own.
    (r"(mlps\.\d|head)\.layers\.0\.", r"\1.proj_in."),
    (r"(mlps\.\d|head)\.layers\.1\.", r"\1.layers.0."),
    (r"(mlps\.\d|head)\.layers\.2\.", r"\1.proj_out."),
]


def _transformers_name(name: str) -> str:
    """Turns the name of a tensor of SAM into its name in ``SamModel``."""
    for pattern, replacement in _NAMES:
        name = re.sub(pattern, replacement, name)
    return name


AutoConfig.register(MobileSamConfig.model_type, MobileSamConfig)
AutoModel.register(MobileSamConfig, MobileSamModel)
AutoModelForMaskGeneration.register(MobileSamConfig, MobileSamModel)
AutoProcessor.register(MobileSamConfig, SamProcessor)
# Only for the pipeline, which otherwise logs that the model is not supported, and goes on.
MODEL_FOR_MASK_GENERATION_MAPPING_NAMES[MobileSamConfig.model_type] = MobileSamModel.__name__
