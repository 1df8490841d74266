"""``SamPredictor``: upstream's results, more kinds of images, and errors that name the fault."""

import copy
import io
import warnings
from typing import Any

import cv2
import numpy as np
import pytest
import segment_anything
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.nn.functional import binary_cross_entropy_with_logits

from mobile_sam_plugin import MobileSam, SamAutomaticMaskGenerator, SamPredictor
from mobile_sam_plugin.inputs import mask_to_logits
from mobile_sam_plugin.mobile_sam import set_img_size
from mobile_sam_plugin.predictor import as_pixels

from ..records import assert_same_records

Pixels = NDArray[np.uint8]


@pytest.fixture(scope="module")
def predictor(bundled_sam: MobileSam, coffee: Pixels) -> SamPredictor:
    """Has the photograph of a cup set."""
    predictor = SamPredictor(bundled_sam)
    predictor.set_image(coffee)
    return predictor


def exif_rotated(pixels: Pixels) -> Image.Image:
    """The picture as a camera held sideways stores it: turned, and a tag to turn it back."""
    stored = Image.fromarray(pixels).transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6
    file = io.BytesIO()
    stored.save(file, "PNG", exif=exif)
    return Image.open(file)


def test_takes_the_images_people_have(coffee: Pixels) -> None:
    gray = np.asarray(Image.fromarray(coffee).convert("L"))
    alpha = np.full_like(gray, 7)
    palette = Image.fromarray(coffee).quantize(200)
    deep = Image.fromarray(gray.astype(np.uint16) * 257)
    assert deep.mode == "I;16"
    for image, expected in (
        (coffee, coffee),
        (np.dstack([coffee, alpha]), coffee),
        (gray, np.dstack([gray] * 3)),
        (gray[..., None], np.dstack([gray] * 3)),
        (coffee[::-1, ::-1], coffee[::-1, ::-1]),
        (Image.fromarray(coffee), coffee),
        (Image.fromarray(np.dstack([coffee, alpha])), coffee),
        (Image.fromarray(gray), np.dstack([gray] * 3)),
        (palette, np.asarray(palette.convert("RGB"))),
        (deep, np.dstack([gray] * 3)),
        (exif_rotated(coffee), coffee),
    ):
        np.testing.assert_array_equal(as_pixels(image), expected)


def test_set_image_turns_a_pil_image_upright(tiny_sam: MobileSam) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (40, 90, 3), dtype=np.uint8)
    upright, rotated = SamPredictor(tiny_sam), SamPredictor(tiny_sam)
    upright.set_image(pixels)
    rotated.set_image(exif_rotated(pixels), image_format="BGR")
    assert rotated.original_size == (40, 90)
    torch.testing.assert_close(rotated.features, upright.features, rtol=0, atol=0)


def test_bgr_is_reordered(small_sam: MobileSam, coffee: Pixels) -> None:
    predictor, reordered = SamPredictor(small_sam), SamPredictor(small_sam)
    predictor.set_image(coffee)
    reordered.set_image(np.dstack([coffee[..., ::-1], coffee[..., :1]]), image_format="BGR")
    torch.testing.assert_close(reordered.features, predictor.features)


@pytest.mark.parametrize(
    ("image", "error", "message"),
    [
        (np.zeros((8, 8, 3), np.float32), TypeError, "uint8 in .* not float32"),
        (np.zeros((8, 8, 3), np.int64), TypeError, "not int64"),
        (np.zeros((8, 8, 3), bool), TypeError, "not bool"),
        (np.zeros((3, 8, 8), np.uint8), ValueError, r"not \(3, 8, 8\)"),
        (np.zeros((8, 8, 2), np.uint8), ValueError, r"not \(8, 8, 2\)"),
        (np.zeros((1, 8, 8, 3), np.uint8), ValueError, r"not \(1, 8, 8, 3\)"),
        (np.zeros(8, np.uint8), ValueError, r"not \(8,\)"),
        (np.zeros((0, 8, 3), np.uint8), ValueError, "empty.*\\(0, 8, 3\\)"),
        (np.zeros((1, 5000, 3), np.uint8), ValueError, "too thin, 5000 x 1"),
        (Image.new("F", (8, 8)), TypeError, "mode 'F'"),
        (torch.zeros(3, 8, 8), TypeError, "not Tensor.*set_torch_image"),
        ("dog.jpg", TypeError, "not str.*PIL.Image.open"),
        (None, TypeError, "not NoneType"),
    ],
)
def test_refuses_what_is_no_image(
    predictor: SamPredictor, image: Any, error: type[Exception], message: str
) -> None:
    before = predictor.features
    with pytest.raises(error, match=message):
        predictor.set_image(image)
    assert predictor.features is before


