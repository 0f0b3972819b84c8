"""Shared fixtures: shape checks, one Ray cluster, a tiny model and images."""

from jaxtyping import install_import_hook

# Before any import of the package. Not checked: the selection, which checks plain numbers itself, the stages,
# whose functions Ray replaces, and seeding, which imports torch only in its functions.
METHOD = ("coresets", "coverage", "ddim", "losses", "refine", "schedule")
CHECKED = ("data", "evaluation", "models", *(f"method.{name}" for name in METHOD))
install_import_hook([f"ims3_ray.{name}" for name in CHECKED], "typecheck.checker")

import pytest  # noqa: E402
from tiny import ACTORS, CLASSES, OBJECT_STORE, OTHERS, THREE, tiny_words, write_images  # noqa: E402


@pytest.fixture(scope="session", autouse=True)
def empty_database():
    """Copies the first new MLflow database for all others: migrations take two seconds each."""
    import sqlite3
    import sys
    import threading

    if (
        "ims3_ray.runs.mlflow_tracker" not in sys.modules
    ):  # no test of this session uses MLflow, which takes seconds to import
        yield
        return
    from mlflow.store.db import utils

    migrate, first = utils._initialize_tables, sqlite3.connect(":memory:", check_same_thread=False)
    lock = threading.Lock()

    def initialize(engine):
        with lock:
            if is_first := not first.execute("select count(*) from sqlite_master").fetchone()[0]:
                migrate(engine)
            with engine.begin() as connection:
                new = connection.connection.driver_connection
                new.backup(first) if is_first else first.backup(new)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(utils, "_initialize_tables", initialize)
        yield


@pytest.fixture
def own_tempdir(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))


@pytest.fixture
def output(capsys):
    """output(*words): standard output of the command, which ends with exit code 0."""
    from ims3_ray.cli import main

    def output(*words, main=main):
        capsys.readouterr()
        code, (out, err) = main([*map(str, words)]), capsys.readouterr()
        assert code == 0, err
        return out

    return output


@pytest.fixture
def refused(capsys):
    """refused(*words): the command's error line, of exit code 2. Other words are printed only if `prints`."""
    from ims3_ray.cli import main

    def refused(*words, main=main, prints=False):
        capsys.readouterr()
        code, (out, err) = main([*map(str, words)]), capsys.readouterr()
        assert (code, err[:7], err.count("\n"), out > "") == (2, "error: ", 1, prints), (words, out, err)
        return err

    return refused


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A hub on loopback, which this process knows, with a token that it takes."""
    from loopback_hub import Hub

    monkeypatch.setenv("HF_TOKEN", Hub.TOKEN)
    with Hub().known(monkeypatch, tmp_path / "cache") as served:
        yield served


@pytest.fixture(scope="session")
def bucket_server():
    """An S3 server on loopback. The cluster's workers have its variables."""
    from loopback_store import Store

    return Store()


@pytest.fixture(scope="module")
def store(bucket_server):
    """The S3 server with one empty bucket; yields its variables, which this process has too."""
    with bucket_server.running():
        yield bucket_server.variables


def name_no_dashboard():
    """Without this, Ray names port 8265 even if there is no dashboard. Ray Train's cleaner would ask another
    cluster's dashboard on that port, miss its own controllers there, and remove their placement groups.
    """
    from ray._private import ray_constants
    from ray.experimental.internal_kv import _internal_kv_put

    place = {"namespace": ray_constants.KV_NAMESPACE_DASHBOARD, "overwrite": True}
    _internal_kv_put(ray_constants.DASHBOARD_ADDRESS, "127.0.0.1:9", **place)  # a port that refuses


@pytest.fixture(scope="session")
def ray_cluster(bucket_server):
    """One cluster for the session, with an object store too small for any stage's data."""
    import ray
    import warm

    with pytest.MonkeyPatch.context() as patched, warm.workers():
        patched.setenv("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
        for name, value in bucket_server.variables.items():
            patched.setenv(name, value)
        options = {"num_cpus": ACTORS + 2, "object_store_memory": OBJECT_STORE, "dashboard_host": "127.0.0.1"}
        ray.init(address="local", log_to_driver=False, include_dashboard=False, **options)
    name_no_dashboard()
    yield ray
    ray.shutdown()


@pytest.fixture(scope="session")
def cluster_environment(ray_cluster):
    """Variables by which another process joins the cluster."""
    return {"RAY_ADDRESS": ray_cluster.get_runtime_context().gcs_address, "RAY_AUTH_MODE": "token"}


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory):
    """A model folder with random weights: DiT on 4×4 latents of 16-pixel images, three classes, extractor."""
    from diffusers import AutoencoderKL

    from ims3_ray.method.seeding import generator
    from ims3_ray.models import classifiers
    from ims3_ray.models.convert import save_pipeline
    from ims3_ray.models.dit import DiT, DiTConfig
    from ims3_ray.models.extractor import save_extractor

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
    save_pipeline(dit, vae, folder, id2label=list(CLASSES))
    network = classifiers.build("convnet3", 3, 16, generator("tiny-extractor"), width=8)
    save_extractor(network, folder / "extractor", mean=(0.5,) * 3, deviation=(0.5,) * 3)
    return folder


@pytest.fixture(scope="session")
def tiny_images(tmp_path_factory):
    """`train` with 12 images per class and `test` with 4."""
    root = tmp_path_factory.mktemp("images")
    write_images(root / "train", 12, seed=0)
    write_images(root / "test", 4, seed=1)
    return root


@pytest.fixture
def imagenet_tree(tmp_path):
    """`train` and `test` with three classes of ImageWoof, and two folders without valid images."""
    for split, count, seed in (("train", 12, 0), ("test", 8, 1)):
        write_images(tmp_path / split, count, seed, classes=THREE)
        for name in OTHERS:
            (tmp_path / split / name).mkdir()
            (tmp_path / split / name / "a.JPEG").write_bytes(b"no image")
    return tmp_path


@pytest.fixture
def tiny_overrides(tiny_model, tiny_images, tmp_path):
    """Overrides of a tiny run with its own storage."""
    return tiny_words(tiny_model, tiny_images, tmp_path / "runs")


@pytest.fixture(scope="session")
def finished_run(ray_cluster, tiny_model, tiny_images, tmp_path_factory):
    """Overrides and result of an undisturbed tiny run: one actor per pool, one Train worker, two shards."""
    from planned import run

    words = tiny_words(tiny_model, tiny_images, tmp_path_factory.mktemp("finished") / "runs")
    return words, run(words, "workers={actors: 1, shards: 2, train_workers: 1}")


@pytest.fixture(scope="session")
def words(finished_run):
    """Overrides of the undisturbed tiny run, whose artefacts are there."""
    return finished_run[0]


@pytest.fixture(scope="session")
def finished_images(finished_run):
    """Checksums of the images of an undisturbed tiny run."""
    from processes import images

    return [images(finished_run[1].distilled)]
