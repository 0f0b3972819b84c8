"""Inversion of a part of the latents, without Ray."""

import numpy as np
import torch
from stored import artefact_of

from ims3_ray.method.ddim import broadcast_timestep, invert
from ims3_ray.method.schedule import alphas_bar, inversion_grid
from ims3_ray.models.device import Numerics
from ims3_ray.models.finetuned import TunedModel
from ims3_ray.stages.invert import Inverter
from ims3_ray.storage.schemas import MIRRORED_LATENTS


def test_each_view_gets_the_inversion_of_its_own_latents(tiny_model, tmp_path):
    rng = np.random.default_rng(0)
    values = {name: rng.standard_normal((5, 4, 4, 4)).astype(np.float16) for name in ("mean", "mirror_mean")}
    rows = dict.fromkeys(("logvar", "mirror_logvar"), np.zeros_like(values["mean"]))
    rows |= values | {"label": np.array([0, 1, 2, 0, 1])}
    latents = artefact_of(tmp_path, MIRRORED_LATENTS, rows)
    model = TunedModel(str(tiny_model), None, None, Numerics())
    inverter = Inverter(latents, model, [2, 0, 1], steps=3, mirror=True, batch_size=4)
    columns, notes = inverter("part-00000.parquet")
    assert (columns["image_id"].tolist(), notes) == (list("01234"), {})
    predict = broadcast_timestep(model.load(torch.device("cpu")).predict)
    labels = torch.tensor([2, 0, 1, 2, 0])
    for name, column in (("mean", "inversion"), ("mirror_mean", "mirror_inversion")):
        z0 = torch.from_numpy(values[name]).float()
        with torch.inference_mode():
            expected = invert(predict, z0, labels, inversion_grid(3), alphas_bar())
        np.testing.assert_allclose(columns[column].astype(np.float32), expected.numpy(), rtol=2e-3, atol=2e-3)