def test_refuses_an_unknown_image_format(predictor: SamPredictor, coffee: Pixels) -> None:
    with pytest.raises(ValueError, match="'RGB' or 'BGR', not 'GBR'"):
        predictor.set_image(coffee, "GBR")


def test_prediction_needs_an_image(bundled_sam: MobileSam) -> None:
    predictor = SamPredictor(bundled_sam)
    for predict in (
        predictor.predict,
        lambda: predictor.predict_torch(None, None),
        lambda: predictor.predict_low_res_torch(None, None),
    ):
        with pytest.raises(RuntimeError, match="An image must be set"):
            predict()
    with pytest.raises(RuntimeError, match="An image must be set"):
        predictor.get_image_embedding()


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ({"point_coords": [[1, 2]]}, "point_coords came without point_labels"),
        ({"point_labels": [1]}, "point_labels came without point_coords"),
        ({"point_coords": [1, 2], "point_labels": [1]}, r"\(N, 2\), not \(2,\)"),
        ({"point_coords": [[1, 2, 3]], "point_labels": [1]}, r"\(N, 2\), not \(1, 3\)"),
        ({"point_coords": [[1, 2]], "point_labels": [1, 0]}, r"\(1,\), not \(2,\)"),
        ({"point_coords": [[1, 2]], "point_labels": [[1]]}, r"\(1,\), not \(1, 1\)"),
        ({"point_coords": [[1, np.nan]], "point_labels": [1]}, "point_coords holds NaN"),
        ({"point_coords": [["a", "b"]], "point_labels": [1]}, "point_coords must be .* numbers"),
        ({"point_coords": [[1, 2]], "point_labels": [2]}, r"object.*background.*not 2"),
        ({"point_coords": [[1, 2]], "point_labels": [np.nan]}, "point_labels holds NaN"),
        ({"point_coords": [[1, 2]], "point_labels": [1, [0]]}, "point_labels must be .* numbers"),
        ({"point_coords": [[10**400, 2]], "point_labels": [1]}, "point_coords must be .* numbers"),
        ({"box": [1, 2, 3]}, r"4 numbers, XYXY, not of the shape \(3,\)"),
        ({"box": np.zeros((2, 4))}, r"\(2, 4\); for several boxes call predict_torch"),
        ({"box": [1, 2, 3, np.inf]}, "box holds NaN or infinity: inf"),
        (
            {"point_coords": [[1, 1e38]], "point_labels": [1]},
            "point_coords holds 1e.38.*16,777,216",
        ),
        ({"box": [1, 2, 3, -1e9]}, "box holds -1e.09"),
        ({"mask_input": np.zeros((1, 128, 128))}, r"\(1, 256, 256\).*float64.*\(1, 128, 128\)"),
        ({"mask_input": np.zeros((3, 256, 256))}, r"not float64 of the shape \(3, 256, 256\)"),
        ({"mask_input": np.zeros((400, 600))}, "mask_input must be low-res .* or a bool or uint8"),
        ({"mask_input": np.zeros((256, 256), bool)}, r"\(1, 400, 600\), not bool .*\(256, 256\)"),
        ({"mask_input": np.zeros((600, 400), np.uint8)}, r"not uint8 of the shape \(600, 400\)"),
        ({"mask_input": np.full((256, 256), 1e5)}, "mask_input holds 100000.*10,000"),
        ({"mask_input": np.full((1, 256, 256), np.nan)}, "mask_input holds NaN"),
        ({"mask_input": [[1.0], [2.0, 3.0]]}, "mask_input must be an array"),
    ],
)
def test_refuses_a_prompt_by_name(
    predictor: SamPredictor, prompt: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        predictor.predict(**prompt)


@pytest.mark.parametrize(
    "prompt",
    [
        {},
        {"point_coords": np.array([[300, 200]]), "point_labels": np.array([1])},
        {"point_coords": np.array([[-50, 9e3]]), "point_labels": np.array([True])},
        {"point_coords": np.array([[300.5, 2], [9, 9]]), "point_labels": np.array([1.0, -1.0])},
        {"point_coords": np.zeros((0, 2)), "point_labels": np.zeros(0)},
        {"box": np.array([170, 70, 500, 330])},
        {"box": np.array([[170, 70, 500, 330]])},
        {"box": np.array([[170, 70], [500, 330]])},
        {
            "point_coords": np.array([[300, 200]]),
            "point_labels": np.array([0]),
            "box": np.array([170.0, 70.0, 500.0, 330.0]),
            "mask_input": np.linspace(-8, 8, 65536, dtype=np.float32).reshape(1, 256, 256),
            "multimask_output": False,
            "return_logits": True,
        },
        {"mask_input": np.linspace(-8, 8, 65536).reshape(1, 256, 256)},
    ],
    ids=lambda prompt: "+".join(prompt) or "nothing",
)
def test_equals_upstreams_predictor(
    bundled_sam: MobileSam, predictor: SamPredictor, coffee: Pixels, prompt: dict[str, Any]
) -> None:
    upstream = segment_anything.SamPredictor(bundled_sam)
    upstream.__dict__.update(predictor.__dict__)
    for ours, theirs in zip(predictor.predict(**prompt), upstream.predict(**prompt), strict=True):
        assert ours.dtype == theirs.dtype
        np.testing.assert_array_equal(ours, theirs)


def test_takes_lists_and_flat_masks(predictor: SamPredictor) -> None:
    logits = np.linspace(-8, 8, 65536).reshape(256, 256)
    expected = predictor.predict(
        np.array([[300, 200]]), np.array([1]), np.array([1, 2, 300, 200]), logits[None]
    )
    actual = predictor.predict([[300, 200]], [1], [1, 2, 300, 200], logits)
    for ours, theirs in zip(actual, expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_options_are_on_or_off(predictor: SamPredictor) -> None:
    for name in ("multimask_output", "return_logits"):
        options: Any = {name: np.array([True, False])}
        with pytest.raises(TypeError, match=f"{name} must be True or False, not array"):
            predictor.predict([[300, 200]], [1], **options)


def test_views_in_reverse_are_prompts(predictor: SamPredictor) -> None:
    points, labels = np.array([[9, 9], [300, 200]]), np.array([0, 1])
    logits = np.linspace(-8, 8, 65536, dtype=np.float32).reshape(1, 256, 256)[:, ::-1]
    for found, expected in zip(
        predictor.predict(points[::-1], labels[::-1], mask_input=logits),
        predictor.predict(points[::-1].copy(), labels[::-1].copy(), mask_input=logits.copy()),
        strict=True,
    ):
        np.testing.assert_array_equal(found, expected)


def test_swapped_corners_are_taken_with_a_warning(predictor: SamPredictor) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        predictor.predict(box=[170, 70, 500, 330])
    with pytest.warns(UserWarning, match="corners swapped") as caught:
        predictor.predict(box=[500, 330, 170, 70])
    assert caught[0].filename == __file__


def test_eval_mode_is_borrowed_and_given_back(
    own_sam: MobileSam, small_sam: MobileSam, coffee: Pixels
) -> None:
    """A forgotten ``.eval()`` lets batch norm change the masks."""
    set_img_size(own_sam, 224)
    predictor = SamPredictor(small_sam)
    predictor.set_image(coffee)
    own_sam.train()
    own_sam.mask_decoder.eval()
    modes = [module.training for module in own_sam.modules()]
    statistics = {key: value.clone() for key, value in own_sam.state_dict().items()}
    forgetful = SamPredictor(own_sam)
    forgetful.set_image(coffee)
    torch.testing.assert_close(forgetful.features, predictor.features, rtol=0, atol=0)
    prompt = ([[300, 200]], [1])
    for ours, expected in zip(forgetful.predict(*prompt), predictor.predict(*prompt), strict=True):
        np.testing.assert_array_equal(ours, expected)
    assert [module.training for module in own_sam.modules()] == modes
    with pytest.raises(ValueError, match="long side of 224"):
        forgetful.set_torch_image(torch.zeros(1, 3, 8, 8), (8, 8))
    assert [module.training for module in own_sam.modules()] == modes
    for key, value in own_sam.state_dict().items():
        torch.testing.assert_close(value, statistics[key], rtol=0, atol=0)


def test_generator_computes_in_eval_mode_and_takes_pil(own_sam: MobileSam, coffee: Pixels) -> None:
    set_img_size(own_sam, 224)
    options: dict[str, Any] = {
        "points_per_side": 3,
        "pred_iou_thresh": 0.2,
        "stability_score_thresh": 0.3,
        "stability_score_offset": 0.3,
    }
    expected = segment_anything.SamAutomaticMaskGenerator(own_sam, **options).generate(coffee)
    own_sam.train()
    actual = SamAutomaticMaskGenerator(own_sam, **options).generate(Image.fromarray(coffee))
    assert own_sam.training
    assert len(expected) > 0
    assert_same_records(actual, expected)


def test_set_image_batch_gives_a_predictor_an_image(small_sam: MobileSam, coffee: Pixels) -> None:
    predictor, one = SamPredictor(small_sam), SamPredictor(small_sam)
    predictor.set_image(coffee)
    tall = Image.fromarray(coffee).crop((100, 0, 300, 400))
    first, second = one.set_image_batch([coffee, tall])
    assert not one.is_image_set
    assert (first.original_size, second.original_size) == ((400, 600), (400, 200))
    torch.testing.assert_close(first.features, predictor.features)
    one.set_image(tall)
    torch.testing.assert_close(second.features, one.features)
    prompt = ([[100, 150]], [1], [20, 20, 180, 300])
    for batched, single in zip(second.predict(*prompt), one.predict(*prompt), strict=True):
        np.testing.assert_allclose(batched, single, rtol=0, atol=1e-3)
    assert one.set_image_batch([]) == []
    with pytest.raises(TypeError, match="not float32"):
        one.set_image_batch([coffee, coffee.astype(np.float32)])


def test_many_boxes_equal_one_after_another(predictor: SamPredictor) -> None:
    corners = np.random.default_rng(0).uniform(size=(9, 2, 2)) * [600, 400]
    boxes = np.sort(corners, axis=1).reshape(-1, 4)
    transformed = predictor.transform.apply_boxes_torch(torch.from_numpy(boxes), (400, 600))
    masks, scores, logits = predictor.predict_torch(None, None, transformed, None, False)
    assert masks.shape == (9, 1, 400, 600) and masks.dtype == torch.bool
    for index, box in enumerate(boxes):
        mask, score, one = predictor.predict(box=box, multimask_output=False)
        np.testing.assert_allclose(logits[index], one, rtol=0, atol=1e-3)
        np.testing.assert_allclose(scores[index], score, rtol=0, atol=1e-5)
        assert (masks[index].numpy() == mask).mean() > 0.9999
    low_res = predictor.predict_low_res_torch(None, None, transformed, None, False)
    torch.testing.assert_close(low_res, (logits, scores))


def test_coordinates_as_far_as_is_allowed_are_computed_with(predictor: SamPredictor) -> None:
    for prompt in (
        {"point_coords": [[2.0**24, -(2.0**24)]], "point_labels": [1]},
        {"box": [-(2.0**24), -(2.0**24), 2.0**24, 2.0**24]},
        {"mask_input": np.full((256, 256), 1e4)},
    ):
        _, scores, logits = predictor.predict(**prompt)
        assert np.isfinite(scores).all() and np.isfinite(logits).all()


def test_no_prompts_give_no_masks(predictor: SamPredictor) -> None:
    for prompts, count in (
        ({"boxes": torch.zeros(0, 4)}, 3),
        ({"boxes": torch.zeros(0, 4), "multimask_output": False}, 1),
        ({"point_coords": torch.zeros(0, 2, 2), "point_labels": torch.zeros(0, 2)}, 3),
        ({"mask_input": torch.zeros(0, 1, 256, 256)}, 3),
        ({"mask_input": torch.zeros(0, 1, 400, 600, dtype=torch.bool)}, 3),
    ):
        given: dict[str, Any] = {"point_coords": None, "point_labels": None, **prompts}
        masks, scores, logits = predictor.predict_torch(**given)
        assert masks.shape == (0, count, 400, 600) and masks.dtype == torch.bool
        assert scores.shape == (0, count) and logits.shape == (0, count, 256, 256)
        assert predictor.predict_torch(**given, return_logits=True)[0].dtype == torch.float32


CLICK = torch.tensor([[[50.0, 50.0]]])


@pytest.mark.parametrize(
    ("prompts", "error", "message"),
    [
        ((CLICK[0], torch.ones(1, 1)), ValueError, r"point_coords .*\(B, N, 2\), not \(1, 2\)"),
        ((CLICK, torch.ones(1)), ValueError, r"point_labels .*\(1, 1\), not \(1,\)"),
        ((CLICK, torch.ones(1, 2)), ValueError, r"point_labels .*\(1, 1\), not \(1, 2\)"),
        ((CLICK, None), ValueError, "point_coords came without point_labels"),
        ((None, torch.ones(1, 1)), ValueError, "point_labels came without point_coords"),
        ((CLICK, torch.full((1, 1), 7)), ValueError, "object.*background.*not 7"),
        ((CLICK * np.nan, torch.ones(1, 1)), ValueError, "point_coords holds NaN or infinity"),
        ((CLICK * 1e36, torch.ones(1, 1)), ValueError, "point_coords holds 5e.37"),
        ((CLICK, torch.ones(1, 1), torch.zeros(3, 4)), ValueError, "equally many.*boxes': 3"),
        ((None, None, torch.zeros(4)), ValueError, r"boxes .*\(B, 4\), not \(4,\)"),
        ((None, None, np.zeros((1, 4))), TypeError, "boxes must be a torch.Tensor, not ndarray"),
        ((None, None, torch.full((1, 4), torch.inf)), ValueError, "boxes holds NaN or infinity"),
        (
            (None, None, torch.zeros(3, 4), torch.zeros(2, 1, 256, 256)),
            ValueError,
            "one mask per prompt, or one for all: 3 or 1, not 2",
        ),
        ((None, None, None, torch.zeros(1, 256, 256)), ValueError, r"mask_input .*not \(1, 256"),
        ((None, None, None, torch.zeros(1, 1, 9, 9).bool()), ValueError, "mask_input .*not bool"),
        ((None, None, None, torch.full((1, 1, 256, 256), 1e5)), ValueError, "mask_input holds 1"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_refuses_a_prompt_of_tensors_by_name(
    predictor: SamPredictor, prompts: tuple[Any, ...], error: type[Exception], message: str
) -> None:
    for predict in (
        predictor.predict_torch,
        predictor.predict_low_res_torch,
    ):
        with pytest.raises(error, match=message):
            predict(*prompts)


def test_prompts_of_tensors_that_upstream_takes(
    bundled_sam: MobileSam, predictor: SamPredictor
) -> None:
    """Labels of every dtype, boxes as its ``predict`` hands them on, one mask for all, nothing."""
    upstream = segment_anything.SamPredictor(bundled_sam)
    upstream.__dict__.update(predictor.__dict__)
    boxes = torch.tensor([[290.0, 120.0, 850.0, 560.0], [10.0, 10.0, 90.0, 80.0]])
    logits = torch.linspace(-8, 8, 65536).reshape(1, 1, 256, 256)
    each: list[tuple[Any, ...]] = [
        (CLICK, torch.ones(1, 1, dtype=torch.bool)),
        (CLICK, torch.ones(1, 1, dtype=torch.float64)),
        (None, None, boxes[:, None]),
        (None, None, boxes, logits),
        (None, None, None, logits.repeat(2, 1, 1, 1)),
        (None, None),
    ]
    for prompts in each:
        ours, theirs = (one.predict_torch(*prompts) for one in (predictor, upstream))
        for one, other in zip(ours, theirs, strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("image", "size", "error", "message"),
    [
        (torch.zeros(1, 3, 2048, 1024), (2048, 1024), ValueError, "long side of 1024.*2048"),
        (torch.zeros(1, 1, 1024, 1024), (9, 9), ValueError, r"\(1, 3, h, w\), not \(1, 1, "),
        (torch.zeros(2, 3, 683, 1024), (400, 600), ValueError, "set_torch_image_batch"),
        (torch.full((1, 3, 9, 1024), torch.nan), (9, 1024), ValueError, "NaN or infinity"),
        (torch.full((1, 3, 9, 1024), 1e9), (9, 1024), ValueError, "holds 1e.09"),
        (np.zeros((1, 3, 9, 1024)), (9, 1024), TypeError, "torch.Tensor, not ndarray"),
        (torch.zeros(1, 3, 9, 1024), (9,), ValueError, r"original size .* not \(9,\)"),
        (torch.zeros(1, 3, 9, 1024), (0, 1024), ValueError, r"original size .* not \(0, 1024\)"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_refuses_what_is_no_transformed_image(
    predictor: SamPredictor, image: Any, size: Any, error: type[Exception], message: str
) -> None:
    before = predictor.features
    with pytest.raises(error, match=f"transformed_image.*{message}|.*{message}"):
        predictor.set_torch_image(image, size)
    good = torch.zeros(1, 3, 683, 1024)
    with pytest.raises(error, match=r"transformed_images\[1\].*"):
        predictor.set_torch_image_batch([good, image], [(400, 600), size])
    with pytest.raises(ValueError, match="equally many, not 1 and 2"):
        predictor.set_torch_image_batch([good], [(400, 600)] * 2)
    assert predictor.features is before


def test_predictors_of_a_batch_do_not_keep_each_others_embeddings(small_sam: MobileSam) -> None:
    images = [np.zeros((40, 60, 3), np.uint8)] * 3
    for each in SamPredictor(small_sam).set_image_batch(images):
        assert each.features.untyped_storage().nbytes() == 4 * each.features.numel()


@pytest.mark.parametrize(
    "convert",
    [
        lambda mask: mask,
        lambda mask: mask[None],
        lambda mask: mask.astype(np.uint8),
        lambda mask: mask.astype(np.uint8) * 255,
        lambda mask: mask.tolist(),
    ],
    ids=["bool", "(1, H, W)", "0 and 1", "0 and 255", "a list"],
)
def test_a_mask_of_the_images_size_is_a_prompt(predictor: SamPredictor, convert: Any) -> None:
    mask = np.zeros((400, 600), bool)
    mask[80:300, 200:400] = True
    logits = mask_to_logits(mask, (256, 256), (683, 1024))
    prompt: dict[str, Any] = {"point_coords": [[300, 200]], "point_labels": [1]}
    expected = predictor.predict(**prompt, mask_input=logits)
    without = predictor.predict(**prompt)
    assert np.abs(expected[2] - without[2]).max() > 0.1, "the mask says nothing"
    for ours, theirs in zip(
        predictor.predict(**prompt, mask_input=convert(mask)), expected, strict=True
    ):
        np.testing.assert_array_equal(ours, theirs)


def test_masks_of_the_images_size_are_prompts_of_tensors(predictor: SamPredictor) -> None:
    masks = torch.zeros(2, 1, 400, 600, dtype=torch.bool)
    masks[0, 0, 80:300, 200:400] = True
    masks[1, 0, :50] = True
    logits = [mask_to_logits(each[0].numpy(), (256, 256), (683, 1024)) for each in masks]
    expected = predictor.predict_torch(
        None, None, None, torch.from_numpy(np.stack(logits)[:, None])
    )
    for given in (masks, masks.to(torch.uint8) * 255):
        for ours, theirs in zip(
            predictor.predict_torch(None, None, None, given), expected, strict=True
        ):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


def test_a_mask_alone_comes_back_from_a_model_that_learned_from_masks(small_sam: MobileSam) -> None:
    """Its own masks, by a model trained on prompts of low-res logits, as SAM's are."""
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    sam = copy.deepcopy(small_sam)
    set_img_size(sam, 128)
    predictor = SamPredictor(sam)
    predictor.set_image(rng.integers(0, 256, (96, 128, 3), dtype=np.uint8))

    def draw_logits() -> NDArray[np.float32]:
        """Of an ellipse: they grow with the distance from its outline."""
        center, axes = rng.integers((8, 6), (24, 18)), rng.integers(8, 20, 2)
        mask = cv2.ellipse(
            np.zeros((32, 32), np.uint8),
            (center.tolist(), axes.tolist(), int(rng.integers(180))),
            1,
            cv2.FILLED,
        )
        inside, outside = (cv2.distanceTransform(each, cv2.DIST_L2, 3) for each in (mask, 1 - mask))
        return np.clip((inside - outside) * rng.uniform(1, 4), -20, 12)

    encoder, decoder = sam.prompt_encoder, sam.mask_decoder.train()
    optimizer = torch.optim.AdamW([*encoder.parameters(), *decoder.parameters()], 1e-3)
    for _ in range(80):
        logits = torch.from_numpy(np.stack([draw_logits()[None] for _ in range(8)]))
        sparse, dense = encoder(None, None, logits)
        found, _ = decoder(predictor.features, encoder.get_dense_pe(), sparse, dense, False)
        loss = binary_cross_entropy_with_logits(found, (logits > 0).float())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    ious = []
    for _ in range(10):
        own = predictor.predict(mask_input=draw_logits(), multimask_output=False)[0][0]
        again = predictor.predict(mask_input=own, multimask_output=False)[0][0]
        ious.append((own & again).sum() / (own | again).sum())
    assert min(ious) >= 0.9
