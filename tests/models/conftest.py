"""The folder of a tiny pipeline."""

import pytest
from tiny_generator import diffusers_folder


@pytest.fixture
def folder(tmp_path):
    return diffusers_folder(tmp_path / "model")
