"""Inversion of a part of the latents, without Ray."""

import numpy as np
import torch

from ims3_ray.method.ddim import broadcast_timestep, invert
from ims3_ray.method.schedule import alphas_bar, inversion_grid
from ims3_ray.models.device import Numerics
from ims3_ray.models.finetuned import TunedModel
from ims3_ray.stages.invert import Inverter
from ims3_ray.storage import schemas
from ims3_ray.storage.artifacts import open_directory


def test_each_view_gets_the_inversion_of_its_own_latents(tiny_model, tmp_path):
    rng = np.random.default_rng(0)
    values = {name: rng.standard_normal((5, 4, 4, 4)).astype(np.float16) for name in ("mean", "mirror_mean")}
    rows = {"image_id": np.array(list("abcde"), object), "label": np.array([0, 1, 2, 0, 1])}
    rows |= values | {name: np.zeros_like(values["mean"]) for name in ("logvar", "mirror_logvar")}
    latents = open_directory(str(tmp_path))
    latents.write("part-00000.parquet", schemas.to_parquet(rows, schemas.MIRRORED_LATENTS))
    model = TunedModel(str(tiny_model), None, None, Numerics())
    inverter = Inverter(latents, model, [2, 0, 1], steps=3, mirror=True, batch_size=4)
    columns, notes = inverter("part-00000.parquet")
    assert notes == {}
    assert columns["image_id"].tolist() == list("abcde")
    predict, labels = (
        broadcast_timestep(model.load(torch.device("cpu")).predict),
        torch.tensor([2, 0, 1, 2, 0]),
    )
    for name, column in (("mean", "inversion"), ("mirror_mean", "mirror_inversion")):
        z0 = torch.from_numpy(values[name]).float()
        with torch.inference_mode():
            expected = invert(predict, z0, labels, inversion_grid(3), alphas_bar())
        np.testing.assert_allclose(columns[column].astype(np.float32), expected.numpy(), rtol=2e-3, atol=2e-3)
