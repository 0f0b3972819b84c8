"""Sixteen latents of a tiny generator, their inversions, and the task that tunes it on them."""

import numpy as np
import pytest
import torch
from stored import artefact_of
from tiny_generator import diffusers_folder

from ims3_ray.config.sections import Finetune, InversionMatching
from ims3_ray.models.device import Numerics
from ims3_ray.models.finetuned import TunedModel
from ims3_ray.stages.finetune.batch import LatentSource
from ims3_ray.stages.finetune.task import InversionMatchingTask
from ims3_ray.storage.schemas import INVERSIONS, LATENTS

ROWS, POINTS, TABLES = 16, 3, (LATENTS, INVERSIONS)


@pytest.fixture
def build_task(tmp_path):
    """build(precision="fp32", im={…}, finetune={…}, inversions=True, device="cpu") → a training's task."""
    draws = np.random.default_rng(0)
    z = draws.standard_normal((ROWS, 4, 8, 8)).astype(np.float16)
    columns = {"label": np.arange(ROWS) % 3, "mean": z, "logvar": np.full_like(z, -6)}
    columns["inversion"] = np.stack([z] * POINTS, axis=1)
    latents, held = (artefact_of(tmp_path / f"part-{len(table)}", table, columns, ROWS) for table in TABLES)
    model = str(diffusers_folder(tmp_path / "model"))

    def build(precision="fp32", im=None, finetune=None, inversions=True, device="cpu"):
        return InversionMatchingTask(
            device=torch.device(device),
            model=TunedModel(model, None, None, Numerics(precision=precision)),
            source=LatentSource(latents, held if inversions else None, False, POINTS, [7, 5, 2]),
            finetune=Finetune(**{"batch_size": 8, "micro_batches": 1} | (finetune or {})),
            im=InversionMatching(**im or {}),
            seed=0,
        )

    return build
