"""A run's generator at the recipe's precision."""

import pytest
import torch

from ims3_ray.method.ddim import broadcast_timestep, ddim_stepper, sample
from ims3_ray.method.schedule import alphas_bar, space_timesteps
from ims3_ray.method.seeding import generator, normal
from ims3_ray.models.device import Numerics
from ims3_ray.models.finetuned import TunedModel, predictor

CPU = torch.device("cpu")


def model(precision):
    return TunedModel("package://digits", None, None, Numerics("cpu", precision))


@pytest.mark.parametrize("load", ["load", "trainable"])
@torch.no_grad()
def test_bf16_does_not_round_the_latents(load):
    """Near t = 0 rounding of the input is as large as its noise; without it the error of ε is about half."""
    t, labels, predict = torch.zeros(8, dtype=torch.int64), torch.arange(8), model("fp32").load(CPU).predict
    noise = normal([generator("latents", row) for row in range(8)], (4, 8, 8))
    model_at = broadcast_timestep(predict)
    z = sample(ddim_stepper, model_at, noise, labels, space_timesteps(20), alphas_bar())
    exact = predict(z, t, labels)[:, :4]
    rough = getattr(model("bf16"), load)(CPU).predict(z, t, labels)[:, :4]
    rounded = predictor(model("bf16").pretrained().to(torch.bfloat16))(z, t, labels)[:, :4]
    assert 0 < (rough - exact).norm() < 0.75 * (rounded - exact).norm()
    assert (rough - exact).norm() < 0.1 * exact.norm()


def test_fp32_loads_the_checkpoint_unchanged():
    stored, loaded = model("fp32").pretrained().state_dict(), model("fp32").load(CPU).dit.state_dict()
    assert all(torch.equal(value, loaded[name]) for name, value in stored.items())


def test_trained_values_start_from_the_checkpoints_own_in_bf16_too():
    stored, dit = dict(model("fp32").pretrained().named_parameters()), model("bf16").trainable(CPU).dit
    for name, value in dit.named_parameters():
        if name in stored and value.requires_grad:
            assert torch.equal(value, stored[name]), name
    assert dit.blocks[0].attn.qkv.weight.dtype == torch.bfloat16
