"""Protocols: the published numbers, and that none of them changes without a new version."""

import hashlib

import pytest
import torch
from pydantic import ValidationError

from ims3_ray.errors import InputError
from ims3_ray.evaluation.protocols import PROTOCOLS, epochs_for, get_protocol, validation_name

# Of every value of the protocol. A failure here means: raise the protocol's version, then pin its new
# fingerprint.
FINGERPRINTS = {
    ("quick", 2): "61a66bc3d4ee",
    ("quick-val", 2): "34288f3d2047",
    ("minimax", 2): "d46dd120f028",
    ("ims3", 2): "38c10fb46b67",
    ("smoke", 2): "75d736910090",
    ("minimax-val", 2): "6985493d4c23",
    ("ims3-val", 2): "a3c37ce278cb",
    ("smoke-val", 2): "9f92d317514d",
    ("dc-mnist", 1): "a93b0015cff4",
    ("dc-mnist-val", 1): "1985ebc0de82",
    ("dsa-mnist", 1): "a942063c7c8e",
    ("dsa-mnist-val", 1): "9088a56ee312",
    ("dc-fashion", 1): "2e27a93b2692",
    ("dc-fashion-val", 1): "e57ec28e3834",
    ("dsa-fashion", 1): "afa78ef65b5e",
    ("dsa-fashion-val", 1): "503a1d0beab9",
    ("dc-cifar10", 1): "060aa3750354",
    ("dc-cifar10-val", 1): "4c1a9e16f9c2",
    ("dsa-cifar10", 1): "fc0e6234fed6",
    ("dsa-cifar10-val", 1): "9408db863110",
    ("soft", 1): "799fd19ab834",
    ("soft-val", 1): "f8679b77011c",
    ("soft-32", 1): "0c985d4ecf81",
    ("soft-32-val", 1): "3a1c3e36b1a3",
}


@pytest.mark.parametrize("name", sorted(PROTOCOLS))
def test_a_changed_protocol_has_a_new_version(name):
    chosen = get_protocol(name)
    digest = hashlib.sha256(chosen.model_dump_json().encode()).hexdigest()[:12]
    assert FINGERPRINTS.get((name, chosen.version)) == digest


def test_epochs_are_the_published_ones():
    by_ipc = {
        1: 3000,
        2: 2000,
        10: 2000,
        11: 1500,
        50: 1500,
        51: 1000,
        200: 1000,
        201: 500,
        500: 500,
        501: 300,
    }
    assert {ipc: epochs_for(ipc, 10) for ipc in by_ipc} == by_ipc
    assert [epochs_for(ipc, 100) for ipc in (1, 10, 50, 100, 500, 600)] == [2000, 1300, 1000, 600, 300, 200]
    assert [epochs_for(ipc, 1000) for ipc in (1, 10, 50)] == [3000, 2000, 1500]
    with pytest.raises(InputError, match="ipc: a set needs at least 1 image per class, not 0"):
        epochs_for(0, 10)


def test_more_than_100_classes_train_faster_and_with_less_decay():
    few, many = (get_protocol("minimax").budget(10, classes) for classes in (100, 1000))
    assert (few.batch_size, few.learning_rate, few.weight_decay) == (64, 0.01, 5e-4)
    assert (many.batch_size, many.learning_rate, many.weight_decay) == (128, 0.1, 1e-4)


def test_quick_takes_the_same_steps_whatever_the_set():
    budgets = {
        get_protocol("quick").budget(ipc, classes) for ipc, classes in ((1, 10), (350, 10), (10, 1000))
    }
    assert len(budgets) == 1
    assert (budgets.pop().steps, get_protocol("quick").image_size, get_protocol("quick").width) == (
        150,
        32,
        32,
    )


def test_ims3_is_minimax_with_randaugment_and_ten_times_the_learning_rate():
    minimax, ims3 = get_protocol("minimax").model_dump(), get_protocol("ims3").model_dump()
    changed = {field for field in minimax if minimax[field] != ims3[field]}
    assert changed == {"name", "augmentations", "learning_rate"}
    randaugment = {"randaugment_ops": 1, "randaugment_magnitude": 6}
    assert ims3["augmentations"] == minimax["augmentations"] | randaugment
    assert ims3["learning_rate"] == pytest.approx(10 * minimax["learning_rate"])


def test_digits_are_never_mirrored():
    assert get_protocol("quick").augmentations.flip == 0
    assert get_protocol("quick").augmentations.jitter == 0


def test_labels_name_protocol_version_and_network():
    assert get_protocol("quick").label == "quick-v2/convnet3-w32"
    assert get_protocol("minimax").label == "minimax-v2/resnetap10"
    assert get_protocol("minimax", network="convnet6").label == "minimax-v2/convnet6"
    assert get_protocol("quick", network="convnet3") == get_protocol("quick")
    assert get_protocol("dc-cifar10", network="timm:resnet18").label == "dc-cifar10-v1/timm:resnet18-small1"
    assert get_protocol("minimax", network="timm:resnet18").label == "minimax-v2/timm:resnet18"


def test_networks_of_quick_have_the_learning_rates_that_validation_chose_and_other_protocols_their_own():
    for name in ("quick", "quick-val"):
        rates = {
            n: get_protocol(name, network=n).learning_rate for n in ("convnet3", "convnet4", "resnet8", "mlp")
        }
        assert rates == {"convnet3": 0.1, "convnet4": 0.1, "resnet8": 0.3, "mlp": 0.03}
    assert get_protocol("minimax", network="resnet8").learning_rate == get_protocol("minimax").learning_rate
    assert get_protocol("quick", network="resnet8").label == "quick-v2/resnet8"


def test_unknown_names_are_refused_with_the_choices():
    with pytest.raises(InputError, match="protocol: 'fast' is unknown; choose one of quick, minimax, ims3"):
        get_protocol("fast")
    with pytest.raises(InputError, match="network: 'vgg' is unknown; choose one of convnet3, convnet6"):
        get_protocol("minimax", network="vgg")


def test_a_timm_network_sees_what_the_protocol_shows():
    for name, network in (("dc-fashion", "timm:test_vit"), ("quick", "timm:test_efficientnet")):
        rules = get_protocol(name, network=network)
        image = torch.zeros(2, rules.channels, rules.image_size, rules.image_size)
        assert rules.build(7)(image).shape == (2, 7)
    with pytest.raises(InputError, match="similar names: resnet18"):
        get_protocol("quick", network="timm:resnet19")


def test_protocols_are_frozen_and_refuse_unknown_fields():
    with pytest.raises(ValidationError):
        get_protocol("quick").learning_rate = 1.0
    with pytest.raises(ValidationError, match="momentun"):
        type(get_protocol("quick"))(**get_protocol("quick").model_dump(), momentun=0.5)


def test_every_protocol_has_a_twin_that_scores_on_validation_images_and_differs_in_nothing_else():
    for name in ("quick", "minimax", "ims3", "soft-32", "smoke"):
        twin = get_protocol(validation_name(name))
        assert (get_protocol(name).split, twin.split) == ("test", "validation")
        assert validation_name(twin.name) == twin.name
        assert twin.model_copy(update={"name": name, "split": "test"}) == get_protocol(name)
    with pytest.raises(InputError, match="'fast' is unknown"):
        validation_name("fast")
