"""The faster mask decoder against upstream's, which defines what is right."""

from __future__ import annotations

import copy
import functools
import io
import pickle
import shutil
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import segment_anything.modeling as upstream
import torch
from safetensors.torch import load_file
from segment_anything import SamAutomaticMaskGenerator, SamPredictor
from segment_anything.modeling.common import LayerNorm2d
from torch import Tensor, nn
from torch.nn import functional as F

from mobile_sam_plugin.checkpoint import BUNDLED_FILE
from mobile_sam_plugin.model import mask_decoder
from mobile_sam_plugin.model.mask_decoder import MaskDecoder, use_fast_decoder
from mobile_sam_plugin.model.upstream import fingerprint

CHANNELS, SIZE = 256, 12  # An embedding smaller than SAM's keeps the tests quick.

Inputs = tuple[Tensor, ...]


def build_decoder(kind: type[upstream.MaskDecoder], channels: int = CHANNELS) -> Any:
    transformer = upstream.TwoWayTransformer(
        depth=2, embedding_dim=channels, mlp_dim=8 * channels, num_heads=8
    )
    return kind(transformer_dim=channels, transformer=transformer).eval()


def build_prompt_encoder(size: tuple[int, int], channels: int = CHANNELS) -> Any:
    return upstream.PromptEncoder(
        embed_dim=channels,
        image_embedding_size=size,
        input_image_size=(16 * size[0], 16 * size[1]),
        mask_in_chans=16,
    ).eval()


def trained_state(prefix: str) -> dict[str, Tensor]:
    tensors = load_file(BUNDLED_FILE)
    return {k.removeprefix(prefix): v.float() for k, v in tensors.items() if k.startswith(prefix)}


class Case:
    """Both decoders on the same weights, and a maker of their inputs."""

    def __init__(self, trained: bool, size: tuple[int, int] = (SIZE, SIZE)) -> None:
        torch.manual_seed(0)
        self.size = size
        self.theirs = build_decoder(upstream.MaskDecoder)
        self.prompt_encoder = build_prompt_encoder(size)
        if trained:
            self.theirs.load_state_dict(trained_state("mask_decoder."))
            self.prompt_encoder.load_state_dict(trained_state("prompt_encoder."))
        self.ours = build_decoder(MaskDecoder)
        self.ours.load_state_dict(self.theirs.state_dict())

    def embedding(self, seed: int = 0) -> Tensor:
        """A smooth random embedding, normalised over channels as the encoder's neck does."""
        noise = torch.randn(1, CHANNELS, 6, 6, generator=torch.Generator().manual_seed(seed))
        smooth = F.interpolate(noise, size=self.size, mode="bicubic")
        return LayerNorm2d(CHANNELS)(smooth).detach() * 0.3

    @torch.no_grad()
    def inputs(
        self,
        prompts: int = 1,
        points: int = 1,
        boxes: bool = False,
        masks: bool = False,
        seed: int = 0,
    ) -> Inputs:
        generator = torch.Generator().manual_seed(seed)
        extent = torch.tensor([16.0 * self.size[1], 16.0 * self.size[0]])
        coordinates = torch.rand(prompts, points, 2, generator=generator) * extent
        corners = torch.rand(prompts, 2, 2, generator=generator).sort(dim=1).values * extent
        low_res_size = 4 * self.size[0], 4 * self.size[1]
        mask_inputs = torch.randn(prompts, 1, *low_res_size, generator=generator)
        sparse, dense = self.prompt_encoder(
            points=(coordinates, torch.ones(prompts, points)) if points else None,
            boxes=corners.flatten(1) if boxes else None,
            masks=mask_inputs if masks else None,
        )
        return self.embedding(seed), self.prompt_encoder.get_dense_pe(), sparse, dense

    @torch.no_grad()
    def check(self, inputs: Inputs, multimask_output: bool = True) -> None:
        actual = self.ours(*inputs, multimask_output)
        expected = self.theirs(*inputs, multimask_output)
        for ours, theirs in zip(actual, expected, strict=True):
            assert ours.shape == theirs.shape and ours.dtype == theirs.dtype
            torch.testing.assert_close(ours, theirs, atol=1e-3, rtol=0)


