"""DPM-Solver++ (Lu et al. 2022), diffusers' own, as a sampler's step: second order, from two predictions."""

from jaxtyping import Int
from torch import Tensor

from ims3_ray.method.ddim import Latents, Step, noise_of

from .generator import SCHEDULE


def dpm_step(timesteps: Int[Tensor, " n"]) -> Step:
    """The step of `method.ddim.sample` over these timesteps, for one batch, from the last to the first.

    It keeps the prediction of the step before, which the next batch must not see. The first step is of first
    order, as DDIM's are, and so is the last, to clean latents. The timesteps should be even in log_snr: on
    those that are even in t it is worse than DDIM.
    """
    from diffusers import DPMSolverMultistepScheduler  # seconds to import

    solver = DPMSolverMultistepScheduler(**SCHEDULE, algorithm_type="dpmsolver++", solver_order=2)
    solver.set_timesteps(timesteps=timesteps.flip(0).tolist())

    def step(z: Latents, output: Tensor, t: int, *_: Tensor) -> Latents:
        return solver.step(noise_of(output, z.shape[1]), t, z, return_dict=False)[0]

    return step
