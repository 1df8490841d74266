"""Pools of threads."""

import logging

import pytest

from mobile_sam_plugin.threads import torch_pool


def test_a_pool_without_work_ends_quietly(caplog: pytest.LogCaptureFixture) -> None:
    """As in a resumed run, where everything is done."""
    with caplog.at_level(logging.WARNING, "concurrent.futures"):
        for _ in range(20):
            with torch_pool(4, 1):
                pass
    assert not caplog.records