@pytest.fixture(params=[False, True], ids=["default", "trained"])
def case(request: pytest.FixtureRequest) -> Case:
    return Case(request.param)


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seven prompts a chunk, so that a few prompts make several."""
    prompt_bytes = SIZE * SIZE * CHANNELS * 4
    monkeypatch.setattr(mask_decoder, "_CPU_CHUNK_BYTES", 7 * prompt_bytes)


@pytest.fixture
def default() -> Case:
    return Case(trained=False)


@pytest.fixture
def shortcuts(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """What the decoder answered, each time that it asked itself whether the shortcuts hold."""
    answers: list[bool] = []
    applies = MaskDecoder._applies

    def recorded(self: MaskDecoder, *inputs: Tensor) -> bool:
        answers.append(applies(self, *inputs))
        return answers[-1]

    monkeypatch.setattr(MaskDecoder, "_applies", recorded)
    return answers


@pytest.mark.parametrize("multimask_output", [True, False])
@pytest.mark.parametrize(
    "prompts",
    [
        dict(points=1),
        dict(points=12),
        dict(points=0, boxes=True),
        dict(points=3, boxes=True),
        dict(points=0),
        dict(prompts=2, points=1),
        dict(prompts=17, points=1),
        dict(prompts=5, points=0, boxes=True),
    ],
    ids=str,
)
def test_equals_upstream(
    case: Case, prompts: dict[str, Any], multimask_output: bool, shortcuts: list[bool]
) -> None:
    case.check(case.inputs(**prompts), multimask_output)
    assert shortcuts == [True]


def test_equals_upstream_at_the_real_size(shortcuts: list[bool]) -> None:
    case = Case(trained=True, size=(64, 64))
    case.check(case.inputs(prompts=5))
    assert shortcuts == [True]


def test_equals_upstream_on_an_oblong_embedding(shortcuts: list[bool]) -> None:
    case = Case(trained=False, size=(6, 10))
    case.check(case.inputs(prompts=3))
    assert shortcuts == [True]


def test_predict_masks_returns_every_mask(case: Case) -> None:
    inputs = case.inputs(prompts=3)
    with torch.no_grad():
        actual, expected = case.ours.predict_masks(*inputs), case.theirs.predict_masks(*inputs)
    assert actual[0].shape[1] == 4
    torch.testing.assert_close(actual, expected, atol=1e-3, rtol=0)


@pytest.mark.parametrize(
    "kind",
    [dict(), dict(masks=True), dict(points=100)],
    ids=["image shared", "mask prompts", "upstream"],
)
@pytest.mark.parametrize("multimask_output", [True, False])
@pytest.mark.parametrize("share", [0.0, 0.2, 0.6, 1.0])
@torch.no_grad()
def test_masks_above_a_threshold(
    case: Case, share: float, multimask_output: bool, kind: dict[str, Any]
) -> None:
    inputs = case.inputs(prompts=17, **kind)
    logits, iou = case.theirs(*inputs, multimask_output)
    ordered = iou.flatten().sort().values
    # Between two predictions, so that rounding cannot move one across.
    cut = int((1 - share) * (len(ordered) - 1))
    threshold = float(ordered[cut : cut + 2].mean()) + (1.0 if share == 0.0 else 0.0)
    ours = case.ours.predict_masks_above(*inputs, threshold, multimask_output)
    chunks = list(ours)
    kept = (iou > threshold if threshold > 0 else torch.ones_like(iou, dtype=torch.bool)).nonzero()
    if share == 0.0:
        assert chunks == []
        return
    prompts, predictions, masks_above = (torch.cat(parts) for parts in zip(*chunks, strict=True))
    assert prompts.dtype == torch.int64
    torch.testing.assert_close(prompts, kept[:, 0])
    torch.testing.assert_close(predictions, iou[kept[:, 0], kept[:, 1]], atol=1e-4, rtol=0)
    torch.testing.assert_close(masks_above, logits[kept[:, 0], kept[:, 1]], atol=1e-3, rtol=0)


@torch.no_grad()
def test_a_threshold_of_zero_keeps_all_masks(default: Case) -> None:
    default.ours.iou_prediction_head.layers[-1].bias.fill_(-5.0)
    chunks = default.ours.predict_masks_above(*default.inputs(prompts=7), 0.0)
    assert sum(len(prompts) for prompts, _, _ in chunks) == 21


@torch.no_grad()
def test_masks_above_belong_to_the_caller_and_leave_autocast_alone(default: Case) -> None:
    inputs = default.inputs(prompts=17)
    chunks = []
    for chunk in default.ours.predict_masks_above(*inputs, 0.0):
        assert not torch.is_autocast_enabled("cpu")
        chunks.append((chunk, copy.deepcopy(chunk)))
    assert len(chunks) > 1
    for chunk, at_once in chunks:
        torch.testing.assert_close(chunk, at_once, atol=0, rtol=0)


@torch.no_grad()
def test_a_second_call_shares_the_work_of_the_first(case: Case) -> None:
    inputs = case.inputs()
    first = case.ours(*inputs, True)
    kept = case.ours._kept_images
    assert len(kept) == 1
    # As SamPredictor does: a positional encoding and a dense embedding made anew.
    _, image_pe, sparse, dense = case.inputs()
    second = case.ours(inputs[0], image_pe, sparse, dense, True)
    assert case.ours._kept_images is kept
    torch.testing.assert_close(second, first, atol=0, rtol=0)


def change_embedding(case: Case, inputs: Inputs) -> None:
    inputs[0].mul_(1.5)


def change_embedding_data(case: Case, inputs: Inputs) -> None:
    inputs[0].data.mul_(1.5)


def change_embedding_through_numpy(case: Case, inputs: Inputs) -> None:
    inputs[0].numpy()[:] *= 1.5


def change_positions(case: Case, inputs: Inputs) -> None:
    inputs[1].mul_(0.5)


def change_dense_embedding(case: Case, inputs: Inputs) -> None:
    inputs[3][:, :, :1, :1].mul_(3.0)


def step_optimizer(case: Case, inputs: Inputs) -> None:
    for decoder in (case.ours, case.theirs):
        for parameter in decoder.parameters():
            parameter.grad = torch.ones_like(parameter)
        torch.optim.SGD(decoder.parameters(), lr=0.01).step()


def load_state(case: Case, inputs: Inputs) -> None:
    torch.manual_seed(1)
    other = build_decoder(upstream.MaskDecoder).state_dict()
    case.ours.load_state_dict(other)
    case.theirs.load_state_dict(other)


def assign_data(case: Case, inputs: Inputs) -> None:
    for decoder in (case.ours, case.theirs):
        for layer in decoder.transformer.layers:
            for attention in (layer.cross_attn_token_to_image, layer.cross_attn_image_to_token):
                for parameter in attention.parameters():
                    parameter.data = parameter.data * 1.1


def write_data(case: Case, inputs: Inputs) -> None:
    for decoder in (case.ours, case.theirs):
        for parameter in decoder.transformer.parameters():
            parameter.data.mul_(1.1)


def replace_parameter(case: Case, inputs: Inputs) -> None:
    for decoder in (case.ours, case.theirs):
        projection = decoder.transformer.layers[0].cross_attn_token_to_image.v_proj
        projection.weight = nn.Parameter(projection.weight.detach() * 2)


@pytest.mark.parametrize(
    "change",
    [
        change_embedding,
        change_embedding_data,
        change_embedding_through_numpy,
        change_positions,
        change_dense_embedding,
        step_optimizer,
        load_state,
        assign_data,
        write_data,
        replace_parameter,
    ],
)
def test_kept_work_is_never_stale(
    default: Case, change: Callable[[Case, Inputs], None], shortcuts: list[bool]
) -> None:
    inputs = default.inputs()
    with torch.no_grad():
        before, _ = default.ours(*inputs, True)
        change(default, inputs)
        after, _ = default.ours(*inputs, True)
    assert not torch.allclose(before, after, atol=1e-5)
    default.check(inputs)
    assert shortcuts == [True] * 3


def test_another_embedding_at_the_same_address(default: Case) -> None:
    image_embedding, *prompts = default.inputs()
    memory = torch.empty_like(image_embedding)
    for seed in range(3):
        default.check((memory.copy_(default.embedding(seed)).view(memory.shape), *prompts))


def test_two_images_in_turn(default: Case) -> None:
    first, second = default.inputs(seed=1), default.inputs(seed=2)
    default.check(first)
    default.check(second)
    kept = set(map(id, default.ours._kept_images))
    default.check(first)
    default.check(second)
    assert set(map(id, default.ours._kept_images)) == kept


def test_inference_mode_and_back(default: Case) -> None:
    inputs = default.inputs(prompts=3)
    with torch.inference_mode():
        default.check(default.inputs(prompts=3))
    default.check(inputs)


def test_half_after_float(default: Case, shortcuts: list[bool]) -> None:
    inputs = default.inputs(prompts=2)
    default.check(inputs)
    with torch.no_grad():
        expected, expected_iou = default.theirs(*inputs, True)
        default.ours.bfloat16()
        *others, dense = inputs
        # As PromptEncoder makes it: a cast would write the expanded vector out.
        dense = dense[:1, :, :1, :1].bfloat16().expand_as(dense)
        logits, iou = default.ours(*(tensor.bfloat16() for tensor in others), dense, True)
    assert logits.dtype == iou.dtype == torch.bfloat16
    torch.testing.assert_close(logits.float(), expected, atol=0.05, rtol=0.05)
    torch.testing.assert_close(iou.float(), expected_iou, atol=0.05, rtol=0.05)
    assert shortcuts == [True, True]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.no_grad()
def test_autocast(case: Case, dtype: torch.dtype, shortcuts: list[bool]) -> None:
    inputs = case.inputs(prompts=3)
    exact, _ = case.theirs(*inputs, True)
    case.ours(*inputs, True)
    with torch.autocast("cpu", dtype):
        logits, iou = case.ours(*inputs, True)
        expected, expected_iou = case.theirs(*inputs, True)
    assert logits.dtype == expected.dtype and iou.dtype == expected_iou.dtype
    assert logits.isfinite().all()
    # No further from exact than upstream is under autocast, but for luck.
    error, upstream_error = ((x - exact).square().mean() for x in (logits.float(), expected))
    assert error <= 2 * upstream_error + 1e-6
    torch.testing.assert_close(iou.float(), expected_iou.float(), atol=0.05, rtol=0)
    assert shortcuts == [True, True]
    case.check(inputs)


@pytest.mark.parametrize("hooked", [False, True], ids=["plain", "hooked"])
@pytest.mark.parametrize("masks", [False, True], ids=["points", "masks"])
def test_gradients_are_upstreams(
    default: Case,
    masks: bool,
    hooked: bool,
    shortcuts: list[bool],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    runs: list[nn.Module] = []
    theirs = upstream.MaskDecoder.predict_masks

    def counted(decoder: nn.Module, *inputs: Tensor, **named: Tensor) -> tuple[Tensor, Tensor]:
        runs.append(decoder)
        result: tuple[Tensor, Tensor] = theirs(decoder, *inputs, **named)
        return result

    monkeypatch.setattr(upstream.MaskDecoder, "predict_masks", counted)
    if hooked:  # which a part that is not called would never run
        values = default.ours.transformer.layers[0].cross_attn_token_to_image.v_proj
        values.register_full_backward_hook(lambda *_: None)
    results = []
    for decoder in (default.ours.double().train(), default.theirs.double().train()):
        inputs = [tensor.double() for tensor in default.inputs(prompts=2, masks=masks)]
        for tensor in inputs:
            tensor.requires_grad_()
        logits, iou = decoder(*inputs, True)
        (logits.square().mean() + iou.sum()).backward()
        gradients = [tensor.grad for tensor in (*inputs, *decoder.parameters())]
        results.append([logits, iou, *gradients])
    for ours, expected in zip(*results, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-6, atol=1e-9)
    assert runs == ([default.ours] if hooked else []) + [default.theirs]
    assert not any(shortcuts)


def test_a_frozen_decoder_needs_no_grad_mode_off(default: Case, shortcuts: list[bool]) -> None:
    default.ours.requires_grad_(False)
    inputs = (tensor.detach() for tensor in default.inputs())
    logits, _ = default.ours(*inputs, True)
    assert shortcuts == [True] and not logits.requires_grad


@pytest.mark.parametrize("multimask_output", [True, False])
@pytest.mark.parametrize(
    "prompts",
    [dict(), dict(points=3, boxes=True), dict(points=0), dict(prompts=3), dict(prompts=17)],
    ids=str,
)
def test_mask_prompts(
    case: Case, prompts: dict[str, Any], multimask_output: bool, shortcuts: list[bool]
) -> None:
    clicked = case.inputs()
    case.check(clicked)
    kept = case.ours._kept_images
    case.check(case.inputs(masks=True, **prompts), multimask_output)
    assert case.ours._kept_images is kept
    case.check(clicked)
    assert shortcuts == [True] * 3


def test_a_mask_prompt_for_all_prompts(case: Case, shortcuts: list[bool]) -> None:
    *others, _ = case.inputs(prompts=9)
    *_, dense = case.inputs(masks=True)
    case.check((*others, dense))
    assert shortcuts == [True]


@torch.no_grad()
def test_mask_prompts_in_half_precision(default: Case, shortcuts: list[bool]) -> None:
    inputs = default.inputs(prompts=3, masks=True)
    expected, expected_iou = default.theirs(*inputs, True)
    default.ours.bfloat16()
    logits, iou = default.ours(*(tensor.bfloat16() for tensor in inputs), True)
    assert logits.dtype == iou.dtype == torch.bfloat16
    torch.testing.assert_close(logits.float(), expected, atol=0.05, rtol=0.05)
    torch.testing.assert_close(iou.float(), expected_iou, atol=0.05, rtol=0.05)
    assert shortcuts == [True]


def test_very_many_points(default: Case, shortcuts: list[bool]) -> None:
    default.check(default.inputs(points=100))
    assert not any(shortcuts)


@torch.no_grad()
def test_no_prompts_fail_as_upstream_does(default: Case) -> None:
    inputs = default.inputs(prompts=0)
    for decoder in (default.ours, default.theirs):
        with pytest.raises(RuntimeError, match="0 elements"):
            decoder(*inputs, True)


def test_several_images(default: Case, shortcuts: list[bool]) -> None:
    image_embedding, *others = default.inputs()
    default.check((torch.cat([image_embedding, default.embedding(1)]), *others))
    assert not any(shortcuts)


def test_hooks_on_inner_modules_are_called(default: Case, shortcuts: list[bool]) -> None:
    calls = []
    attention = default.ours.transformer.final_attn_token_to_image
    attention.k_proj.register_forward_hook(lambda *_: calls.append(1))
    default.check(default.inputs())
    assert calls and not any(shortcuts)


def test_replaced_modules_are_called(default: Case, shortcuts: list[bool]) -> None:
    class Adapted(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    for decoder in (default.ours, default.theirs):
        attention = decoder.transformer.layers[1].cross_attn_image_to_token
        adapted = Adapted(CHANNELS, CHANNELS // 2)
        adapted.load_state_dict(attention.v_proj.state_dict())
        attention.v_proj = adapted
    default.check(default.inputs())
    assert not any(shortcuts)


def replicate(network: nn.Module) -> Any:
    """As ``nn.DataParallel``: copies whose weights are plain attributes, not parameters."""
    modules = list(network.modules())
    replicas = {module: module._replicate_for_data_parallel() for module in modules}
    for module, replica in replicas.items():
        for name, child in module._modules.items():
            if child is not None:
                setattr(replica, name, replicas[child])
        for name, parameter in module._parameters.items():
            setattr(replica, name, None if parameter is None else parameter * 1)
    return replicas[network]


def test_replicas_of_data_parallel_have_gradients(default: Case) -> None:
    logits, _ = replicate(default.ours)(*default.inputs(), True)
    logits.mean().backward()
    assert default.ours.mask_tokens.weight.grad.abs().sum() > 0


def test_methods_of_a_subclass_are_called(default: Case, shortcuts: list[bool]) -> None:
    class Doubled(MaskDecoder):
        def predict_masks(self, *inputs: Tensor) -> tuple[Tensor, Tensor]:
            logits, iou_predictions = super().predict_masks(*inputs)
            return 2 * logits, iou_predictions

    inputs = default.inputs()
    with torch.no_grad():
        expected, _ = default.theirs(*inputs, True)
        default.ours.__class__ = Doubled
        logits, _ = default.ours(*inputs, True)
    torch.testing.assert_close(logits, 2 * expected, atol=1e-3, rtol=0)
    assert shortcuts == [True, True]


@torch.no_grad()
def test_shapes_alone_on_the_device_meta(default: Case) -> None:
    inputs = tuple(tensor.to("meta") for tensor in default.inputs(prompts=2))
    logits, iou_predictions = default.ours.to("meta")(*inputs, True)
    assert logits.shape == (2, 3, 4 * SIZE, 4 * SIZE) and iou_predictions.shape == (2, 3)


def test_threads_share_a_decoder(default: Case) -> None:
    cases = [default.inputs(prompts=2, seed=seed) for seed in range(4)]
    with torch.no_grad():
        expected = [default.theirs(*inputs, True)[0] for inputs in cases]
    worst = [0.0] * len(cases)

    def click(index: int) -> None:
        with torch.no_grad():
            for _ in range(5):
                logits, _ = default.ours(*cases[index], True)
                worst[index] = max(worst[index], float((logits - expected[index]).abs().max()))

    threads = [threading.Thread(target=click, args=(index,)) for index in range(len(cases))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert max(worst) < 1e-3


@pytest.fixture
def three_threads() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("autocast", [False, True], ids=["plain", "autocast"])
@pytest.mark.parametrize("masks", [False, True], ids=["shared", "masks"])
def test_prompts_in_threads_of_their_own(
    default: Case, three_threads: None, mode: Any, autocast: bool, masks: bool
) -> None:
    inputs = default.inputs(prompts=17, masks=masks)
    with mode(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        in_threads = default.ours(*inputs, True)
        found = default.ours.predict_masks_above(*inputs, 0.0)
        above = [torch.cat(part) for part in zip(*found, strict=True)]
        torch.set_num_threads(1)
        alone = default.ours(*inputs, True)
    torch.testing.assert_close(in_threads, alone, atol=1e-5, rtol=0)
    torch.testing.assert_close(above[2], alone[0].flatten(0, 1), atol=1e-5, rtol=0)
    assert above[0].tolist() == torch.arange(17).repeat_interleave(3).tolist()


@torch.no_grad()
def test_threads_leave_nothing_behind(
    default: Case, three_threads: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    running = threading.active_count()
    found = default.ours.predict_masks_above(*default.inputs(prompts=17), 0.0)
    next(found)
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(torch.get_num_threads).result() == 3  # not that of the decoder's threads
    found.close()
    assert threading.active_count() == running
    monkeypatch.setattr(mask_decoder, "transform_", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        default.ours(*default.inputs(prompts=17), True)
    assert threading.active_count() == running


@torch.no_grad()
def test_copies_and_files_hold_only_the_parameters(default: Case) -> None:
    inputs = default.inputs()
    expected = default.ours(*inputs, True)
    assert default.ours.state_dict().keys() == default.theirs.state_dict().keys()
    copies = [copy.deepcopy(default.ours), pickle.loads(pickle.dumps(default.ours))]
    buffer = io.BytesIO()
    torch.save(default.ours, buffer)
    parameters = sum(p.nbytes for p in default.ours.parameters())
    assert len(buffer.getvalue()) < 1.1 * parameters
    for copied in copies:
        assert copied._kept_images == () and copied._kept_positions is None
        torch.testing.assert_close(copied(*inputs, True), expected, atol=0, rtol=0)


@torch.no_grad()
def test_trace_is_upstreams(default: Case, shortcuts: list[bool]) -> None:
    inputs = default.inputs(prompts=2)

    class Multimask(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.decoder = default.ours

        def forward(self, *inputs: Tensor) -> tuple[Tensor, Tensor]:
            return self.decoder(*inputs, True)

    traced = torch.jit.trace(Multimask(), inputs)
    # The last call is a plain one, with which torch compares what it traced.
    assert not any(shortcuts[:-1]) and shortcuts[-1]
    other = default.inputs(prompts=2, seed=1)
    torch.testing.assert_close(traced(*other), default.theirs(*other, True), atol=1e-4, rtol=0)


@torch.no_grad()
def test_compiles(default: Case) -> None:
    inputs = default.inputs(prompts=2)
    compiled = torch.compile(default.ours, backend="eager", fullgraph=True)
    expected = default.theirs(*inputs, True)
    torch.testing.assert_close(compiled(*inputs, True), expected, atol=1e-4, rtol=0)
    assert default.ours._kept_images == ()


def small_sam() -> upstream.Sam:
    torch.manual_seed(0)
    channels, grid = 64, 8
    sam = upstream.Sam(
        image_encoder=upstream.ImageEncoderViT(
            img_size=16 * grid, embed_dim=32, depth=1, num_heads=2, out_chans=channels
        ),
        prompt_encoder=build_prompt_encoder((grid, grid), channels),
        mask_decoder=build_decoder(upstream.MaskDecoder, channels),
    )
    return sam.eval()


def test_upstreams_predictor_drives_it(shortcuts: list[bool]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (96, 128, 3), dtype=np.uint8)
    answers = []
    for sam in (small_sam(), use_fast_decoder(small_sam())):
        predictor = SamPredictor(sam)
        predictor.set_image(pixels)
        first = predictor.predict(np.array([[60, 40]]), np.array([1]), return_logits=True)
        second = predictor.predict(
            np.array([[60, 40], [20, 30]]),
            np.array([1, 0]),
            box=np.array([10, 10, 90, 70]),
            mask_input=first[2][:1],
            multimask_output=False,
            return_logits=True,
        )
        answers.append((*first, *second))
    for theirs, ours in zip(*answers, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-4)
    assert shortcuts == [True, True]


def test_upstreams_generator_drives_it(shortcuts: list[bool]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (96, 128, 3), dtype=np.uint8)
    answers = []
    for sam in (small_sam(), use_fast_decoder(small_sam())):
        generator = SamAutomaticMaskGenerator(
            sam, points_per_side=4, pred_iou_thresh=-1.0, stability_score_thresh=0.0
        )
        answers.append(generator.generate(pixels))
    theirs, ours = answers
    assert len(ours) == len(theirs) > 0 and all(shortcuts)
    for one, other in zip(theirs, ours, strict=True):
        assert one["bbox"] == other["bbox"]
        assert (one["segmentation"] != other["segmentation"]).mean() < 1e-3


def test_use_fast_decoder_shares_parameters_and_keeps_training_and_hooks() -> None:
    sam = small_sam().train()
    decoder = sam.mask_decoder
    calls = []
    decoder.register_forward_hook(lambda *_: calls.append(1))
    assert use_fast_decoder(sam) is sam and type(sam.mask_decoder) is MaskDecoder
    assert sam.mask_decoder.training
    pairs = zip(sam.mask_decoder.parameters(), decoder.parameters(), strict=True)
    assert all(ours is theirs for ours, theirs in pairs)
    fast = sam.mask_decoder
    assert use_fast_decoder(sam).mask_decoder is fast
    sparse, dense = sam.prompt_encoder(None, None, None)
    fast(torch.zeros(1, 64, 8, 8), sam.prompt_encoder.get_dense_pe(), sparse, dense, True)
    assert calls == [1]


def test_sharing_leaves_the_decoder_untouched() -> None:
    decoder = build_decoder(upstream.MaskDecoder)
    attributes = set(vars(decoder))
    shared = MaskDecoder.sharing(decoder)
    shared.extra = nn.Linear(1, 1)
    shared.train()
    assert type(decoder) is upstream.MaskDecoder and not decoder.training
    assert set(vars(decoder)) == attributes and "extra" not in decoder._modules
    assert shared.transformer is decoder.transformer


def test_use_fast_decoder_refuses_other_decoders() -> None:
    class MaskDecoderHQ(upstream.MaskDecoder):
        def forward(self, *inputs: Tensor, hq_token_only: bool) -> Any:
            raise NotImplementedError

    sam = small_sam()
    sam.mask_decoder = build_decoder(MaskDecoderHQ, 64)
    with pytest.raises(TypeError, match="MaskDecoderHQ"):
        use_fast_decoder(sam)


def adapt(folder: Path, package: str) -> Any:
    """A project's copy of segment_anything's modeling, with an adapter behind each block's MLP."""
    copied = folder / package
    shutil.copytree(Path(upstream.__file__).parent, copied)
    file = copied / "transformer.py"
    code = file.read_text()
    changes = [
        ("queries = queries + mlp_out", "queries = queries + mlp_out + self.adapter(queries)"),
        (
            "self.skip_first_layer_pe = skip_first_layer_pe",
            "self.skip_first_layer_pe = skip_first_layer_pe\n"
            "        self.adapter = nn.Linear(embedding_dim, embedding_dim)",
        ),
    ]
    for plain, adapted in changes:
        assert code.count(plain) == 1
        code = code.replace(plain, adapted)
    file.write_text(code)
    return import_module(package)


