"""Sixteen latents of a tiny generator, their inversions, and the task that tunes it on them."""

import numpy as np
import pytest
import torch
from tiny_generator import diffusers_folder

from ims3_ray.config.sections import Finetune, InversionMatching
from ims3_ray.models.device import Numerics
from ims3_ray.models.finetuned import TunedModel
from ims3_ray.stages.finetune.batch import LatentSource
from ims3_ray.stages.finetune.task import InversionMatchingTask
from ims3_ray.storage import schemas
from ims3_ray.storage.artifacts import complete, open_directory

ROWS, POINTS = 16, 3


@pytest.fixture
def build_task(tmp_path):
    """build(precision="fp32", im={…}, finetune={…}, inversions=True, device="cpu") → a training's task."""
    draws = np.random.default_rng(0)
    keys = {
        "image_id": np.array([f"{row:02d}" for row in range(ROWS)], dtype=object),
        "label": np.arange(ROWS) % 3,
    }
    z = draws.standard_normal((ROWS, 4, 8, 8)).astype(np.float16)
    held = {
        "latents": (keys | {"mean": z, "logvar": np.full_like(z, -6)}, schemas.LATENTS),
        "inversions": (keys | {"inversion": np.stack([z] * POINTS, axis=1)}, schemas.INVERSIONS),
    }
    folders = {}
    for noun, (columns, table) in held.items():
        folders[noun] = open_directory(str(tmp_path / noun))
        folders[noun].write("part-0.parquet", schemas.to_parquet(columns, table))
        complete(folders[noun], {"rows": ROWS})
    model = str(diffusers_folder(tmp_path / "model"))

    def build(precision="fp32", im=None, finetune=None, inversions=True, device="cpu"):
        return InversionMatchingTask(
            device=torch.device(device),
            model=TunedModel(model, None, None, Numerics(precision=precision)),
            source=LatentSource(
                folders["latents"], folders["inversions"] if inversions else None, False, POINTS, [7, 5, 2]
            ),
            finetune=Finetune(**{"batch_size": 8, "micro_batches": 1} | (finetune or {})),
            im=InversionMatching(**im or {}),
            seed=0,
        )

    return build
