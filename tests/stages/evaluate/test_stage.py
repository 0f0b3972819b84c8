"""The evaluation of a tiny run with every baseline: what its document holds, what is refused before a run."""

import re

import numpy as np
import pytest
from planned import config_of, context_of, run

from ims3_ray.errors import InputError
from ims3_ray.evaluation.results import headline_metrics
from ims3_ray.jobs.distill.result import summary_lines
from ims3_ray.stages.evaluate.stage import first_of_pool

NAMES = ["random", "herding", "k_center", "medoids"]


@pytest.fixture(scope="module")
def evaluated(words):
    """The finished run with more baselines: the stages ahead of evaluation are found complete."""
    more = f"evaluate.baselines=[{', '.join(NAMES)}]", "evaluate.pool_images=8"
    return config_of(words, *more), run(words, *more)


def test_every_baseline_stands_beside_the_set_with_its_seeds_and_figures(evaluated):
    config, made = evaluated
    sets, coverage = made.evaluation["sets"], made.evaluation["coverage"]
    images = {name: of_set["images"] for name, of_set in sets.items()}
    assert images == dict.fromkeys(("distilled", *NAMES), 18) | {"full": 36}
    assert all(of_set["seeds"] == [0, 1] for of_set in sets.values())
    assert set(coverage) == {"distilled", *NAMES, "ceiling", "pool"}
    assert 0 <= sets["distilled"]["label_robust_score"] <= 1
    assert "networks" not in made.evaluation
    figures = headline_metrics(made.evaluation)
    names = {"accuracy", "accuracy/random/last", "accuracy/full/best", "label_robust_score/distilled"}
    assert names | {"coverage/pool"} <= set(figures)
    assert all(isinstance(value, float) for value in figures.values())
    table = "\n".join(summary_lines(config, made))
    assert all(title in table for title in ("k-centre", "greedy cover", "pool", "full real"))


def test_a_real_set_copies_and_no_baseline_covers_more_than_the_ceiling_reaches(evaluated):
    coverage = evaluated[1].evaluation["coverage"]
    assert all(coverage[name]["copy_rate"] == 1.0 for name in (*NAMES, "ceiling"))
    least = (1 - 1 / np.e) * max(coverage[name]["coverage"] for name in NAMES)
    assert coverage["ceiling"]["coverage"] >= least
    for values in coverage.values():  # 12 images: tenths of 1 or 2
        assert np.mean(values["deciles"]) == pytest.approx(values["coverage"], abs=0.1)


def test_the_pools_first_candidates_are_taken_by_subgroup_and_index_whatever_their_order():
    keys = np.random.default_rng(0).permutation(
        [(c, g, k) for c in (0, 1) for g in range(3) for k in range(2)]
    )
    drawn = dict(zip(("label", "subgroup", "index"), keys.T, strict=True))
    taken = [tuple(keys[row]) for row in first_of_pool(drawn, 3)]
    assert taken == [(c, g, k) for c in (0, 1) for g, k in ((0, 0), (0, 1), (1, 0))]


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("evaluate.pool_images=19", "evaluate.pool_images: 19 per class exceed the pool's 18"),
        ("evaluate.networks=[convnet3, resnet18]", "resnet18 needs images of at least 33 px, not 16"),
        ("evaluate.protocol=quick-val", "data.validation: protocol quick-val scores on this split; set "),
        ("evaluate.baselines=[random, random]", "evaluate.baselines: 'random' occurs twice"),
        ("evaluate.baselines=[kmeans]", "evaluate.baselines.0"),
        ("evaluate.networks=[]", "evaluate.networks"),
        ("evaluate.networks=[lenet]", "evaluate.networks.0: should be one of convnet3, "),
        ("evaluate.networks=[timm:resnet19]", "timm has no model 'resnet19'; similar names: resnet18"),
        ("evaluate.networks=[timm:vgg11]", "timm:vgg11 does not take images of 16 px"),
        ("evaluate.protocol=soft-32", "evaluate.baselines: soft-label accuracies mean little"),
        ("export.soft_labels=2", "export.soft_labels: evaluate.protocol=smoke has no teacher"),
        ("evaluate.teacher=timm:resnet18", "evaluate.teacher: protocol smoke has hard labels; leave it out"),
        ("evaluate.seeds=1001", "evaluate.seeds"),
        ("workers.gpus_per_classifier=2", "workers.gpus_per_classifier"),
    ],
)
def test_an_evaluation_that_can_not_be_is_refused_before_a_run(tiny_overrides, word, message):
    with pytest.raises(InputError, match=f"^[^\\n]*{re.escape(message)}[^\\n]*$"):
        context_of(tiny_overrides, word)
