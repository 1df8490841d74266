"""Image embeddings in files: the same masks as by encoding, and no embedding taken for another."""

import copy
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import segment_anything
import torch
from numpy.typing import NDArray
from PIL import Image

from mobile_sam_plugin import MobileSam, SamAutomaticMaskGenerator, SamPredictor
from mobile_sam_plugin.checkpoint import BUNDLED_FILE, fingerprint
from mobile_sam_plugin.embeddings import (
    EncoderIdentity,
    identify_encoder,
    list_embeddings,
    read_embedding,
)
from mobile_sam_plugin.errors import UserError
from mobile_sam_plugin.mobile_sam import set_img_size

Pixels = NDArray[np.uint8]
CLICK = [[300, 130]], [1]
EVERYTHING: dict[str, Any] = {
    "points_per_side": 3,
    "pred_iou_thresh": 0,
    "stability_score_thresh": 0,
    "output_mode": "coco_rle",
}


@pytest.fixture(scope="module")
def predictor(tiny_sam: MobileSam, coffee: Pixels) -> SamPredictor:
    predictor = SamPredictor(tiny_sam)
    predictor.set_image(coffee)
    return predictor


@pytest.fixture
def file(predictor: SamPredictor, tmp_path: Path) -> Path:
    predictor.save_embedding(tmp_path / "coffee.safetensors")
    return tmp_path / "coffee.safetensors"


def loaded(model: Any, file: Path) -> SamPredictor:
    predictor = SamPredictor(model)
    predictor.load_embedding(file)
    return predictor


