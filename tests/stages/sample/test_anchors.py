"""Anchors, and candidates that are moved towards them."""

import numpy as np
import pytest
import torch
from planned import context_of
from stored import artefact_of

from ims3_ray.errors import InputError
from ims3_ray.method.schedule import alphas_bar
from ims3_ray.models.generator import load_vae
from ims3_ray.pipeline.steps import plan
from ims3_ray.stages.sample import stage
from ims3_ray.stages.sample.anchors import Anchors, choose_anchors, collect_anchors, pool
from ims3_ray.storage.artifacts import open_directory
from ims3_ray.storage.schemas import LATENTS

SHAPE = 4, 4, 4
MODES = "sample.guidance=modes"
PULLED = "sample.steps=20", "sample.anchor_strength=0.2", "sample.anchor_interval=[0, 999]"
PAYLOAD = [[2, 0, 0], [2, 0, 1], [0, 1, 0], [0, 1, 1], [1, 0, 0], [1, 0, 1]]
guided = pytest.mark.parametrize("guidance", ["modes", "transport"])


def masses(classes, count):
    return np.full((classes, count), 1 / count, np.float32)


@pytest.fixture
def sampler_of(tiny_overrides, tmp_path):
    """A sampler of standard normal latents with two anchors for each of three classes, and the anchors."""

    def sampler_of(guidance, how="ancestral"):
        words = "ipc=2", f"sample.guidance={guidance}", f"sample.sampler={how}"
        context, draws = context_of(tiny_overrides, *words, *PULLED), np.random.default_rng(0)
        anchors = Anchors(draws.normal(size=(3, 2, *SHAPE)).astype(np.float16), masses(3, 2), pool_ipc=2)
        saved = open_directory(str(tmp_path / "saved"))
        anchors.save(saved)
        sampler = stage.Sampler(**stage.sampler_arguments(context, None), saved=saved)
        sampler._predict = lambda z, t, labels: z * (1 - alphas_bar()[t].float()).sqrt()
        return sampler, anchors

    return sampler_of


def latents_of(sampler, payload=PAYLOAD):
    """The latents that the sampler decodes for these candidates."""
    decoded, decode = [], sampler._decode
    sampler._decode = lambda latents: decoded.append(latents) or decode(latents)
    sampler(payload)
    sampler._decode = decode
    return decoded[0]


def test_anchors_are_assigned_in_order_and_again_from_the_first():
    latents = np.arange(6, dtype=np.float16).reshape(2, 3, 1, 1, 1)
    places = np.array([[0, 0, 0, 0, 1], [0, 0, 1, 1, 0], [0, 1, 0, 1, 1]])
    assert Anchors(latents, masses(2, 3), pool_ipc=2).assign(places).ravel().tolist() == [0, 1, 2, 0, 4]


def test_anchors_are_cluster_medoids_with_the_shares_of_their_clusters():
    x = np.repeat([0.0, 10.0, 30.0], (3, 6, 15)) + np.tile([-1, 0, 1], 8)
    places, shares = choose_anchors(x[:, None].astype(np.float32), 3, 0, "a")
    by_centre = dict(zip(x[places].tolist(), shares.tolist(), strict=True))
    assert by_centre == pytest.approx({0.0: 1 / 8, 10.0: 2 / 8, 30.0: 5 / 8})


def test_latents_are_averaged_by_block():
    latents = np.arange(64, dtype=np.float16).reshape(1, 1, 8, 8)
    pooled = pool(latents)
    assert pooled.shape == (1, 16)
    assert pooled[0, 0] == latents[0, 0, :2, :2].mean()
    assert pool(latents[..., :2, :2]).tolist() == [[0, 1, 8, 9]]


def test_guidance_by_anchors_decodes_the_anchors_without_a_step(sampler_of, tiny_model):
    sampler, anchors = sampler_of("anchors")
    latents = latents_of(sampler)
    assert np.array_equal(latents, anchors.assign(np.array(PAYLOAD).T).astype(np.float32))
    vae = load_vae(str(tiny_model), vae=None, heads=None, device=torch.device("cpu"), dtype=torch.float32)
    assert vae.decode(torch.from_numpy(latents)).shape == (6, 3, 16, 16)


