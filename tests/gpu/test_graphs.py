"""CUDA graphs give the same bits as single kernel launches, and no step synchronises."""

from dataclasses import replace

import pytest
import torch
from planned import config_of
from tiny import tiny_words

from benchmarks.compare import count_syncs
from benchmarks.ours import local_trainer, pool_work, training_work
from ims3_ray.cluster.resources import Machine
from ims3_ray.config.settings import Workers
from ims3_ray.method import difffit
from ims3_ray.method.ddim import ancestral_stepper, broadcast_timestep, sample
from ims3_ray.method.schedule import alphas_bar, space_timesteps
from ims3_ray.method.seeding import generator
from ims3_ray.models.cuda_graphs import GraphedPredictor
from ims3_ray.models.device import Numerics, prepare_device, supported_numerics
from ims3_ray.models.dit import DiT, DiTConfig
from ims3_ray.models.finetuned import compile_blocks, predictor
from ims3_ray.pipeline.prepare import prepare
from ims3_ray.storage.artifacts import open_directory

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]


@pytest.fixture(params=["graphs", "plain"])
def context(request, tiny_model, tiny_images, tmp_path):
    config = config_of(tiny_words(tiny_model, tiny_images, tmp_path / "runs"), "finetune.log_every=3")
    context = prepare(config, Machine("cuda", 1, 1, 4e9, Workers(actors=1, train_workers=1)))
    return replace(context, numerics=replace(context.numerics, graphs=request.param == "graphs"))


def without_graphs(context):
    return replace(context, numerics=replace(context.numerics, graphs=False))


def draw(rows, place):
    draws = generator("graphs", place)
    z = torch.randn(rows, 4, 8, 8, generator=draws).cuda()
    t, y = (torch.randint(0, most, (rows,), generator=draws).cuda() for most in (1000, 4))
    return z, t, y


@pytest.mark.parametrize("compiled", [False, True])
def test_graphs_give_the_bits_of_single_launches(compiled):
    """Outputs with and without gradients, and two gradients of one output, as in a logging step."""
    config = DiTConfig(sample_size=8, hidden_size=128, depth=4, num_heads=4, num_classes=3)
    dit = DiT(config).initialize(generator("dit"), zero_outputs=False).eval()
    dit = dit.to(prepare_device("cuda"), torch.bfloat16)
    difffit.prepare(dit)
    if compiled:
        compile_blocks(dit)
    parameters = [p for p in dit.parameters() if p.requires_grad]
    plain = predictor(dit)
    recorded = GraphedPredictor(plain, parameters)

    def values(predict, place):
        out = predict(*draw(4, place))
        with torch.no_grad():
            other = predict(*draw(4, -place))  # must not change the activations of `out`
        terms = out.square().mean(), (out - other).abs().mean()
        gradients = [torch.autograd.grad(term, parameters, retain_graph=True) for term in terms]
        return [out, other, *gradients[0], *gradients[1]]

    for place in range(1, 4):
        for a, b in zip(values(plain, place), values(recorded, place), strict=True):
            assert torch.equal(a, b)
        with torch.no_grad():
            for parameter in parameters:
                parameter.mul_(1.01)


def test_gradients_of_an_overwritten_pass_are_refused():
    dit = DiT(DiTConfig(sample_size=8, hidden_size=32, depth=2, num_heads=2, num_classes=3)).cuda()
    recorded = GraphedPredictor(predictor(dit), list(dit.parameters()))
    first, _ = (recorded(*draw(2, place)) for place in (0, 1))
    with pytest.raises(AssertionError, match="overwritten"):
        first.sum().backward()


@pytest.mark.parametrize("context", ["graphs"], indirect=True)
def test_fine_tuning_and_sampling_have_the_same_bits_with_graphs(context, tmp_path):
    adapters, images = [], []
    for place, each in enumerate((context, without_graphs(context))):
        folder = open_directory(str(tmp_path / f"work-{place}"))
        arguments, numbers = training_work(each, folder, 4)
        trainer = local_trainer(arguments, numbers, "cuda")
        for _ in range(4):
            trainer.train_step()
        adapters.append(trainer.values())
        work = pool_work(each, "sample", folder, 1)
        images.append(work.build(**work.arguments)(work.parts[0].payload)[0]["image"].tolist())
    assert all(torch.equal(value, adapters[1][name]) for name, value in adapters[0].items())
    assert images[0] == images[1]


def test_a_training_step_does_not_synchronise(context, tmp_path):
    arguments, numbers = training_work(context, open_directory(str(tmp_path)), 9)
    trainer = local_trainer(arguments, numbers, "cuda")
    for _ in range(3):  # compiled, recorded; the third logs
        trainer.train_step()
    assert count_syncs(trainer.train_step) == 0
    state = trainer.state_dict()
    trainer.load_state_dict(state)
    assert count_syncs(trainer.train_step) == 0


def test_syncs_of_denoising_do_not_grow_with_the_steps():
    dit = DiT(DiTConfig(sample_size=8, hidden_size=32, depth=2, num_heads=2, num_classes=3)).cuda()
    predict, abar = broadcast_timestep(predictor(dit)), alphas_bar().cuda()
    z, _, labels = draw(2, 0)

    def waits(steps):
        def call():
            with torch.inference_mode():
                timesteps = space_timesteps(steps)
                step = ancestral_stepper(timesteps, lambda: torch.randn_like(z))
                sample(step, predict, z, labels, timesteps, abar)

        call()
        return count_syncs(call)

    assert waits(20) == waits(3)


def test_a_sync_is_counted():
    assert count_syncs(lambda: torch.ones(3, device="cuda").sum().item()) == 1


def test_graphs_are_supported():
    assert supported_numerics(Numerics("cuda", "fp32", graphs=True)) == (
        Numerics("cuda", "fp32", graphs=True),
        [],
    )