def assert_same_masks(found: SamPredictor, expected: SamPredictor) -> None:
    for one, other in zip(found.predict(*CLICK), expected.predict(*CLICK), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("name", ["bundled_sam", "tiny_sam", "upstream_sam"])
def test_masks_are_those_of_the_image_to_the_bit(
    name: str, coffee: Pixels, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    predictor = SamPredictor(request.getfixturevalue(name))
    predictor.set_image(coffee)
    file = tmp_path / "new" / "cup.safetensors"
    predictor.save_embedding(file)
    found = loaded(predictor.model, file)
    assert_same_masks(found, predictor)
    sizes = predictor.original_size, predictor.input_size
    assert (found.original_size, found.input_size) == sizes
    assert list(file.parent.iterdir()) == [file]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_model_in_half_precision(
    tiny_sam: MobileSam, coffee: Pixels, tmp_path: Path, dtype: torch.dtype
) -> None:
    predictor = SamPredictor(copy.deepcopy(tiny_sam).to(dtype))
    predictor.set_image(coffee)
    predictor.save_embedding(tmp_path / "half.safetensors")
    found = loaded(predictor.model, tmp_path / "half.safetensors")
    assert found.features.dtype == dtype
    assert_same_masks(found, predictor)
    with pytest.raises(UserError, match="another model"):
        loaded(tiny_sam, tmp_path / "half.safetensors")


def test_float16_halves_the_file_and_rounds(
    predictor: SamPredictor, file: Path, tmp_path: Path
) -> None:
    half = tmp_path / "half.safetensors"
    predictor.save_embedding(half, dtype=torch.float16)
    assert half.stat().st_size < 0.6 * file.stat().st_size
    found = loaded(predictor.model, half)
    assert found.features.dtype == torch.float32
    assert torch.equal(found.features, predictor.features.half().float())
    assert read_embedding(half).image_sha256 == read_embedding(file).image_sha256


def test_an_embedding_that_was_loaded_is_saved_as_it_was(
    predictor: SamPredictor, file: Path, tmp_path: Path
) -> None:
    again = tmp_path / "again.safetensors"
    loaded(predictor.model, file).save_embedding(again)
    one, other = read_embedding(again), read_embedding(file)
    assert torch.equal(one.features, other.features)
    assert replace(one, features=other.features) == other


def test_each_of_a_batch_has_its_own_embedding(
    predictor: SamPredictor, coffee: Pixels, tmp_path: Path
) -> None:
    mirrored = coffee[:, ::-1]
    one, other = predictor.set_image_batch([coffee, mirrored])
    one.save_embedding(tmp_path / "one.safetensors")
    other.save_embedding(tmp_path / "other.safetensors")
    assert {*list_embeddings(tmp_path)} == {*map(predictor.digest_image, (coffee, mirrored))}
    found = SamPredictor(predictor.model)
    found.load_embedding(tmp_path / "other.safetensors", mirrored)
    assert_same_masks(found, other)


def test_an_image_is_recognised_by_its_pixels(
    predictor: SamPredictor, file: Path, coffee: Pixels
) -> None:
    found = SamPredictor(predictor.model)
    found.load_embedding(file, Image.fromarray(coffee))
    found.load_embedding(file, coffee[..., ::-1], "BGR")
    changed = coffee.copy()
    changed[200:220, 200:220] = 255
    for other in (changed, coffee[::-1], coffee[:, 1:]):
        with pytest.raises(UserError, match="not of this image, but of one of 600 x 400 pixels"):
            found.load_embedding(file, other)
    assert_same_masks(found, predictor)  # still the image that was set


def test_an_image_of_tensors_is_not_known(
    predictor: SamPredictor, coffee: Pixels, tmp_path: Path
) -> None:
    file = tmp_path / "tensor.safetensors"
    found = SamPredictor(predictor.model)
    found.set_torch_image(*predictor._prepare(coffee, "RGB"))
    found.save_embedding(file)
    assert_same_masks(loaded(predictor.model, file), predictor)
    with pytest.raises(UserError, match="set with set_torch_image"):
        found.load_embedding(file, coffee)
    assert list_embeddings(tmp_path) == {}


def test_setting_another_image_forgets_the_one_that_was_loaded(
    predictor: SamPredictor, file: Path, coffee: Pixels, tmp_path: Path
) -> None:
    found = loaded(predictor.model, file)
    found.set_torch_image(*predictor._prepare(coffee[::-1].copy(), "RGB"))
    found.save_embedding(tmp_path / "other.safetensors")
    assert read_embedding(tmp_path / "other.safetensors").image_sha256 is None


def other_weights(sam: MobileSam) -> None:
    with torch.no_grad():
        next(sam.image_encoder.parameters()).view(-1)[0] += 1


def other_pixels(sam: MobileSam) -> None:
    sam.pixel_mean += 1


def other_size(sam: MobileSam) -> None:
    set_img_size(sam, 224)


@pytest.mark.parametrize("change", [other_weights, other_pixels, other_size])
def test_another_model_is_refused_by_name(
    tiny_sam: MobileSam, file: Path, change: Callable[[MobileSam], None]
) -> None:
    sam = copy.deepcopy(tiny_sam)
    change(sam)
    with pytest.raises(UserError, match="another model, test_efficientnet for 256 pixels"):
        loaded(sam, file)
    with pytest.raises(UserError, match=r"coffee\.safetensors.*another model"):
        list_embeddings(file.parent, identify_encoder(sam))


def test_another_type_is_refused_by_name(
    upstream_sam: segment_anything.modeling.Sam, bundled_sam: MobileSam, file: Path
) -> None:
    with pytest.raises(UserError, match="not of this one, ImageEncoderViT for 1024 pixels"):
        loaded(upstream_sam, file)
    with pytest.raises(UserError, match="not of this one, vit_t for 1024 pixels"):
        loaded(bundled_sam, file)


def test_another_decoder_of_the_same_encoder_is_welcome(
    tiny_sam: MobileSam, predictor: SamPredictor, file: Path
) -> None:
    sam = copy.deepcopy(tiny_sam)
    with torch.no_grad():
        sam.mask_decoder.iou_token.weight += 1
    assert not np.array_equal(loaded(sam, file).predict(*CLICK)[1], predictor.predict(*CLICK)[1])


def rewritten(file: Path, tensors: dict[str, Any] | None = None, **metadata: str | None) -> None:
    """Writes a file again with other tensors and other metadata; None leaves them out."""
    with safetensors.safe_open(file, "pt") as content:
        known = content.metadata() | metadata
        features = content.get_tensor("features")
    if tensors is None:
        tensors = {"features": features}
    else:
        known["tensors_sha256"] = fingerprint(tensors)
    kept = {name: value for name, value in known.items() if value is not None}
    safetensors.torch.save_file(tensors, file, metadata=kept)


def zero_the_end(file: Path) -> None:
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2] + bytes(len(content) - len(content) // 2))


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-7])


