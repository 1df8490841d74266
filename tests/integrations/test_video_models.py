"""Objects followed by video models of transformers."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from numpy.typing import NDArray

from mobile_sam_plugin import MobileSam
from mobile_sam_plugin.integrations.propagators import (
    TransformersPropagator,
)
from mobile_sam_plugin.integrations.track_anything import (
    TrackAnything,
)

from .clips import SIZE, ids_of, make_frames

Pixels = NDArray[np.uint8]
Mask = NDArray[np.bool_]


@pytest.mark.parametrize("kind", ["Sam2", "EdgeTam"])
def test_video_models_see_what_they_see_elsewhere(video_models: dict[str, Path], kind: str) -> None:
    """The logits are those of the model by itself, which drops nothing of its memory."""
    frames, reds, greens = make_frames(10)
    propagator = TransformersPropagator(video_models[kind])
    propagator.set_masks(frames[0], {2: reds[0], 7: greens[0]})

    model = transformers.AutoModel.from_pretrained(video_models[kind]).eval()
    processor = transformers.AutoProcessor.from_pretrained(video_models[kind])
    session = processor.init_video_session()
    inputs = [processor(images=frame, return_tensors="pt").pixel_values[0] for frame in frames]
    processor.add_inputs_to_inference_session(session, 0, [2, 7], input_masks=[reds[0], greens[0]])
    model(session, frame_idx=0, frame=inputs[0])
    for index in range(1, 10):
        output = model(session, frame=inputs[index])
        expected = processor.post_process_masks([output.pred_masks], [SIZE], binarize=False)[0]
        found = propagator.propagate(frames[index])
        assert [*found] == [2, 7]
        for logits, each in zip(found.values(), expected, strict=True):
            assert logits.shape == SIZE and logits.dtype == np.float32
            np.testing.assert_allclose(logits, each[0].numpy(), atol=1e-6)
    kept = [len(outputs["non_cond_frame_outputs"]) for outputs in
            propagator._session.output_dict_per_obj.values()]  # fmt: skip
    assert max(kept) < 9 and len(propagator._session.processed_frames) == 1


@pytest.mark.parametrize("kind", ["Sam2", "EdgeTam"])
def test_video_models_take_new_objects_and_corrections(
    small_sam: MobileSam, video_models: dict[str, Path], kind: str
) -> None:
    frames, reds, greens = make_frames(6)
    propagator = TransformersPropagator(video_models[kind])
    tracker = TrackAnything(small_sam, propagator)
    for _ in range(2):  # a second video begins from nothing
        tracker.start(frames[0])
        tracker.add_object(mask=reds[0])
        tracker.track(frames[1])
        assert tracker.add_object(mask=greens[1]) == 2
        tracker.track(frames[2])
        tracker.correct(1, mask=reds[2])
        tracker.correct(2, mask=greens[2])
        outputs = propagator._session.output_dict_per_obj
        # Not among the tracked frames, which are forgotten. In frame 1 the first object is told of
        # too if the second took pixels of it, which depends on what the untrained model sees.
        first, second = (set(each["cond_frame_outputs"]) for each in outputs.values())
        assert first | {1} == {0, 1, 2} and first >= {0, 2} and second == {1, 2}
        assert all(2 not in each["non_cond_frame_outputs"] for each in outputs.values())
        for frame in frames[3:]:
            tracked = tracker.track(frame)
            assert sorted([*ids_of(tracked), *tracked.lost]) == [1, 2]
    assert not any(propagator._session.mask_inputs_per_obj.values())


@pytest.mark.parametrize("kind", ["Sam2", "EdgeTam"])
def test_a_new_object_leaves_others_as_they_are(video_models: dict[str, Path], kind: str) -> None:
    frames, reds, greens = make_frames(3)
    propagators = [TransformersPropagator(video_models[kind]) for _ in range(2)]
    for propagator in propagators:
        propagator.set_masks(frames[0], {1: reds[0]})
        propagator.propagate(frames[1])
    propagators[1].set_masks(frames[1], {2: greens[1]})
    alone, both = (propagator.propagate(frames[2]) for propagator in propagators)
    assert [*alone] == [1] and [*both] == [1, 2]
    np.testing.assert_allclose(both[1], alone[1], atol=1e-5)


def test_what_a_video_model_does_not_see_is_lost(
    small_sam: MobileSam, video_models: dict[str, Path]
) -> None:
    frames, reds, _ = make_frames()
    propagator = TransformersPropagator(video_models["Sam2"])
    tracker = TrackAnything(small_sam, propagator)
    tracker.start(frames[0])
    tracker.add_object(mask=reds[0])
    last = propagator._model.mask_decoder.pred_obj_score_head.proj_out
    torch.nn.init.constant_(last.bias, -1.0)
    tracked = tracker.track(frames[1])
    assert len(tracked.objects) == 0 and tracked.lost == (1,)


def test_models_that_follow_nothing_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="missing"):
        TransformersPropagator(tmp_path / "missing")
    config = transformers.CLIPVisionConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
    )
    transformers.CLIPVisionModel(config).save_pretrained(tmp_path / "clip")
    transformers.CLIPImageProcessor().save_pretrained(tmp_path / "clip")
    with pytest.raises(ValueError, match="CLIPVisionModel, not a video model such as"):
        TransformersPropagator(tmp_path / "clip")


def test_the_extra_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ImportError, match=r'pip install "mobile-sam-plugin\[track\]"'):
        TransformersPropagator()
