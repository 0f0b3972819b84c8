"""The checkpoints that are converted."""

import pytest
from tiny_generator import diffusers_folder, original_file, small_dit


@pytest.fixture
def folder(tmp_path):
    return diffusers_folder(tmp_path / "model")


@pytest.fixture
def original(tmp_path):
    return original_file(tmp_path / "DiT.pt", small_dit(frequency_shift=0.0, norm_eps=1e-6))
