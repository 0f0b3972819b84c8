"""What the tests share: shapes checked throughout the package, one Ray cluster, a tiny model and tiny images."""

from jaxtyping import install_import_hook

# Before any module of the package is imported. Left out: the selection, which takes plain numbers and checks
# them itself, and the stages, whose functions Ray replaces.
METHOD = ("coresets", "coverage", "ddim", "keys", "losses", "rng", "schedule")
CHECKED = ("data", "evaluation", "models", *(f"method.{name}" for name in METHOD))
install_import_hook([f"ims3_ray.{name}" for name in CHECKED], "typecheck.checker")

import pytest  # noqa: E402
from tiny import ACTORS, OBJECT_STORE, OTHERS, THREE, tiny_words, write_images  # noqa: E402


@pytest.fixture(scope="session")
def ray_cluster():
    """One cluster for all tests; logical CPUs = actors + 2, and an object store that no stage's data would
    fit.
    """
    import os
    import sys
    from pathlib import Path

    import ray

    from ims3_ray.cluster.machine import num_nodes

    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
    # submitted jobs run the head's python
    os.environ["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    ray.init(
        address="local",
        num_cpus=ACTORS + 2,
        object_store_memory=OBJECT_STORE,
        log_to_driver=False,
        dashboard_host="127.0.0.1",
    )
    assert num_nodes() == 1
    yield ray
    ray.shutdown()


@pytest.fixture(scope="session")
def cluster_environment(ray_cluster):
    """The variables with which another process joins the cluster, or submits a job to it."""
    context = ray_cluster.get_runtime_context()
    return {
        "RAY_ADDRESS": context.gcs_address,
        "RAY_API_SERVER_ADDRESS": f"http://{ray_cluster._private.worker.global_worker.node.webui_url}",
        "RAY_AUTH_MODE": "token",
    }


@pytest.fixture(scope="module")
def store():
    """An object store on loopback that speaks S3, with one bucket: the variables with which a process finds
    it.
    """
    from loopback_store import Store

    with Store().running() as running:
        yield running.variables


@pytest.fixture(scope="module")
def images_in_bucket(store, tiny_images):
    """The URI of `tiny_images` there."""
    from loopback_store import upload

    return upload(tiny_images)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory):
    """A model folder with random weights: DiT on 4×4 latents of 16-pixel images, three classes, and an
    extractor.
    """
    from diffusers import AutoencoderKL

    from ims3_ray.method.rng import generator
    from ims3_ray.models import classifiers
    from ims3_ray.models.dit import DiT, DiTConfig
    from ims3_ray.models.extractor import save_extractor
    from ims3_ray.models.generator import save_pipeline

    folder = tmp_path_factory.mktemp("models") / "tiny"
    config = DiTConfig(
        sample_size=4, hidden_size=32, depth=2, num_heads=2, num_classes=3, frequency_shift=1, norm_eps=1e-5
    )
    dit = DiT(config).initialize(generator("tiny-dit"), zero_outputs=False)
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(8, 8, 8),
        norm_num_groups=4,
        sample_size=16,
        scaling_factor=0.5,
    )
    draws = generator("tiny-vae")
    for parameter in vae.parameters():
        parameter.data.normal_(0, 0.1, generator=draws)
    save_pipeline(dit, vae, folder, id2label=["blue", "green", "red"])
    network = classifiers.build("convnet3", 3, 16, generator("tiny-extractor"), width=8)
    save_extractor(network, folder / "extractor", mean=(0.5,) * 3, deviation=(0.5,) * 3)
    return folder


@pytest.fixture(scope="session")
def tiny_images(tmp_path_factory):
    """`train` with 12 images a class and `test` with 4."""
    root = tmp_path_factory.mktemp("images")
    write_images(root / "train", 12, seed=0)
    write_images(root / "test", 4, seed=1)
    return root


@pytest.fixture
def imagenet_tree(tmp_path):
    """`train` and `test` with three classes of ImageWoof, and two more folders that hold garbage."""
    for split, count, seed in (("train", 12, 0), ("test", 8, 1)):
        write_images(tmp_path / split, count, seed, classes=THREE)
        for name in OTHERS:
            (tmp_path / split / name).mkdir()
            (tmp_path / split / name / "a.JPEG").write_bytes(b"no image")
    return tmp_path


@pytest.fixture
def tiny_overrides(tiny_model, tiny_images, tmp_path):
    """The words of a tiny run with a storage of its own."""
    return tiny_words(tiny_model, tiny_images, tmp_path / "runs")


@pytest.fixture(scope="session")
def finished_run(ray_cluster, tiny_model, tiny_images, tmp_path_factory):
    """The words, and what came out, of an undisturbed tiny run: one actor a pool, two shards, one Train
    worker.
    """
    from ims3_ray.config.load import load_config, parse_overrides
    from ims3_ray.jobs.distill import run as distillation

    words = tiny_words(tiny_model, tiny_images, tmp_path_factory.mktemp("finished") / "runs")
    config = load_config(
        "digits", parse_overrides([*words, "workers={actors: 1, shards: 2, train_workers: 1}"])
    )
    return words, distillation.run(config, lambda line: None)