def empty(file: Path) -> None:
    file.write_bytes(b"")


def put_weights(file: Path) -> None:
    file.write_bytes(BUNDLED_FILE.read_bytes())


def put_pickle(file: Path) -> None:
    torch.save({"features": torch.zeros(1, 256, 16, 16)}, file)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (truncate, "is damaged"),
        (empty, "is damaged"),
        (zero_the_end, "is damaged.*its values are not those that were written"),
        (put_weights, "not an image embedding of this version, but a safetensors file of 4"),
        (put_pickle, "is damaged, or not an image embedding"),
        (lambda file: rewritten(file, format="mobile_sam_plugin embedding 2"), "this version"),
        (lambda file: rewritten(file, original_size=None), "is damaged.*original_size"),
        (lambda file: rewritten(file, original_size="[0, 9]"), "is damaged.*no size"),
        (lambda file: rewritten(file, img_size="x"), "is damaged"),
        (lambda file: rewritten(file, {"features": torch.full((1, 2, 2, 2), np.nan)}), "finite"),
        (lambda file: rewritten(file, {"features": torch.zeros(2, 256, 16, 16)}), "one image"),
        (lambda file: rewritten(file, {"features": torch.zeros(1, 256, 8, 8)}), "model takes"),
        (lambda file: rewritten(file, {"other": torch.zeros(1, 256, 16, 16)}), "one image"),
        (lambda file: rewritten(file, {}), "one image"),
    ],
)
def test_what_is_no_embedding_is_refused(
    tiny_sam: MobileSam, file: Path, spoil: Callable[[Path], None], words: str
) -> None:
    spoil(file)
    with pytest.raises(UserError, match=words) as error:
        loaded(tiny_sam, file)
    assert "coffee.safetensors" in str(error.value)


