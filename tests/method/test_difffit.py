"""DiffFit: trainable parameters, scales without effect until trained, folding."""

import re

import pytest
import torch
from tiny_generator import inputs, small_dit

from ims3_ray.method import difffit
from ims3_ray.models.dit import DiT, DiTConfig


def five_blocks() -> DiT:
    return small_dit(hidden_size=48, depth=5)


def output(model: DiT) -> torch.Tensor:
    with torch.no_grad():
        return model(*inputs())


def disturb(model: DiT, seed: int = 2) -> None:
    """Change every trainable value, as fine-tuning does."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in difffit.trainable(model).values():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.2)


def test_dit_xl_trains_the_published_number_of_values():
    with torch.device("meta"):
        dit = DiT(DiTConfig(sample_size=32, hidden_size=1152, depth=28, num_heads=16, num_classes=1000))
    names = difffit.prepare(dit)
    sizes = {name: parameter.numel() for name, parameter in dit.named_parameters()}
    assert sum(sizes[name] for name in names) == 1_739_552
    assert sum(sizes[name] for name in names if name.endswith("bias")) == 489_632
    assert sum(sizes[name] for name in names if name.endswith(difffit.SCALE_NAMES)) == 96_768
    assert sizes["y_embedder.embedding_table.weight"] == 1_153_152
    assert sum(sizes.values()) + dit.pos_embed.numel() == 675_226_400
    assert {name for name, parameter in dit.named_parameters() if parameter.requires_grad} == set(names)


def test_exactly_the_trainable_values_have_gradients():
    dit = five_blocks()
    names = difffit.prepare(dit)
    dit(torch.randn(2, 4, 8, 8), torch.tensor([3, 999]), torch.tensor([0, 10])).square().sum().backward()
    assert [name for name, parameter in dit.named_parameters() if parameter.grad is not None] == names
    assert all(dit.get_parameter(name).grad.abs().max() > 0 for name in names)


def test_scales_of_the_first_half_of_the_blocks_start_without_effect_and_each_changes_the_output():
    dit = five_blocks()
    before = output(dit)
    difffit.add_scales(dit)
    assert torch.equal(output(dit), before)
    scales = {name: p for name, p in dit.named_parameters() if name.endswith(difffit.SCALE_NAMES)}
    assert {int(name.split(".")[1]) for name in scales} == {0, 1}
    for name, parameter in scales.items():
        parameter.data.mul_(1.5)
        assert (output(dit) - before).abs().max() > 1e-3, name
        parameter.data.div_(1.5)


def test_bf16_model_keeps_its_trainable_values_in_fp32():
    dit = five_blocks()
    exact = output(dit)
    dit.to(torch.bfloat16)
    names = difffit.prepare(dit)
    for name, parameter in dit.named_parameters():
        assert parameter.dtype == (torch.float32 if name in names else torch.bfloat16), name
    assert (output(dit).float() - exact).norm() / exact.norm() < 0.02


def test_folding_keeps_the_output_and_removes_the_scales():
    dit = five_blocks()
    difffit.add_scales(dit)
    disturb(dit)
    before = output(dit)
    difffit.fold(dit)
    assert not difffit.has_scales(dit)
    torch.testing.assert_close(output(dit), before, atol=1e-6 * before.abs().max().item(), rtol=1e-6)


def test_adapter_holds_all_fine_tuned_values():
    tuned, fresh = five_blocks(), five_blocks()
    difffit.prepare(tuned)
    disturb(tuned)
    difffit.load_adapter(fresh, difffit.trainable(tuned))
    assert torch.equal(output(fresh), output(tuned))


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("blocks.1.mlp_scale", None, "missing"),
        ("blocks.4.mlp_scale", torch.ones(48), "left over"),
        ("y_embedder.embedding_table.weight", torch.ones(3, 48), "(3, 48), not (11, 48)"),
    ],
)
def test_adapter_of_another_model_is_refused_without_changes(name, value, words):
    dit, tuned = five_blocks(), five_blocks()
    difffit.prepare(tuned)
    disturb(tuned)
    state = difffit.trainable(tuned)
    state.pop(name, None)
    state |= {} if value is None else {name: value}
    before = output(dit)
    with pytest.raises(ValueError, match=re.escape(name)) as refused:
        difffit.load_adapter(dit, state)
    assert words in str(refused.value)
    assert torch.equal(output(dit), before)
