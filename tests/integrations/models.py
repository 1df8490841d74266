"""Small untrained models in the files that their libraries save, as a user has them."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
import transformers
from numpy.typing import NDArray

from .vocabularies import (
    BERT_VOCABULARY_SIZE,
    SMALL_LAYER,
    clip_text_config,
    save_bert_tokenizer,
    save_clip_tokenizer,
)

Pixels = NDArray[np.uint8]
PROMPTS = ["a dog", "the red cars"]


def save_tokenizer(folder: Path) -> None:
    save_bert_tokenizer(folder, ["a", "dog", "the", "red", "car", "##s", "motor", "##cycle"])


def save_swin_detector(folder: Path, kind: str) -> None:
    """Grounding DINO or its copy by MMDetection."""
    save_tokenizer(folder)
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(
        backbone_config=transformers.SwinConfig(
            image_size=32,
            embed_dim=8,
            depths=[1, 1, 1, 1],
            num_heads=[1, 1, 2, 2],
            window_size=4,
            out_indices=[2, 3, 4],
        ),
        text_config=transformers.BertConfig(vocab_size=BERT_VOCABULARY_SIZE, **SMALL_LAYER),
        d_model=32,
        encoder_layers=1,
        decoder_layers=2,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        num_queries=30,
    )
    getattr(transformers, f"{kind}ForObjectDetection")(config).save_pretrained(folder)
    transformers.GroundingDinoProcessor(
        transformers.GroundingDinoImageProcessor(size={"shortest_edge": 64, "longest_edge": 96}),
        transformers.AutoTokenizer.from_pretrained(folder),
    ).save_pretrained(folder)


def save_owl_detector(folder: Path, kind: str) -> None:
    save_clip_tokenizer(folder, max_length=16)
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(
        text_config=clip_text_config(16),
        vision_config={"image_size": 64, "patch_size": 16, **SMALL_LAYER},
        projection_dim=16,
    )
    getattr(transformers, f"{kind}ForObjectDetection")(config).save_pretrained(folder)
    getattr(transformers, f"{kind}Processor")(
        getattr(transformers, f"{kind}ImageProcessor")(size={"height": 64, "width": 64}),
        transformers.AutoTokenizer.from_pretrained(folder),
    ).save_pretrained(folder)


SIDE = 128  # of the small models' images; the real ones' are 1024


def save_clip(folder: Path) -> None:
    """A CLIP with random weights that sees 32 x 32 pixels."""
    save_clip_tokenizer(folder, max_length=40)
    torch.manual_seed(0)
    config = transformers.CLIPConfig(
        text_config=clip_text_config(40),
        vision_config={"image_size": 32, "patch_size": 8, **SMALL_LAYER},
        projection_dim=16,
    )
    transformers.CLIPModel(config).save_pretrained(folder)
    transformers.CLIPProcessor(
        transformers.CLIPImageProcessor(
            size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
        ),
        transformers.AutoTokenizer.from_pretrained(folder),
    ).save_pretrained(folder)


def save_video_model(folder: Path, kind: str) -> Path:
    """A small SAM 2 or EdgeTAM with random weights, in the form that the Hub's have."""
    stages = [8, 16, 32, 64]
    if kind == "Sam2":
        backbone: dict[str, Any] = {
            "model_type": "sam2_hiera_det_model",
            "hidden_size": 8,
            "image_size": [SIDE, SIDE],
            "blocks_per_stage": [1, 1, 2, 1],
            "embed_dim_per_stage": stages,
            "num_attention_heads_per_stage": [1, 1, 1, 1],
            "window_size_per_stage": [8, 4, 4, 2],
            "global_attention_blocks": [3],
        }
        special: dict[str, Any] = {"memory_attention_feed_forward_hidden_size": 16}
    else:
        backbone = {
            "model_type": "timm_wrapper",
            "architecture": "repvit_m1",
            "num_classes": 2,
            "model_args": {
                "in_chans": 3,
                "features_only": True,
                "out_indices": [0, 1, 2, 3],
                "embed_dim": stages,
                "depth": [1, 1, 1, 1],
            },
        }
        special = {
            "memory_attention_mlp_hidden_size": 16,
            "memory_attention_rope_k_sizes": [4, 4],
            "perceiver_resampler_num_latents": 16,
            "perceiver_resampler_num_latents_2d": 16,
            "perceiver_resampler_mlp_intermediate_size": 16,
        }
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}VideoConfig")(
        vision_config={
            "model_type": "sam2_vision_model" if kind == "Sam2" else "edgetam_vision_model",
            "backbone_config": backbone,
            "backbone_channel_list": stages[::-1],
            "backbone_feature_sizes": [[SIDE // 4] * 2, [SIDE // 8] * 2, [SIDE // 16] * 2],
            "fpn_hidden_size": 128,
        },
        prompt_encoder_config={"hidden_size": 128, "image_size": SIDE},
        mask_decoder_config={"hidden_size": 128, "mlp_dim": 16, "iou_head_hidden_dim": 16},
        image_size=SIDE,
        num_maskmem=3,
        max_object_pointers_in_encoder=4,
        memory_attention_hidden_size=128,
        memory_attention_num_layers=1,
        memory_attention_rope_feat_sizes=[SIDE // 16] * 2,
        memory_encoder_hidden_size=128,
        mask_downsampler_embed_dim=128,
        memory_fuser_embed_dim=128,
        memory_fuser_intermediate_dim=16,
        memory_fuser_num_layers=1,
        **special,
    )
    model = getattr(transformers, f"{kind}VideoModel")(config)
    # As they are, random weights see nothing anywhere.
    last = model.mask_decoder.pred_obj_score_head.proj_out
    torch.nn.init.constant_(last.bias, 1.0)
    model.save_pretrained(folder)
    size = {"height": SIDE, "width": SIDE}
    transformers.Sam2VideoProcessor(
        transformers.Sam2ImageProcessor(
            size=size, mask_size={"height": SIDE // 4, "width": SIDE // 4}
        ),
        transformers.Sam2VideoVideoProcessor(size=size),
    ).save_pretrained(folder)
    return folder


LAMA_SIZE = 64  # of the small file that stands in for LaMa; the real one's is 512


def write_lama(
    path: Path, painted: str = "hole", inputs: tuple[str, str] = ("image", "mask")
) -> Path:
    """An ONNX file with LaMa's inputs, output and ranges.

    What it paints: ``"hole"``, the hole in (51, 102, 153) and the rest as it is; ``"image"``, the
    image with the hole as it is; ``"nan"``.
    """
    image, mask = inputs
    size = LAMA_SIZE
    number = onnx.TensorProto.FLOAT
    color = np.array([51, 102, 153], np.float32).reshape(1, 3, 1, 1) / 255
    constants = {
        "one": np.ones(1),
        "full": np.full(1, 255),
        "color": color,
        "nan": np.full(1, np.nan),
    }
    make_node = onnx.helper.make_node
    nodes = {
        "hole": [
            make_node("Sub", ["one", mask], ["rest"]),
            make_node("Mul", [image, "rest"], ["kept"]),
            make_node("Mul", ["color", mask], ["filled"]),
            make_node("Add", ["kept", "filled"], ["both"]),
        ],
        "image": [
            make_node("Mul", [mask, "one"], ["unused"]),
            make_node("Mul", [image, "one"], ["both"]),
        ],
        "nan": [
            make_node("Mul", [mask, "nan"], ["hidden"]),
            make_node("Add", [image, "hidden"], ["both"]),
        ],
    }[painted]
    graph = onnx.helper.make_graph(
        [*nodes, make_node("Mul", ["both", "full"], ["output"])],
        "lama",
        [
            onnx.helper.make_tensor_value_info(image, number, ["batch", 3, size, size]),
            onnx.helper.make_tensor_value_info(mask, number, ["batch", 1, size, size]),
        ],
        [onnx.helper.make_tensor_value_info("output", number, ["batch", 3, size, size])],
        [
            onnx.numpy_helper.from_array(value.astype(np.float32), name)
            for name, value in constants.items()
        ],
    )
    model = onnx.helper.make_model(
        graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8
    )
    onnx.checker.check_model(model)
    onnx.save(model, path)
    return path


def save_inpainting_pipeline(folder: Path) -> Path:
    """Stable Diffusion's inpainting pipeline: 64 x 64 pixels, 16 tokens, letters."""
    import diffusers

    save_clip_tokenizer(folder / "tokenizer", max_length=16)
    tokenizer = transformers.CLIPTokenizer.from_pretrained(folder / "tokenizer")
    torch.manual_seed(0)
    pipeline = diffusers.StableDiffusionInpaintPipeline(
        vae=diffusers.AutoencoderKL(
            block_out_channels=(8, 16),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            latent_channels=4,
            norm_num_groups=4,
            sample_size=64,
        ),
        text_encoder=transformers.CLIPTextModel(
            transformers.CLIPTextConfig(**clip_text_config(16))
        ),
        tokenizer=tokenizer,
        unet=diffusers.UNet2DConditionModel(
            sample_size=32,
            in_channels=9,  # latents, the mask, and latents of the image without the hole
            out_channels=4,
            block_out_channels=(8, 16),
            layers_per_block=1,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            cross_attention_dim=16,
            attention_head_dim=4,
            norm_num_groups=4,
        ),
        scheduler=diffusers.DDIMScheduler(steps_offset=1, clip_sample=False),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(folder / "pipeline")
    return folder / "pipeline"


def save_grounding_dino(folder: Path) -> dict[str, str]:
    """Paths of a config and a checkpoint for the original Grounding DINO, and a device."""
    import groundingdino.config
    from groundingdino.models import build_model
    from groundingdino.util.slconfig import SLConfig

    torch.manual_seed(0)
    bert = transformers.BertConfig(vocab_size=BERT_VOCABULARY_SIZE, **SMALL_LAYER)
    transformers.BertModel(bert).save_pretrained(folder / "bert")
    save_tokenizer(folder / "bert")
    config = (Path(groundingdino.config.__path__[0]) / "GroundingDINO_SwinT_OGC.py").read_text()
    config += "\nenc_layers = 1\ndec_layers = 1\nnum_queries = 30\n"
    config += f"text_encoder_type = {str(folder / 'bert')!r}\n"
    (folder / "config.py").write_text(config)
    arguments = SLConfig.fromfile(str(folder / "config.py"))
    arguments.device = "cpu"
    weights = build_model(arguments).state_dict()
    torch.save(
        {"model": {f"module.{key}": value for key, value in weights.items()}}, folder / "model.pth"
    )
    return {"config": str(folder / "config.py"), "checkpoint": str(folder / "model.pth")}
