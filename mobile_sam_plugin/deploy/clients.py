"""What other people's programs load: one row a program, read from its code."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from types import MappingProxyType

from segment_anything.modeling import Sam

from ..inputs import PIXEL_MEAN, PIXEL_STD
from .decoder_graph import DecoderGraph, EdgeSamGraph, TransformersGraph

ENCODER_FILE = "mobile_sam_encoder.onnx"
DECODER_FILE = "mobile_sam_decoder.onnx"
# How transformers.js names a file of this precision, and its dtype.
_SUFFIXES = {"fp32": "", "fp16": "_fp16", "int8": "_quantized"}
_DTYPES = {"fp32": "fp32", "fp16": "fp16", "int8": "q8"}


@dataclass(frozen=True)
class Client:
    """The files of one program, and how it calls them.

    Attributes:
        encoder: the image encoder's file, in the folder; None if the program has another.
        decoder: the mask decoder's file, in the folder.
        graph: makes the decoder of a SAM.
        image: name of the encoder's input.
        picture: dtype of the image, (H, W, 3) RGB, if the encoder is to resize and normalise it:
            "uint8", or "float32" with whole numbers; None if the program does that.
        positions: whether the encoder also gives positional embeddings, as transformers does.
        checkpoint: the file of weights in torch's format that the program loads besides, if any.
        suffixes: what the precision adds to a file's name before ``.onnx``.
        configs: contents of text files by name, from the side of the model's input in pixels and
            the precision.
    """

    encoder: str | None = ENCODER_FILE
    decoder: str = DECODER_FILE
    graph: Callable[[Sam], DecoderGraph] = DecoderGraph
    image: str = "input_image"
    picture: str | None = None
    positions: bool = False
    checkpoint: str | None = None
    suffixes: Mapping[str, str] = field(default_factory=dict)
    configs: Callable[[int, str], Mapping[str, str]] = lambda img_size, precision: {}

    def files(self, precision: str) -> tuple[str | None, str]:
        """Returns the two files' names. In int8 the decoder stays in float32."""
        encoder, decoder = self.encoder, self.decoder
        if encoder is not None:
            encoder = encoder.replace(".onnx", f"{self.suffixes.get(precision, '')}.onnx")
        precision = "fp32" if precision == "int8" else precision
        return encoder, decoder.replace(".onnx", f"{self.suffixes.get(precision, '')}.onnx")


def _labeling_config(img_size: int, precision: str) -> Mapping[str, str]:
    # Both programs ask for the last three, and use none of them.
    return {
        "config.yaml": f"""\
type: segment_anything
name: mobile_sam_plugin
display_name: MobileSAM
encoder_model_path: {ENCODER_FILE}
decoder_model_path: {DECODER_FILE}
input_size: {img_size}
max_width: {img_size}
max_height: {img_size}
"""
    }


def _transformers_configs(img_size: int, precision: str) -> Mapping[str, str]:
    side = {"height": img_size, "width": img_size}
    config = {
        "model_type": "sam",
        "architectures": ["SamModel"],
        "vision_config": {"model_type": "sam_vision_model", "image_size": img_size},
        # Without these transformers.js takes 8 bits in WebAssembly, whatever is in the folder.
        "transformers.js_config": {
            "dtype": {
                "vision_encoder": _DTYPES[precision],
                "prompt_encoder_mask_decoder": "fp16" if precision == "fp16" else "fp32",
            }
        },
    }
    preprocessor = {
        "image_processor_type": "SamImageProcessor",
        "processor_class": "SamProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"longest_edge": img_size},
        "resample": 2,  # Pillow's number of bilinear
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [value / 255 for value in PIXEL_MEAN],
        "image_std": [value / 255 for value in PIXEL_STD],
        "do_pad": True,
        "pad_size": side,
    }
    texts = {"config.json": config, "preprocessor_config.json": preprocessor}
    return {name: f"{json.dumps(text, indent=2)}\n" for name, text in texts.items()}


# The best mask alone, since these programs show the first, or all of them at once.
_BEST = partial(DecoderGraph, best_only=True)
_QUANTIZED = "sam_onnx_quantized_example.onnx"  # SAM's notebook calls it so

PLUGIN = Client()
"""This package's own predictors."""

CLIENTS: Mapping[str, Client] = MappingProxyType(
    {
        "samexporter": Client(graph=_BEST, picture="float32"),
        "anylabeling": Client(graph=_BEST, picture="float32", configs=_labeling_config),
        "x-anylabeling": Client(graph=_BEST, picture="float32", configs=_labeling_config),
        "isat": Client(graph=EdgeSamGraph, image="image", checkpoint="mobile_sam.pt"),
        "label-studio": Client(encoder=None, decoder=_QUANTIZED, graph=_BEST),
        "sam-web-demo": Client(encoder=None, decoder=_QUANTIZED, graph=_BEST),
        "transformers.js": Client(
            encoder="onnx/vision_encoder.onnx",
            decoder="onnx/prompt_encoder_mask_decoder.onnx",
            graph=TransformersGraph,
            image="pixel_values",
            positions=True,
            suffixes=_SUFFIXES,
            configs=_transformers_configs,
        ),
        "upstream": Client(encoder=None, decoder="sam_onnx_example.onnx"),
    }
)
"""Programs of others by the name that ``mobile-sam export --for`` takes."""
