import numpy as np
import pytest
import torch

from ims3_ray.method.seeding import generator, key_seed, normal, permutation


def test_a_key_gives_the_same_noise_whoever_draws_beside_it():
    alone = normal([generator("sample", 0, "cat", 1, 2)], (4, 3, 3))
    among = normal([generator("sample", 0, "cat", 1, k) for k in range(4)], (4, 3, 3))
    assert torch.equal(alone[0], among[2])


def test_keys_that_differ_anywhere_give_other_seeds():
    keys = [
        ("a", 1),
        ("a", 2),
        ("b", 1),
        ("a", "1"),
        ("a1",),
        ("a", 1, 0),
        (1, "a"),
        ("1", "1"),
        ("11",),
        (11,),
        (1, 1),
    ]
    assert len({key_seed(*key) for key in keys}) == len(keys)


def test_the_seed_of_a_key_is_the_same_in_every_version():
    assert key_seed("sample", 0, "cat", 1, 2) == 8867794430286752854


def test_a_key_of_another_type_is_refused():
    with pytest.raises(ValueError, match="integers or strings"):
        key_seed("sample", True)


def test_a_permutation_holds_every_row_once_and_belongs_to_its_key():
    assert sorted(permutation(50, "epoch", 0)) == list(range(50))
    assert not np.array_equal(permutation(50, "epoch", 0), permutation(50, "epoch", 1))


def test_drawing_leaves_the_global_generator_alone():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    normal([generator("x")], (2,))
    assert torch.equal(before, torch.get_rng_state())
