"""The tiny run that many tests share: its images, its class names, its words."""

import numpy as np
from PIL import Image

ACTORS = 3
OBJECT_STORE = 80 * 2**20  # bytes
CLASSES = ("blue", "green", "red")
THREE = ("n02086240", "n02087394", "n02088364")  # of ImageWoof, labels 155, 159, 162
OTHERS = ("n01440764", "n01443537")
TINY = [  # the digits' path on three classes of 16-pixel images, in seconds
    "data.validation=null",
    "ipc=6",
    "encode.images_per_class=8",
    "encode.batch_size={cpu: 5, cuda: 5}",
    "invert.steps=3",
    "invert.batch_size={cpu: 5, cuda: 5}",
    "finetune.epochs=2",
    "finetune.log_every=4",
    "finetune.checkpoint_every=3",
    "embed.batch_size={cpu: 7, cuda: 7}",
    "sample.subgroups=3",
    "sample.steps=3",
    "sample.batch_size={cpu: 7, cuda: 7}",
    "evaluate.protocol=smoke",
    "evaluate.neighbours=3",
    "evaluate.seeds=2",
    *("refine.steps=0", "refine.objective=gradients", "refine.real_images=null"),
    "evaluate.baselines=[random]",
    "evaluate.random_subsets=null",
    "workers.actors=2",
    "workers.shards=2",
]

MANY_IMAGES = 1200


def many_words(folder, storage):
    """The overrides of a short run on many classes. Makes their images in the folder."""
    from benchmarks.scale import make_images

    train = make_images(folder / "train", 300, MANY_IMAGES // 300, seed=0)
    test = make_images(folder / "test", 300, 2, seed=1)
    return [
        *(f"data.train={train}", f"data.test={test}", f"storage={storage}", "data.class_map=new"),
        *("ipc=2", "sample.subgroups=2", "sample.steps=2", "invert.steps=2", "finetune.epochs=1"),
        *("evaluate.protocol=smoke", "evaluate.seeds=2", "evaluate.neighbours=1", "evaluate.full=true"),
        "data.validation=null",
    ]


def tree(folder):
    """Returns {path: content} of all files below."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def write_images(folder, per_class, seed, classes=CLASSES):
    """Class folders of coloured noise, 20 pixels a side: each class has a tint of its own."""
    draws = np.random.default_rng(seed)
    for place, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for index in range(per_class):
            pixels = draws.integers(0, 128, (20, 20, 3))
            pixels[..., place % 3] += 100
            Image.fromarray(pixels.astype(np.uint8)).save(folder / name / f"{index:03d}.png")
    return folder


def tiny_words(model, images, storage):
    """The command-line overrides of a tiny run."""
    places = {"model.path": model, "embed.extractor": model, "storage": storage}
    places |= {f"data.{split}": f"{images}/{split}" for split in ("train", "test")}
    return [*TINY, *(f"{field}={place}" for field, place in places.items())]