def test_paths_that_are_not_there(tiny_sam: MobileSam, file: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nothing.safetensors"):
        loaded(tiny_sam, file.parent / "nothing.safetensors")
    with pytest.raises(IsADirectoryError):
        loaded(tiny_sam, file.parent)
    file.unlink()
    with pytest.raises(UserError, match="there is no embedding in"):
        list_embeddings(file.parent)


def test_bad_requests_leave_no_file(tiny_sam: MobileSam, tmp_path: Path, coffee: Pixels) -> None:
    predictor = SamPredictor(tiny_sam)
    with pytest.raises(RuntimeError, match="image must be set"):
        predictor.save_embedding(tmp_path / "a.safetensors")
    predictor.set_image(coffee)
    with pytest.raises(UserError, match=r"must end in \.safetensors"):
        predictor.save_embedding(tmp_path / "a.pt")
    with pytest.raises(UserError, match="dtype must be one of"):
        predictor.save_embedding(tmp_path / "a.safetensors", dtype=torch.int8)
    predictor.features = predictor.features * 1e6
    with pytest.raises(UserError, match="which torch.float16 cannot hold: choose float32"):
        predictor.save_embedding(tmp_path / "a.safetensors", dtype=torch.float16)
    assert list(tmp_path.iterdir()) == []


def test_features_from_inside_the_encoder_are_kept(
    tiny_sam: MobileSam, coffee: Pixels, tmp_path: Path
) -> None:
    """As copies of segment_anything for SAM-HQ have them."""
    predictor = SamPredictor(tiny_sam)
    predictor.set_image(coffee)
    predictor.interm_features = [torch.rand(1, 16, 16, 8), torch.rand(1, 16, 16, 4)]
    predictor.save_embedding(tmp_path / "hq.safetensors")
    found = loaded(tiny_sam, tmp_path / "hq.safetensors")
    assert found.interm_features is not None
    for one, other in zip(found.interm_features, predictor.interm_features, strict=True):
        assert torch.equal(one, other)
    assert_same_masks(found, predictor)
    found.set_image(coffee)
    assert found.interm_features is None


def test_everything_mode_takes_an_embedding_instead_of_the_image(
    tiny_sam: MobileSam, predictor: SamPredictor, file: Path, coffee: Pixels
) -> None:
    generator = SamAutomaticMaskGenerator(tiny_sam, **EVERYTHING, min_mask_region_area=9)
    expected = generator.generate(coffee)
    assert len(expected) > 3
    found = generator.generate(None, predictor=loaded(tiny_sam, file))
    assert found == expected

    with pytest.raises(UserError, match="give an image, or a predictor"):
        generator.generate(None)
    with pytest.raises(RuntimeError, match="image must be set"):
        generator.generate(None, predictor=SamPredictor(tiny_sam))
    with pytest.raises(UserError, match="another image set, of 600 x 400 pixels: .* 599 x 400"):
        generator.generate(coffee[:, 1:], predictor=predictor)
    with pytest.raises(UserError, match="loaded the embedding of another image"):
        generator.generate(coffee[::-1].copy(), predictor=loaded(tiny_sam, file))
    assert generator.generate(coffee, predictor=loaded(tiny_sam, file)) == expected
    with pytest.raises(UserError, match="the generator's own model"):
        generator.generate(None, predictor=SamPredictor(copy.deepcopy(tiny_sam)))


def test_crops_need_the_image(tiny_sam: MobileSam, predictor: SamPredictor, coffee: Pixels) -> None:
    options = EVERYTHING | {"points_per_side": 1, "crop_n_layers": 1}
    generator = SamAutomaticMaskGenerator(tiny_sam, **options)
    with pytest.raises(UserError, match="crop_n_layers is 1: give the image"):
        generator.generate(None, predictor=predictor)
    found = generator.generate(coffee, predictor=predictor)
    assert found == generator.generate(coffee)


@pytest.mark.process
def test_a_process_that_is_killed_leaves_nothing_half_written(file: Path) -> None:
    """It dies with the bytes written and the name not given."""
    before = file.read_bytes()
    code = (
        "import os, sys, torch\n"
        "from mobile_sam_plugin.embeddings import read_embedding, write_embedding\n"
        "embedding = read_embedding(sys.argv[1])\n"
        "os.replace = lambda *_: os._exit(9)\n"
        "write_embedding(sys.argv[1], embedding, torch.float16)\n"
    )
    process = subprocess.run([sys.executable, "-c", code, str(file)])
    assert process.returncode == 9
    assert file.read_bytes() == before
    assert [*list_embeddings(file.parent).values()] == [file]  # not what the process left


def test_identities_say_what_differs() -> None:
    identity = EncoderIdentity("vit_t", "0123456789abcdef", 1024)
    assert str(identity) == "vit_t for 1024 pixels (weights 0123456789ab)"


def test_metadata_are_plain_text(file: Path, coffee: Pixels) -> None:
    with safetensors.safe_open(file, "np") as content:
        metadata = content.metadata()
        assert content.get_tensor("features").shape == (1, 256, 16, 16)
    assert json.loads(metadata["original_size"]) == [400, 600]
    assert json.loads(metadata["input_size"]) == [171, 256]
    assert metadata["encoder"] == "test_efficientnet" and len(metadata["encoder_sha256"]) == 64
