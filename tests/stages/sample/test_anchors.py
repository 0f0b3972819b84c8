"""Anchors, and candidates that are moved towards them."""

import numpy as np
import pytest
import torch

from ims3_ray.cluster.resources import find_machine
from ims3_ray.config.load import load_config, parse_overrides
from ims3_ray.errors import InputError
from ims3_ray.method.schedule import alphas_bar
from ims3_ray.models.generator import load_vae
from ims3_ray.pipeline.prepare import prepare
from ims3_ray.pipeline.steps import plan
from ims3_ray.stages.sample.anchors import Anchors, choose_anchors, collect_anchors, pool
from ims3_ray.stages.sample.stage import Sampler, sampler_arguments
from ims3_ray.storage import schemas
from ims3_ray.storage.artifacts import open_directory

SHAPE = 4, 4, 4
PULLED = "sample.steps=20", "sample.anchor_strength=0.2", "sample.anchor_interval=[0, 999]"


@pytest.fixture
def context_of(tiny_overrides):
    def context_of(*words):
        config = load_config("digits", parse_overrides([*tiny_overrides, *words]))
        return prepare(config, find_machine(config.workers))

    return context_of


@pytest.fixture
def sampler_of(context_of, tmp_path):
    """A sampler of standard normal latents with two anchors for each of three classes, and the anchors."""

    def sampler_of(guidance, *words):
        context = context_of("ipc=2", f"sample.guidance={guidance}", *PULLED, *words)
        draws = np.random.default_rng(0)
        anchors = Anchors(draws.normal(size=(3, 2, *SHAPE)).astype(np.float16), masses(3, 2), pool_ipc=2)
        saved = open_directory(str(tmp_path / "saved"))
        anchors.save(saved)
        sampler = Sampler(**sampler_arguments(context, None), saved=saved)
        sampler._predict = lambda z, t, labels: z * (1 - alphas_bar()[t].float()).sqrt()
        return sampler, anchors

    return sampler_of


def masses(classes, count):
    return np.full((classes, count), 1 / count, np.float32)


def latents_of(sampler, payload):
    """Return the latents that the sampler decodes for these candidates."""
    decoded, decode = [], sampler._decode
    sampler._decode = lambda latents: decoded.append(latents) or decode(latents)
    sampler(payload)
    sampler._decode = decode
    return decoded[0]


PAYLOAD = [[2, 0, 0], [2, 0, 1], [0, 1, 0], [0, 1, 1], [1, 0, 0], [1, 0, 1]]


def test_anchors_are_assigned_in_order_and_again_from_the_first():
    latents = np.arange(6, dtype=np.float16).reshape(2, 3, 1, 1, 1)
    places = np.array([[0, 0, 0, 0, 1], [0, 0, 1, 1, 0], [0, 1, 0, 1, 1]])
    assert Anchors(latents, masses(2, 3), pool_ipc=2).assign(places).ravel().tolist() == [0, 1, 2, 0, 4]


def test_anchors_are_cluster_medoids_with_the_shares_of_their_clusters():
    centres = np.array([0.0, 10.0, 30.0])
    x = np.repeat(centres, (3, 6, 15)) + np.tile([-1, 0, 1], 8)
    places, shares = choose_anchors(x[:, None].astype(np.float32), 3, 0, "a")
    assert sorted(x[places].tolist()) == centres.tolist()
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
    latents = latents_of(sampler, PAYLOAD)
    assert np.array_equal(latents, anchors.assign(np.array(PAYLOAD).T).astype(np.float32))
    vae = load_vae(str(tiny_model), vae=None, heads=None, device=torch.device("cpu"), dtype=torch.float32)
    assert vae.decode(torch.from_numpy(latents)).shape == (6, 3, 16, 16)


@pytest.mark.parametrize("guidance", ["modes", "transport"])
@pytest.mark.parametrize("how", ["ancestral", "ddim", "dpm"])
def test_guided_candidates_end_nearer_to_their_anchors(sampler_of, guidance, how):
    sampler, anchors = sampler_of(guidance, f"sample.sampler={how}")
    guided = latents_of(sampler, PAYLOAD)
    sampler._anchors = None
    free = latents_of(sampler, PAYLOAD)
    label, place = np.array(PAYLOAD)[:, 0], np.arange(6) % 2

    def distance(latents):
        """Mean distance to the assigned anchor, or to the nearest of the class."""
        of_class = anchors.latents[label].astype(np.float32)
        each = np.sqrt(((latents[:, None] - of_class) ** 2).sum(axis=(2, 3, 4)))
        return (each[np.arange(6), place] if guidance == "modes" else each.min(axis=1)).mean()

    assert distance(guided) < 0.8 * distance(free)