@guided
@pytest.mark.parametrize("how", ["ancestral", "ddim", "dpm"])
def test_guided_candidates_end_nearer_to_their_anchors(sampler_of, guidance, how):
    sampler, anchors = sampler_of(guidance, how)
    label, place = np.array(PAYLOAD)[:, 0], np.arange(6) % 2

    def distance():
        """Mean distance to the assigned anchor, or to the nearest of the class."""
        apart = latents_of(sampler)[:, None] - anchors.latents[label].astype(np.float32)
        each = np.sqrt((apart**2).sum(axis=(2, 3, 4)))
        return (each[np.arange(6), place] if guidance == "modes" else each.min(axis=1)).mean()

    pulled = distance()
    sampler._anchors = None
    assert pulled < 0.8 * distance()


@guided
@pytest.mark.parametrize("how", ["ancestral", "dpm"])
def test_a_subgroup_has_the_same_bits_in_any_batch(sampler_of, guidance, how):
    sampler, _ = sampler_of(guidance, how)
    together = latents_of(sampler)
    for rows in (slice(0, 2), slice(2, 4), slice(4, 6), slice(2, 6)):
        assert np.array_equal(latents_of(sampler, PAYLOAD[rows]), together[rows])


def test_transport_never_splits_a_subgroup_over_batches(tiny_overrides, monkeypatch, tmp_path):
    """A batch of 7 holds two whole subgroups of 3."""
    parts, out = [], open_directory(str(tmp_path / "out"))
    monkeypatch.setattr(stage, "fan_out", lambda build, arguments, new, **_: parts.extend(new) or {})
    stage.run(context_of(tiny_overrides, "ipc=3", "sample.guidance=transport"), out, adapter=out)
    assert {part.rows for part in parts} == {6, 3}
    for part in parts:
        sets = np.array(part.payload)[:, :2].reshape(-1, 3, 2)
        assert (sets == sets[:, :1]).all()


def test_anchors_are_latents_of_their_class_from_all_parts(tiny_overrides, ray_cluster, tmp_path):
    means = np.random.default_rng(0).normal(size=(12, *SHAPE)).astype(np.float16)
    labels = np.array([0, 1, 2] * 4)
    latents = artefact_of(tmp_path, LATENTS, {"label": labels, "mean": means, "logvar": means}, size=4)
    anchors = collect_anchors(context_of(tiny_overrides, "ipc=4", MODES), latents)
    for label in range(3):
        assert {z.tobytes() for z in anchors.latents[label]} == {z.tobytes() for z in means[labels == label]}
    assert anchors.masses == pytest.approx(0.25)
    with pytest.raises(InputError, match=r"sample\.guidance: class 'blue' has 4 .* 5 anchors"):
        collect_anchors(context_of(tiny_overrides, "ipc=5", MODES), latents)


def test_latents_and_anchor_settings_are_inputs_only_with_guidance(tiny_overrides):
    def step(*words):
        return plan(context_of(tiny_overrides, *words), "sample")[-1]

    strength = "sample.anchor_strength=9"
    plain, guided = step(), step(MODES)
    assert (set(plain.parents), set(guided.parents)) == ({"adapter"}, {"adapter", "latents"})
    assert step(strength).fingerprint == plain.fingerprint
    different = plain, guided, step(MODES, strength), step("sample.guidance_interval=[0, 9]")
    assert len({each.fingerprint for each in different}) == 4


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("ipc=9",), r"sample\.guidance: class 'blue' has 8 .* 9 anchors"),
        (("ipc=8", "sample.guidance=transport"), r"sample\.batch_size\.cpu: 7 .* 8 images"),
        (("sample.anchor_interval=[9, 3]",), r"sample\.anchor_interval: .*lower"),
        (("sample.guidance_interval=[1, 2, 3]",), r"sample\.guidance_interval"),
    ],
)
def test_impossible_guidance_is_refused_before_any_work(tiny_overrides, words, line):
    with pytest.raises(InputError, match=line):
        context_of(tiny_overrides, MODES, *words)
