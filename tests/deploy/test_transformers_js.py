"""transformers.js from the npm registry, in Chromium, on the files that are exported for it."""

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from benchmarks.browser_clients import (
    PROMPTS,
    fetch_packages,
    open_transformers_js,
    predict_in_torch,
)
from mobile_sam_plugin import MobileSam, SamPredictor
from mobile_sam_plugin.deploy import export

from ..conftest import PHOTOGRAPHS

pytest.importorskip("playwright.sync_api", reason="playwright is not installed")


@pytest.mark.browser
@pytest.mark.slow
def test_masks_are_those_of_torch_on_the_same_picture(
    bundled_sam: MobileSam, coffee: NDArray[np.uint8], tmp_path: Path
) -> None:
    """It resizes the photograph itself, so torch is given what it makes of it."""
    for program in ("chromium", "npm"):
        if shutil.which(program) is None:
            pytest.skip(f"there is no {program} on this machine")
    try:
        fetch_packages(tmp_path)
    except subprocess.CalledProcessError as error:
        pytest.skip(f"npm cannot get transformers.js: {error.stderr.strip()[:200]}")
    photograph = PHOTOGRAPHS / "coffee.png"
    export(bundled_sam, tmp_path / "model", [photograph], client="transformers.js")
    shutil.copy(photograph, tmp_path / "image.png")
    predictor = SamPredictor(bundled_sam)
    with open_transformers_js(tmp_path) as encoded:
        # Normalised and padded as it should be, what it gives the model is a picture again, ...
        np.testing.assert_allclose(encoded.picture, encoded.picture.round(), rtol=0, atol=1e-3)
        assert encoded.picture.shape == (682, 1024, 3)
        # ... of the same photograph.
        ours = Image.fromarray(coffee).resize((1024, 682), Image.Resampling.BILINEAR)
        assert np.abs(encoded.picture - np.asarray(ours)).mean() < 4
        for points, labels in PROMPTS:
            masks, scores, _ = encoded.predict(points, labels)
            expected, expected_scores = predict_in_torch(
                predictor, encoded, coffee.shape[:2], points, labels
            )
            np.testing.assert_allclose(scores, expected_scores, rtol=0, atol=1e-3)
            for mask, other in zip(masks, expected, strict=True):
                assert (mask & other).sum() > 0.999 * (mask | other).sum()
