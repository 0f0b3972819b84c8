"""A run by a soft protocol: its teacher is trained once, and held against real images before any student."""

import numpy as np
import pytest
import torch

from ims3_ray import load_distilled
from ims3_ray.cluster.resources import find_machine
from ims3_ray.config.load import load_config, parse_overrides
from ims3_ray.config.settings import Workers
from ims3_ray.errors import InputError
from ims3_ray.evaluation.inference import predict_batches
from ims3_ray.evaluation.protocols import PROTOCOLS, get_protocol
from ims3_ray.evaluation.results import evaluation_lines
from ims3_ray.evaluation.teacher import TrainedTeacher, load_teacher, teacher_protocol
from ims3_ray.evaluation.train import final_score, train_with_evals
from ims3_ray.jobs.distill import run as distillation
from ims3_ray.models.device import prepare_device
from ims3_ray.pipeline.prepare import prepare
from ims3_ray.pipeline.steps import plan
from ims3_ray.stages.evaluate.classifiers import open_pixels
from ims3_ray.storage.artifacts import open_directory

WORDS = ("evaluate.protocol=soft-32", "evaluate.baselines=[random, medoids]", "evaluate.full=false")


@pytest.fixture
def small(monkeypatch):
    """The protocol in seconds."""
    update = {"image_size": 16, "width": 8, "epochs": 10, "evaluations": 2}
    monkeypatch.setitem(PROTOCOLS, "soft-32", get_protocol("soft-32").model_copy(update=update))


@pytest.mark.slow
def test_students_of_a_trained_teacher_are_scored_beside_real_images(finished_run, small):
    config = load_config("digits", parse_overrides([*finished_run[0], *WORDS]))
    document = distillation.run(config, lambda line: None).evaluation
    assert set(document["sets"]) == {"distilled", "random", "medoids"}
    assert "label_robust_score" not in document["sets"]["distilled"]
    assert document["protocol"] == "soft-32-v3/convnet3-w8"
    assert document["teacher"]["network"] == "soft-32-teacher-v3/convnet3-w8"
    assert document["teacher"]["accuracy"] > 0.9
    assert any("soft labels of soft-32-teacher-v3/convnet3-w8" in line for line in evaluation_lines(document))

    context = prepare(config, find_machine(Workers()))
    steps = {step.stage.name: step for step in plan(context)}
    other = prepare(config.model_copy(update={"ipc": 3, "seed": 1}), find_machine(Workers()))
    assert steps["teacher"].fingerprint in {step.fingerprint for step in plan(other)}  # it is shared
    given = TrainedTeacher(teacher_protocol("soft-32"), steps["teacher"].directory)
    rules, classes, images = get_protocol("soft-32"), context.classes, context.images
    answer = load_teacher(given, rules, classes, prepare_device("cpu"))
    rows = images["train"].take(images["train"].subset([6] * 3, "random", 0))
    with open_pixels(rows, 16) as train, open_pixels(images["test"], 16) as scored:
        alone = final_score(train_with_evals(train, scored, rules, 3, 0, teacher=answer))
    assert document["sets"]["random"]["curves"][0] == [list(look) for look in alone.history]


def test_a_teacher_that_knows_nothing_is_refused_and_no_student_is_trained(finished_run, small, tiny_model):
    words = [*finished_run[0], *WORDS, f"evaluate.teacher={tiny_model}"]
    with pytest.raises(InputError, match=r"^evaluate\.teacher: [^\n]*$"):
        distillation.run(load_config("digits", parse_overrides(words)), lambda line: None)


@pytest.mark.slow
def test_views_of_the_product_have_the_answers_of_its_teacher(finished_run, small):
    words = [*finished_run[0], *WORDS, "export.soft_labels=3"]
    config = load_config("digits", parse_overrides(words))
    run = distillation.run(config, lambda line: None)
    images = load_distilled(run.distilled)
    views, labels = images.views(), images.soft_labels
    assert labels.shape == (len(images), 3, 3)
    assert labels.dtype == torch.float16
    assert len(views) == 3 * len(images)

    context = prepare(config, find_machine(Workers()))
    steps = {step.stage.name: step for step in plan(context)}
    given = TrainedTeacher(teacher_protocol("soft-32"), steps["teacher"].directory)
    rules = get_protocol("soft-32")
    answer = load_teacher(given, rules, context.classes, prepare_device("cpu"))
    shown = torch.stack([torch.from_numpy(np.asarray(view).copy()).permute(2, 0, 1) for view, _ in views])
    expected = torch.cat(list(predict_batches(answer, shown, rules, "cpu")))
    torch.testing.assert_close(torch.stack([logits for _, logits in views]), expected, atol=2e-3, rtol=2e-3)
    assert len({view.tobytes() for view, _ in views}) > 2 * len(images)  # others than the image itself
    card = open_directory(run.distilled).read("README.md").decode()
    assert "3 views" in card
    assert "soft-32-teacher-v3/convnet3-w8" in card


def test_a_set_without_soft_labels_says_so(finished_run):
    config = load_config("digits", parse_overrides(finished_run[0]))
    images = load_distilled(distillation.run(config, lambda line: None).distilled)
    assert images.soft_labels is None
    with pytest.raises(InputError, match=r"export\.soft_labels=K"):
        images.views()
