import numpy as np
import pytest
import torch

from ims3_ray.method.seeding import generator, key_seed, normal, permutation


def test_noise_of_a_key_does_not_depend_on_the_batch_or_the_global_generator():
    before = torch.get_rng_state()
    single = normal([generator("sample", 0, "cat", 1, 2)], (4, 3, 3))
    batch = normal([generator("sample", 0, "cat", 1, k) for k in range(4)], (4, 3, 3))
    assert torch.equal(single[0], batch[2])
    assert torch.equal(before, torch.get_rng_state())


def test_different_keys_have_different_seeds():
    keys = [("a", 1), ("a", 2), ("b", 1), ("a", "1"), ("a1",), ("a", 1, 0)]
    keys += [(1, "a"), ("1", "1"), ("11",), (11,), (1, 1)]
    assert len({key_seed(*key) for key in keys}) == len(keys)


def test_seed_of_a_key_never_changes_and_a_key_of_another_type_is_refused():
    assert key_seed("sample", 0, "cat", 1, 2) == 8867794430286752854
    with pytest.raises(ValueError, match="key: "):
        key_seed("sample", True)


def test_permutation_has_every_row_once_and_depends_on_its_key():
    assert sorted(permutation(50, "epoch", 0)) == list(range(50))
    assert not np.array_equal(permutation(50, "epoch", 0), permutation(50, "epoch", 1))
