"""The built model: whose classes it is made of, and what it survives."""

import copy
import io
import pickle
from pathlib import Path

import numpy as np
import pytest
import segment_anything.modeling as upstream
import timm.models._registry
import timm.models.tiny_vit
import torch
from numpy.typing import NDArray
from segment_anything.modeling.common import LayerNorm2d
from timm.models import register_model
from torch import Tensor, nn

from mobile_sam_plugin import MobileSam, SamPredictor, build_sam_vit_t
from mobile_sam_plugin.mobile_sam import set_img_size

from ..conftest import needs

SMALL = torch.linspace(-2, 2, 3 * 112 * 96).reshape(1, 3, 112, 96).sin()


def embed(sam: MobileSam, image: Tensor = SMALL) -> Tensor:
    with torch.no_grad():
        embedding: Tensor = sam.image_encoder(image.to(sam.device))
    return embedding


def test_is_made_of_upstreams_and_timms_classes(bundled_sam: MobileSam) -> None:
    assert isinstance(bundled_sam, upstream.Sam)
    assert isinstance(bundled_sam.prompt_encoder, upstream.PromptEncoder)
    assert isinstance(bundled_sam.mask_decoder, upstream.MaskDecoder)
    assert isinstance(bundled_sam.image_encoder.trunk, timm.models.tiny_vit.TinyVit)
    assert [type(layer) for layer in bundled_sam.image_encoder.neck] == [
        nn.Conv2d,
        LayerNorm2d,
        nn.Conv2d,
        LayerNorm2d,
    ]
    assert bundled_sam.image_encoder.img_size == 1024
    assert not any(module.training for module in bundled_sam.modules())
    assert all(parameter.dtype == torch.float32 for parameter in bundled_sam.parameters())


def test_loads_the_authors_file_strictly(authors_file: Path, own_sam: MobileSam) -> None:
    tensors = torch.load(authors_file, weights_only=True)
    result = own_sam.load_state_dict(tensors, strict=True)
    assert result == ([], [])
    saved = own_sam.state_dict()
    head = ("image_encoder.norm_head.", "image_encoder.head.")
    assert list(saved) == [key for key in tensors if not key.startswith(head)]
    for key, value in saved.items():
        torch.testing.assert_close(value, tensors[key], rtol=0, atol=0)
    assert "image_encoder.head.weight" in tensors, "the caller's dict was changed"


def test_strict_loading_names_what_does_not_fit(own_sam: MobileSam) -> None:
    tensors = own_sam.state_dict()
    tensors["mask_decoder.hf_token.weight"] = tensors.pop("image_encoder.neck.0.weight")
    with pytest.raises(RuntimeError, match="(?s)image_encoder.neck.0.weight.*hf_token"):
        own_sam.load_state_dict(tensors)


def test_weights_loaded_in_eval_mode_reach_the_attention_biases(own_sam: MobileSam) -> None:
    """Timm keeps the first image's table of biases in eval mode; here it would be stale."""
    before = embed(own_sam)
    tensors = own_sam.state_dict()
    biases = [key for key in tensors if key.endswith("attention_biases")]
    assert len(biases) == 10
    own_sam.load_state_dict(tensors | {key: tensors[key] + 1.5 * torch.rand(1) for key in biases})
    constant = embed(own_sam)  # one constant for a whole row drops out of the softmax
    torch.testing.assert_close(constant, before, rtol=0, atol=1e-3)
    own_sam.load_state_dict(tensors | {key: 3 * torch.randn_like(tensors[key]) for key in biases})
    assert (embed(own_sam) - before).abs().max() > 1e-2


def test_learns_in_eval_mode_step_after_step(own_sam: MobileSam) -> None:
    optimizer = torch.optim.SGD(own_sam.image_encoder.parameters(), lr=1e-3)
    losses = []
    for _ in range(3):
        loss = own_sam.image_encoder(SMALL).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[2] < losses[1] < losses[0]
    assert all(parameter.grad is not None for parameter in own_sam.image_encoder.parameters())
    copy.deepcopy(own_sam)


@pytest.mark.parametrize("how", ["pickle", "deepcopy", "torch.save"])
def test_survives_copies(bundled_sam: MobileSam, how: str) -> None:
    embed(bundled_sam)
    if how == "pickle":
        twin = pickle.loads(pickle.dumps(bundled_sam))
    elif how == "deepcopy":
        twin = copy.deepcopy(bundled_sam)
    else:
        file = io.BytesIO()
        torch.save(bundled_sam, file)
        file.seek(0)
        twin = torch.load(file, weights_only=False)
    torch.testing.assert_close(embed(twin), embed(bundled_sam), rtol=0, atol=0)
    assert list(twin.state_dict()) == list(bundled_sam.state_dict())
    with torch.no_grad():
        twin.image_encoder.neck[0].weight.zero_()
    assert (embed(twin) - embed(bundled_sam)).abs().max() > 1e-2, "the copy shares weights"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_survives_half_precision(
    own_sam: MobileSam, small_sam: MobileSam, coffee: NDArray[np.uint8], dtype: torch.dtype
) -> None:
    set_img_size(own_sam, 224)
    own_sam.half() if dtype == torch.float16 else own_sam.to(dtype)
    embedding, expected_embedding = embed(own_sam, SMALL.to(dtype)), embed(small_sam)
    assert embedding.dtype == dtype
    assert (embedding.float() - expected_embedding).abs().mean() < 0.05

    full, half = SamPredictor(small_sam), SamPredictor(own_sam)
    full.set_image(coffee)
    half.__dict__.update(full.__dict__, model=own_sam, features=full.features.to(dtype))
    box = [170, 70, 500, 330]
    masks = half.predict(box=box, multimask_output=False)
    refined = half.predict([[300, 200]], [1], box, masks[2])
    expected = full.predict(box=box, multimask_output=False)
    assert [array.dtype for array in masks] == [bool, np.float32, np.float32]
    assert np.isfinite(refined[2]).all()
    np.testing.assert_allclose(masks[1], expected[1], atol=0.02)
    assert (masks[0] == expected[0]).mean() > 0.98
    frequencies = "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"
    expected_frequencies = small_sam.state_dict()[frequencies]
    torch.testing.assert_close(own_sam.state_dict()[frequencies], expected_frequencies)