@pytest.mark.parametrize("guidance", ["modes", "transport"])
@pytest.mark.parametrize("how", ["ancestral", "dpm"])
def test_a_subgroup_has_the_same_bits_in_any_batch(sampler_of, guidance, how):
    sampler, _ = sampler_of(guidance, f"sample.sampler={how}")
    together = latents_of(sampler, PAYLOAD)
    for first in (0, 2, 4):
        assert np.array_equal(latents_of(sampler, PAYLOAD[first : first + 2]), together[first : first + 2])
    assert np.array_equal(latents_of(sampler, PAYLOAD[2:]), together[2:])


def test_transport_never_splits_a_subgroup_over_batches(context_of, monkeypatch, tmp_path):
    """A batch of 7 holds two whole subgroups of 3."""
    from ims3_ray.stages.sample import stage

    parts = []
    monkeypatch.setattr(stage, "fan_out", lambda build, arguments, new, **_: parts.extend(new) or {})
    context, out = context_of("ipc=3", "sample.guidance=transport"), open_directory(str(tmp_path / "out"))
    stage.run(context, out, adapter=out)
    assert {part.rows for part in parts} == {6, 3}
    for part in parts:
        sets = np.array(part.payload)[:, :2].reshape(-1, 3, 2)
        assert (sets == sets[:, :1]).all()


def test_anchors_are_latents_of_their_class_from_all_parts(context_of, ray_cluster, tmp_path):
    draws = np.random.default_rng(0)
    means = draws.normal(size=(12, *SHAPE)).astype(np.float16)
    labels = np.array([0, 1, 2] * 4)
    latents = open_directory(str(tmp_path / "latents"))
    for part in range(3):
        rows = slice(4 * part, 4 * part + 4)
        columns = {"image_id": np.array(list("abcd"), object), "label": labels[rows], "mean": means[rows]}
        data = schemas.to_parquet(columns | {"logvar": means[rows]}, schemas.LATENTS)
        latents.write(f"part-{part}.parquet", data)
    anchors = collect_anchors(context_of("ipc=4", "sample.guidance=modes"), latents)
    for label in range(3):
        own, found = means[labels == label], anchors.latents[label]
        places = [int((own == anchor).all(axis=(1, 2, 3)).argmax()) for anchor in found]
        assert sorted(places) == [0, 1, 2, 3]
        assert np.array_equal(found, own[places])
    assert anchors.masses == pytest.approx(0.25)
    with pytest.raises(
        InputError, match=r"sample\.guidance: class 'blue' has 4 encoded images for 5 anchors"
    ):
        collect_anchors(context_of("ipc=5", "sample.guidance=modes"), latents)


def test_latents_and_anchor_settings_are_inputs_only_with_guidance(context_of):
    def step(*words):
        return plan(context_of(*words), "sample")[-1]

    plain, guided = step(), step("sample.guidance=modes")
    assert set(plain.parents) == {"adapter"}
    assert set(guided.parents) == {"adapter", "latents"}
    assert step("sample.anchor_strength=9").fingerprint == plain.fingerprint != guided.fingerprint
    others = (
        step("sample.guidance=modes", "sample.anchor_strength=9"),
        step("sample.guidance_interval=[0, 9]"),
    )
    assert len({plain.fingerprint, guided.fingerprint, *(other.fingerprint for other in others)}) == 4


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("ipc=9",), r"sample\.guidance: class 'blue' has 8 encoded images for 9 anchors; add images, raise"),
        (
            ("ipc=8", "sample.guidance=transport"),
            r"sample\.batch_size\.cpu: 7 .* subgroup of 8 images.*raise",
        ),
        (("sample.anchor_interval=[9, 3]",), r"sample\.anchor_interval: .*from the lower to the higher"),
        (("sample.guidance_interval=[1, 2, 3]",), r"sample\.guidance_interval"),
        (("sample.steps=3", "sample.anchor_interval=[1, 9]"), r"sample\.anchor_interval: .*holds none"),
    ],
)
def test_impossible_guidance_is_refused_before_any_work(context_of, words, line):
    with pytest.raises(InputError, match=line):
        context_of("sample.guidance=modes", *words)
