"""Protocols: the published numbers, and that none of them changes without a new version."""

import hashlib

import pytest
import torch

from ims3_ray.errors import InputError
from ims3_ray.evaluation.protocols import PROTOCOLS, epochs_for, get_protocol, validation_name

# Version, fingerprint, and fingerprint of the twin that scores on validation images.
# If one differs: raise the protocol's version, then pin its new fingerprints.
FINGERPRINTS = {
    "quick": (2, "61a66bc3d4ee", "34288f3d2047"),
    "minimax": (2, "d46dd120f028", "6985493d4c23"),
    "ims3": (2, "38c10fb46b67", "a3c37ce278cb"),
    "smoke": (2, "75d736910090", "9f92d317514d"),
    "dc-mnist": (1, "a93b0015cff4", "1985ebc0de82"),
    "dsa-mnist": (1, "a942063c7c8e", "9088a56ee312"),
    "dc-fashion": (1, "2e27a93b2692", "e57ec28e3834"),
    "dsa-fashion": (1, "afa78ef65b5e", "503a1d0beab9"),
    "dc-cifar10": (1, "060aa3750354", "4c1a9e16f9c2"),
    "dsa-cifar10": (1, "fc0e6234fed6", "9408db863110"),
    "soft": (3, "230811d50cd6", "14891423690c"),
    "soft-32": (3, "84d25eca9226", "42ce48ea3b21"),
    "rded-32": (2, "58cf4942750f", "e6fe842721ad"),
}


@pytest.mark.parametrize("name", sorted(PROTOCOLS))
def test_a_changed_protocol_has_a_new_version(name):
    chosen, original = get_protocol(name), name.removesuffix("-val")
    version, *digests = FINGERPRINTS[original]
    digest = hashlib.sha256(chosen.model_dump_json().encode()).hexdigest()[:12]
    assert (version, digests[name != original]) == (chosen.version, digest)


def test_epochs_are_the_published_ones():
    ipcs = (1, 2, 10, 11, 50, 51, 200, 201, 500, 501)
    ten = [3000, 2000, 2000, 1500, 1500, 1000, 1000, 500, 500, 300]
    assert [epochs_for(ipc, 10) for ipc in ipcs] == ten
    assert [epochs_for(ipc, 100) for ipc in (1, 10, 50, 100, 500, 600)] == [2000, 1300, 1000, 600, 300, 200]
    assert [epochs_for(ipc, 1000) for ipc in (1, 10, 50)] == [3000, 2000, 1500]
    with pytest.raises(InputError, match=r"^ipc: .* not 0"):
        epochs_for(0, 10)


def test_more_than_100_classes_train_faster_and_with_less_decay():
    few, many = (get_protocol("minimax").budget(10, classes) for classes in (100, 1000))
    assert (few.batch_size, few.learning_rate, few.weight_decay) == (64, 0.01, 5e-4)
    assert (many.batch_size, many.learning_rate, many.weight_decay) == (128, 0.1, 1e-4)


def test_quick_takes_the_same_steps_whatever_the_set():
    quick = get_protocol("quick")
    (budget,) = {quick.budget(ipc, classes) for ipc, classes in ((1, 10), (350, 10), (10, 1000))}
    assert (budget.steps, quick.image_size, quick.width) == (150, 32, 32)


def test_labels_name_protocol_version_and_network():
    labels = {
        ("quick", None): "quick-v2/convnet3-w32",
        ("minimax", None): "minimax-v2/resnetap10",
        ("minimax", "convnet6"): "minimax-v2/convnet6",
        ("dc-cifar10", "timm:resnet18"): "dc-cifar10-v1/timm:resnet18-small1",
        ("minimax", "timm:resnet18"): "minimax-v2/timm:resnet18",
        ("quick", "resnet8"): "quick-v2/resnet8",
    }
    assert {case: get_protocol(case[0], network=case[1]).label for case in labels} == labels
    assert get_protocol("quick", network="convnet3") == get_protocol("quick")


def test_networks_of_quick_have_the_learning_rates_that_validation_chose_and_other_protocols_their_own():
    rates = {"convnet3": 0.1, "convnet4": 0.1, "resnet8": 0.3, "mlp": 0.03}
    for name in ("quick", "quick-val"):
        assert {n: get_protocol(name, network=n).learning_rate for n in rates} == rates
    assert get_protocol("minimax", network="resnet8").learning_rate == get_protocol("minimax").learning_rate


def test_unknown_names_are_refused_with_the_choices():
    with pytest.raises(InputError, match=r"^protocol: 'fast' .*quick, minimax, ims3"):
        get_protocol("fast")
    with pytest.raises(InputError, match=r"^network: 'vgg' .*convnet3, convnet6"):
        get_protocol("minimax", network="vgg")


def test_a_timm_network_sees_what_the_protocol_shows():
    for name, network in (("dc-fashion", "timm:test_vit"), ("quick", "timm:test_efficientnet")):
        rules = get_protocol(name, network=network)
        image = torch.zeros(2, rules.channels, rules.image_size, rules.image_size)
        assert rules.build(7)(image).shape == (2, 7)
    with pytest.raises(InputError, match="resnet18"):
        get_protocol("quick", network="timm:resnet19")


def test_every_protocol_has_a_twin_that_scores_on_validation_images_and_differs_in_nothing_else():
    for name in ("quick", "minimax", "ims3", "soft-32", "smoke"):
        twin = get_protocol(validation_name(name))
        assert (get_protocol(name).split, twin.split) == ("test", "validation")
        assert validation_name(twin.name) == twin.name
        assert twin.model_copy(update={"name": name, "split": "test"}) == get_protocol(name)
    with pytest.raises(InputError, match="'fast'"):
        validation_name("fast")
