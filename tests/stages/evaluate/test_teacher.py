"""A run by a soft protocol: its teacher is trained once, and held against real images before any student."""

import numpy as np
import pytest
import torch
from planned import context_of, run

from ims3_ray import load_distilled
from ims3_ray.errors import InputError
from ims3_ray.evaluation.inference import predict_batches
from ims3_ray.evaluation.protocols import PROTOCOLS, get_protocol
from ims3_ray.evaluation.results import evaluation_lines
from ims3_ray.evaluation.teacher import TrainedTeacher, load_teacher, teacher_protocol
from ims3_ray.evaluation.train import final_score, train_with_evals
from ims3_ray.models.device import prepare_device
from ims3_ray.pipeline.steps import plan
from ims3_ray.stages.evaluate.classifiers import open_pixels
from ims3_ray.storage.artifacts import open_directory

WORDS = ("evaluate.protocol=soft-32", "evaluate.baselines=[random, medoids]", "evaluate.full=false")


@pytest.fixture
def small(monkeypatch):
    """The protocol in seconds."""
    update = {"image_size": 16, "width": 8, "epochs": 10, "evaluations": 2}
    monkeypatch.setitem(PROTOCOLS, "soft-32", get_protocol("soft-32").model_copy(update=update))


def teacher_of(context):
    """The step that trained a run's teacher, and what the teacher answers."""
    (step,) = (step for step in plan(context) if step.stage.name == "teacher")
    given = TrainedTeacher(teacher_protocol("soft-32"), step.directory)
    return step, load_teacher(given, get_protocol("soft-32"), context.classes, prepare_device("cpu"))


@pytest.mark.slow
def test_students_of_a_trained_teacher_are_scored_beside_real_images(words, small):
    document = run(words, *WORDS).evaluation
    assert set(document["sets"]) == {"distilled", "random", "medoids"}
    assert "label_robust_score" not in document["sets"]["distilled"]
    assert document["protocol"] == "soft-32-v3/convnet3-w8"
    assert document["teacher"]["network"] == "soft-32-teacher-v3/convnet3-w8"
    assert document["teacher"]["accuracy"] > 0.9
    assert any("soft labels of soft-32-teacher-v3/convnet3-w8" in line for line in evaluation_lines(document))

    context = context_of(words, *WORDS)
    step, answer = teacher_of(context)
    other = context_of(words, *WORDS, "ipc=3", "seed=1")
    assert step.fingerprint in {step.fingerprint for step in plan(other)}  # it is shared
    rules, images = get_protocol("soft-32"), context.images
    rows = images["train"].take(images["train"].subset([6] * 3, "random", 0))
    with open_pixels(rows, 16) as train, open_pixels(images["test"], 16) as scored:
        alone = final_score(train_with_evals(train, scored, rules, 3, 0, teacher=answer))
    assert document["sets"]["random"]["curves"][0] == [list(look) for look in alone.history]


def test_a_teacher_that_knows_nothing_is_refused_and_no_student_is_trained(words, small, tiny_model):
    with pytest.raises(InputError, match=r"^evaluate\.teacher: [^\n]*$"):
        run(words, *WORDS, f"evaluate.teacher={tiny_model}")


@pytest.mark.slow
def test_views_of_the_product_have_the_answers_of_its_teacher(words, small):
    more = *WORDS, "export.soft_labels=3"
    made = run(words, *more)
    images = load_distilled(made.distilled)
    views, labels = images.views(), images.soft_labels
    assert labels.shape == (len(images), 3, 3)
    assert labels.dtype == torch.float16
    assert len(views) == 3 * len(images)

    _, answer = teacher_of(context_of(words, *more))
    shown = torch.stack([torch.from_numpy(np.asarray(view).copy()).permute(2, 0, 1) for view, _ in views])
    expected = torch.cat(list(predict_batches(answer, shown, get_protocol("soft-32"), "cpu")))
    torch.testing.assert_close(torch.stack([logits for _, logits in views]), expected, atol=2e-3, rtol=2e-3)
    assert len({view.tobytes() for view, _ in views}) > 2 * len(images)  # others than the image itself
    card = open_directory(made.distilled).read("README.md").decode()
    assert "3 views" in card
    assert "soft-32-teacher-v3/convnet3-w8" in card


def test_a_set_without_soft_labels_says_so(finished_run):
    images = load_distilled(finished_run[1].distilled)
    assert images.soft_labels is None
    with pytest.raises(InputError, match=r"export\.soft_labels=K"):
        images.views()
