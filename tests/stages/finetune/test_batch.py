"""Training batches: the stored values, read from the local disk instead of memory."""

import tracemalloc

import numpy as np
import pyarrow as pa
import pytest
import torch

from ims3_ray.config.sections import Finetune
from ims3_ray.method import seeding
from ims3_ray.method.schedule import NUM_TRAIN_TIMESTEPS, grid_index_below, inversion_grid
from ims3_ray.method.seeding import generator, normal
from ims3_ray.stages.finetune.batch import LatentDataset, LatentSource
from ims3_ray.storage import schemas
from ims3_ray.storage.artifacts import complete, open_directory

SETTINGS, POINTS, SEED = Finetune(epochs=2, batch_size=4, micro_batches=2), 3, 5


pytestmark = pytest.mark.usefixtures("own_tempdir")


def source(folder, num_parts=3, rows=5, side=2, mirror=True):
    """Latents and inversions of random images, in parts."""
    numbers = np.random.default_rng(0)
    folders = [open_directory(f"{folder}/{noun}") for noun in ("latents", "inversions")]
    for part in range(num_parts):
        ids = np.array([f"{part}-{row}" for row in range(rows)], object)
        keys = {"image_id": ids, "label": numbers.integers(0, 3, rows)}
        z, inverted = dict(keys), dict(keys)
        for view in ("", "mirror_") if mirror else ("",):
            for name in ("mean", "logvar"):
                z[view + name] = numbers.normal(size=(rows, 4, side, side)).astype(np.float16)
            shape = (rows, POINTS, 4, side, side)
            inverted[f"{view}inversion"] = numbers.normal(size=shape).astype(np.float16)
        kinds = (schemas.MIRRORED_LATENTS, schemas.MIRRORED_INVERSIONS)
        kinds = kinds if mirror else (schemas.LATENTS, schemas.INVERSIONS)
        for place, columns, table in zip(folders, (z, inverted), kinds, strict=True):
            place.write(f"part-{part:05d}.parquet", schemas.to_parquet(columns, table))
    for place in folders:
        complete(place, {"rows": num_parts * rows})
    return LatentSource(*folders, mirror=mirror, points=POINTS, model_labels=[7, 8, 9])


def all_in_memory(stored):
    """Read all columns at once."""
    from ims3_ray.storage.rows import read_rows

    z = read_rows(stored.latents, schemas.MIRRORED_LATENTS if stored.mirror else schemas.LATENTS)
    kind = schemas.MIRRORED_INVERSIONS if stored.mirror else schemas.INVERSIONS
    return z | read_rows(stored.inversions, kind)


def assert_rows_equal(part, batch, positions):
    for name, values in vars(part).items():
        assert torch.equal(values, getattr(batch, name)[positions.start : positions.stop]), name


@pytest.mark.parametrize("mirror", [True, False])
def test_a_batch_has_the_same_bits_as_with_all_images_in_memory(tmp_path, mirror):
    stored = source(tmp_path, mirror=mirror)
    images, held = LatentDataset(stored, SETTINGS, SEED), all_in_memory(stored)
    for step in range(6):
        batch, rows = images.draw(step, range(4)), images.rows(step)
        own = [generator("finetune", SEED, step, position) for position in range(4)]
        flips = torch.stack([torch.rand(2, generator=g) for g in own]).double()[:, 0] < 0.5
        t = torch.stack([torch.randint(1, NUM_TRAIN_TIMESTEPS, (), generator=g) for g in own])
        noise = normal(own, (2, 4, 2, 2))
        k = grid_index_below(t, inversion_grid(POINTS))
        views = ["mirror_" if flip and mirror else "" for flip in flips]

        def pick(column, *place, rows=rows, views=views):
            values = [held[view + column][row] for view, row in zip(views, rows, strict=True)]
            values = [v[p] for v, p in zip(values, *place, strict=True)] if place else values
            return torch.from_numpy(np.stack(values)).float()

        assert torch.equal(batch.z0, pick("mean") + (0.5 * pick("logvar")).exp() * noise[:, 0])
        assert torch.equal(batch.eps, noise[:, 1])
        assert torch.equal(batch.inverted, pick("inversion", (k - 1).clamp_min(0).tolist()))
        assert batch.label.tolist() == [7 + held["label"][row] for row in rows]
        assert images.num_matched(step) == batch.matched.sum()
        for half in (range(2), range(2, 4)):
            assert_rows_equal(images.draw(step, half), batch, half)
    images.close()


def test_the_permutation_is_drawn_once_per_epoch(tmp_path, monkeypatch):
    drawn, real = [], seeding.permutation
    monkeypatch.setattr(seeding, "permutation", lambda *key: drawn.append(key[-1]) or real(*key))
    images = LatentDataset(source(tmp_path), SETTINGS, SEED)
    taken = [images.rows(step).tolist() for step in range(6) for _ in range(4)]
    assert drawn == [0, 1]
    images.rows(0)
    assert [images.rows(step).tolist() for step in range(6)] == taken[::4]
    for epoch in (taken[:12:4], taken[12::4]):  # 3 batches of 4 among 15 images
        assert len({row for batch in epoch for row in batch}) == 12


@pytest.mark.slow
def test_memory_does_not_grow_with_the_data_set(tmp_path):
    peaks, sizes = [], []
    for count in (6, 60):
        stored = source(tmp_path / str(count), count, rows=20, side=16)
        before = pa.total_allocated_bytes()
        tracemalloc.start()
        images = LatentDataset(stored, SETTINGS, SEED)
        for step in range(0, 5 * count, 7):
            images.draw(step, range(4))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert pa.total_allocated_bytes() == before
        sizes.append(sum(path.stat().st_size for path in tmp_path.rglob("*.bin")))
        images.close()
    assert sizes[1] == 10 * sizes[0] > 10**7
    assert peaks[1] - peaks[0] < 0.01 * (sizes[1] - sizes[0])  # names of parts, places of images


def test_inversions_of_other_images_are_refused(tmp_path):
    stored = source(tmp_path)
    other = source(tmp_path / "other", rows=5)
    swapped = other.inversions.read("part-00001.parquet")
    stored.inversions.write("part-00002.parquet", swapped)
    complete(stored.inversions, {"rows": 15})
    with pytest.raises(AssertionError, match="other images"):
        LatentDataset(stored, SETTINGS, SEED)