def test_adaptations_under_upstreams_names_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    adapted = adapt(tmp_path, "adapted_modeling")
    sam = small_sam()
    sam.mask_decoder.transformer = adapted.TwoWayTransformer(2, 64, 8, 512).eval()
    for decoder in (sam.mask_decoder, copy_of_class(adapted.MaskDecoder, sam.mask_decoder)):
        sam.mask_decoder = decoder
        with pytest.raises(
            TypeError, match="its adapted_modeling.transformer.TwoWayAttentionBlock"
        ):
            use_fast_decoder(sam)
        assert MaskDecoder.standing_in(decoder) is None


def copy_of_class(kind: type[nn.Module], module: nn.Module) -> nn.Module:
    twin = copy.deepcopy(module)
    twin.__class__ = kind
    return twin


def test_adapters_put_in_later_are_run(
    default: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shortcuts: list[bool]
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    adapted = adapt(tmp_path, "adapted_later")
    transformer = adapted.TwoWayTransformer(2, CHANNELS, 8, 64).eval()
    default.ours.transformer = default.theirs.transformer = transformer
    default.check(default.inputs())
    assert not any(shortcuts)


def test_decoders_that_may_stand_in() -> None:
    decoder = build_decoder(upstream.MaskDecoder)
    ours = MaskDecoder.sharing(decoder)
    assert MaskDecoder.standing_in(ours) is ours
    shared = MaskDecoder.standing_in(decoder)
    assert shared is not None and shared.transformer is decoder.transformer
    for each in (decoder, ours):
        handle = each.register_forward_hook(lambda *_: None)
        assert MaskDecoder.standing_in(each) is None
        handle.remove()
        each.__dict__["forward"] = functools.partial(each.forward)
        assert MaskDecoder.standing_in(each) is None
        del each.__dict__["forward"]
        assert MaskDecoder.standing_in(each) is not None
    compiled: Any = torch.compile(decoder, backend="eager")
    assert MaskDecoder.standing_in(compiled) is None


def test_code_is_compared_and_not_its_layout() -> None:
    def add(a: int, b: int) -> int:
        """Adds."""
        return a + b  # as it should

    class Copied:
        def add(a, b):  # type: ignore
            return (a + b)  # fmt: skip

    class Other:
        @staticmethod
        def add(a: int, b: int) -> int:
            return a - b

    assert fingerprint(add) == fingerprint(Copied.add) != ""
    assert fingerprint(Other.add) not in ("", fingerprint(add))
    namespace: dict[str, Any] = {}
    exec("def add(a, b):\n    return a + b", namespace)
    assert fingerprint(namespace["add"]) == "", "code without its source"
    wrapped = functools.wraps(add)(Other.add)
    assert fingerprint(wrapped) == fingerprint(Other.add), "looked through functools.wraps"