def test_survives_training_mode_and_device_moves(
    own_sam: MobileSam, bundled_sam: MobileSam
) -> None:
    own_sam.train()
    assert own_sam.image_encoder(SMALL).requires_grad
    own_sam.eval()
    own_sam.load_state_dict(bundled_sam.state_dict())  # the running statistics have moved
    own_sam.to("cpu").double().float()
    torch.testing.assert_close(embed(own_sam), embed(bundled_sam), rtol=0, atol=0)
    assert own_sam.to("meta").device.type == "meta"


def test_positional_encoding_is_computed_once_and_never_stale(own_sam: MobileSam) -> None:
    encoder = own_sam.prompt_encoder
    first = encoder.get_dense_pe()
    assert encoder.get_dense_pe() is first
    torch.testing.assert_close(first, upstream.PromptEncoder.get_dense_pe(encoder))

    frequencies = encoder.pe_layer.positional_encoding_gaussian_matrix
    frequencies.data.mul_(2)  # a write that PyTorch does not count
    torch.testing.assert_close(encoder.get_dense_pe(), upstream.PromptEncoder.get_dense_pe(encoder))

    encoder.get_dense_pe().zero_()
    torch.testing.assert_close(encoder.get_dense_pe(), upstream.PromptEncoder.get_dense_pe(encoder))

    with torch.inference_mode():
        expected = upstream.PromptEncoder.get_dense_pe(copy.deepcopy(encoder).half())
        torch.testing.assert_close(encoder.half().get_dense_pe(), expected.half())


@torch.no_grad()
def test_a_callers_autocast_reaches_no_coordinates(own_sam: MobileSam) -> None:
    encoder = own_sam.prompt_encoder
    points = torch.tensor([[[500.0, 300.0], [501.0, 300.0]]]), torch.ones(1, 2)
    with torch.autocast("cpu", torch.bfloat16):
        first = encoder.get_dense_pe().clone()
        sparse, _ = encoder(points, None, None)
    expected = upstream.PromptEncoder.get_dense_pe(encoder)
    torch.testing.assert_close(first, expected, rtol=0, atol=0)
    torch.testing.assert_close(encoder.get_dense_pe(), expected, rtol=0, atol=0)
    torch.testing.assert_close(sparse, encoder(points, None, None)[0], rtol=0, atol=0)


@needs("timm", "1.0.24", "builds TinyViT without memory")
def test_is_built_without_memory_and_then_filled(bundled_sam: MobileSam) -> None:
    with torch.device("meta"):
        sam = MobileSam.untrained()
    sam.to_empty(device="cpu")
    sam.load_state_dict(bundled_sam.state_dict())
    for name, buffer in bundled_sam.named_buffers():  # some are in no state dict
        sam.get_buffer(name).copy_(buffer)
    assert sam.prompt_encoder.pe_layer.positional_encoding_gaussian_matrix.dtype == torch.float
    torch.testing.assert_close(embed(sam), embed(bundled_sam), rtol=0, atol=0)


def test_segments_a_batch_as_upstreams_sam(small_sam: MobileSam) -> None:
    images = torch.rand(2, 3, 224, 160, generator=torch.Generator().manual_seed(0)) * 255
    click = {"point_coords": torch.tensor([[[80.0, 90.0]]]), "point_labels": torch.ones(1, 1)}
    boxes = {"boxes": torch.tensor([[20.0, 30.0, 120.0, 200.0], [1.0, 2.0, 99.0, 98.0]])}
    batch = [
        {"image": images[0], "original_size": (300, 214), **click},
        {"image": images[1], "original_size": (112, 80), **boxes},
    ]
    for multimask_output in (True, False):
        found = small_sam(batch, multimask_output)
        expected = upstream.Sam.forward(small_sam, batch, multimask_output)
        for ours, theirs in zip(found, expected, strict=True):
            assert ours.keys() == theirs.keys()
            for name, tensor in theirs.items():
                torch.testing.assert_close(ours[name], tensor, rtol=0, atol=0)


@pytest.fixture
def registry_of_timm(monkeypatch: pytest.MonkeyPatch) -> None:
    """Timm's registry of models, to which a test may add."""
    for name, entries in vars(timm.models._registry).items():
        if name.startswith("_m") and isinstance(entries, (dict, set)):
            monkeypatch.setattr(timm.models._registry, name, copy.deepcopy(entries))


@pytest.mark.usefixtures("registry_of_timm")
def test_survives_another_class_under_the_name_of_tiny_vit(bundled_sam: MobileSam) -> None:
    """Importing the original ``mobile_sam`` registers its own class under timm's name."""

    @register_model
    def tiny_vit_5m_224(pretrained: bool = False, **options: object) -> nn.Module:
        raise AssertionError("the model was built through timm's registry")

    torch.testing.assert_close(
        embed(build_sam_vit_t("bundled")), embed(bundled_sam), rtol=0, atol=0
    )


def test_none_gives_untrained_weights() -> None:
    torch.manual_seed(0)
    first = build_sam_vit_t(None).state_dict()
    torch.manual_seed(1)
    second = build_sam_vit_t(None).state_dict()
    assert (first["mask_decoder.iou_token.weight"] != second["mask_decoder.iou_token.weight"]).any()
