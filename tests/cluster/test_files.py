"""The files in `cluster/`: their own validators accept them, and properties that those do not check."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
import tomllib
import zipfile
from functools import partial
from pathlib import Path

import jsonschema
import pytest
import ray
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from ray.autoscaler._private.node_provider_availability_tracker import NodeAvailabilitySummary
from ray.dashboard.modules.reporter.reporter_agent import METRICS_GAUGES

from ims3_ray.cluster.metrics_actor import GAUGES
from ims3_ray.cluster.resources import find_machine
from ims3_ray.config.load import load_config, parse_overrides, recipe_names
from ims3_ray.config.settings import Workers
from ims3_ray.errors import InputError

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "cluster"
AWS, RAYJOB, DOCKERFILE = (FOLDER / name for name in ("aws.yaml", "rayjob.yaml", "Dockerfile"))
FILES = [path for path in FOLDER.iterdir() if path.is_file()]
SECRETS = (
    r"AKIA|ASIA|SECRET_ACCESS|ACCESS_KEY_ID|SESSION_TOKEN|PRIVATE KEY|\.pem\b|AUTH_TOKEN=|password\s*[:=]"
    "|secretKeyRef"
)
UNITS = {"gb": 10**9, "Gi": 2**30}
GROWING_CLUSTER = """
import sys
from ray.cluster_utils import Cluster
store = {"object_store_memory": 80 * 2**20}
nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "num_gpus": 1, **store})
print("at", nodes.address, flush=True)
for _ in sys.stdin:
    nodes.add_node(num_cpus=1, num_gpus=1, **store)
nodes.shutdown()
"""  # a process of its own, since Ray reads RAY_AUTH_MODE only once

WAITING = """
import ray, time
from ims3_ray.cluster.resources import connect, find_machine
from ims3_ray.config.settings import Workers
connect()
found = find_machine(Workers(gpus=2, wait_s=60))
while ray.available_resources().get("GPU") != found.gpus:  # the placement group is released soon
    time.sleep(0.2)
print(found.device, found.gpus)
"""


@pytest.fixture(scope="module")
def aws():
    return yaml.safe_load(AWS.read_text())


@pytest.fixture(scope="module")
def workers(aws):
    return {name: node for name, node in aws["available_node_types"].items() if name != aws["head_node_type"]}


@pytest.fixture(scope="module")
def documents():
    return list(yaml.safe_load_all(RAYJOB.read_text()))


@pytest.fixture(scope="module")
def job(documents):
    (found,) = (document for document in documents if document["kind"] == "RayJob")
    return found


@pytest.fixture(scope="module")
def cluster(job):
    return job["spec"]["rayClusterSpec"]


@pytest.fixture(scope="module")
def pods(job, cluster):
    templates = {group["groupName"]: group["template"] for group in cluster["workerGroupSpecs"]}
    templates["submitter"] = job["spec"]["submitterPodTemplate"]
    templates["head"] = cluster["headGroupSpec"]["template"]
    return {name: template["spec"] for name, template in templates.items()}


@pytest.fixture(scope="module")
def containers(pods):
    return {name: pod["containers"][0] for name, pod in pods.items()}


@pytest.fixture(scope="module")
def docker_lines():
    """The Dockerfile's instructions, with continued lines joined."""
    text = re.sub(r"^#.*\n", "", DOCKERFILE.read_text(), flags=re.M).replace("\\\n", " ")
    return [line.split(maxsplit=1) for line in text.splitlines() if line.strip()]


def start_command(aws, role):
    (line,) = (line for line in aws[f"{role}_start_ray_commands"] if "ray start" in line)
    return line


def option(words, name):
    (value,) = re.findall(rf"{re.escape(name)}[= ](\S+)", words)
    return value


def size(text):
    number, unit = re.fullmatch(r"(\d+)(\w+)", text).groups()
    return int(number) * UNITS[unit]


def options(aws, role):
    return " ".join(aws["docker"]["run_options"] + aws["docker"][f"{role}_run_options"])


def test_ray_accepts_the_aws_file(aws):
    from ray.autoscaler._private.util import prepare_config, validate_config

    prepared = prepare_config(aws)
    validate_config(prepared)
    commands = [line for name, lines in prepared.items() if name.endswith("_commands") for line in lines]
    # Ray's defaults: a nightly for Python 3.10
    assert not any("pip install" in line or "conda" in line for line in commands)


@pytest.mark.chaos
def test_ray_up_creates_no_security_group_and_no_role(tmp_path, monkeypatch):
    """Run the part of `ray up` before the head starts, on simulated EC2 and IAM."""
    import boto3
    from moto import mock_aws
    from ray.autoscaler._private.commands import _bootstrap_config
    from ray.autoscaler._private.util import prepare_config

    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "simulated")
    monkeypatch.setenv("HOME", str(tmp_path))  # Ray writes an SSH key there
    with mock_aws():
        ec2, iam = boto3.client("ec2", "us-east-1"), boto3.client("iam", "us-east-1")
        vpc = ec2.describe_vpcs()["Vpcs"][0]["VpcId"]
        group = ec2.create_security_group(GroupName="own", Description="own", VpcId=vpc)["GroupId"]
        before = ec2.describe_security_groups()["SecurityGroups"]
        for name in ("FILL_IN-head", "FILL_IN-worker"):
            iam.create_instance_profile(InstanceProfileName=name)
        filled = yaml.safe_load(AWS.read_text().replace("sg-FILL_IN", group))
        made = _bootstrap_config(prepare_config(filled), no_config_cache=True)
        assert ec2.describe_security_groups()["SecurityGroups"] == before
        assert not iam.list_roles()["Roles"]
        for node in made["available_node_types"].values():
            assert node["node_config"]["SecurityGroupIds"] == [group]
    of_gpu = {"CPU": 16, "GPU": 1, "accelerator_type:L40S": 1}
    for name, own in {"gpu_spot": of_gpu, "gpu_on_demand": of_gpu, "cpu": {"CPU": 16}}.items():
        # the declared resources are those of the instance type
        assert own.items() <= made["available_node_types"][name]["resources"].items()


def test_the_user_edits_only_the_first_block(aws):
    first, rest = AWS.read_text().split("\ncluster_name:")
    assert "FILL_IN" in first
    assert "FILL_IN" not in rest
    defined, used = (set(re.findall(rf"{mark}(\w+)", rest)) for mark in (r"&", r"\*"))
    assert set(re.findall(r"&(\w+)", first)) == used - defined
    for name in aws["metadata"]:
        assert re.search(rf"^  {name}: &{name} ", first, flags=re.M), name


def test_no_port_is_open_to_the_world(aws, cluster):
    for path in FILES:
        assert not re.search(r"0\.0\.0\.0|::/0", path.read_text()), path.name
    for name, node in aws["available_node_types"].items():
        assert node["node_config"]["SecurityGroupIds"], name
        assert not {"NetworkInterfaces", "KeyName"} & set(node["node_config"]), name
    assert "security_group" not in aws["provider"]
    assert option(start_command(aws, "head"), "--dashboard-host") == "127.0.0.1"
    (server,) = (line for line in aws["head_start_ray_commands"] if "mlflow server" in line)
    assert option(server, "--host") == "127.0.0.1"
    assert cluster["headGroupSpec"]["serviceType"] == "ClusterIP"


def test_jobs_find_the_mlflow_server(aws, containers):
    (server,) = (line for line in aws["head_start_ray_commands"] if "mlflow server" in line)
    assert f"MLFLOW_TRACKING_URI=http://127.0.0.1:{option(server, '--port')}" in options(aws, "head").split()
    assert "MLFLOW_TRACKING_URI" in {variable["name"] for variable in containers["head"]["env"]}


def test_every_process_requires_the_token(aws, cluster, containers):
    (folder,) = aws["file_mounts"]
    for role in ("head", "worker"):
        asked = {"RAY_AUTH_MODE=token", f"RAY_AUTH_TOKEN_PATH={folder}/auth_token"}
        assert asked <= set(options(aws, role).split())
    assert cluster["authOptions"] == {"mode": "token"}
    for name in ("head", "gpu"):
        assert {"name": "RAY_AUTH_MODE", "value": "token"} in containers[name]["env"]


def test_an_idle_cluster_has_no_workers(aws, workers, job, cluster):
    assert workers
    for node in workers.values():
        assert node["min_workers"] == 0 < node["max_workers"] <= aws["max_workers"]
    assert aws["available_node_types"][aws["head_node_type"]]["resources"] == {"CPU": 0}
    assert cluster["enableInTreeAutoscaling"]
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    for group in cluster["workerGroupSpecs"]:
        assert group["replicas"] == group["minReplicas"] == 0 < group["maxReplicas"]
    assert job["spec"]["shutdownAfterJobFinishes"]
    assert job["spec"]["activeDeadlineSeconds"]


def test_spot_is_tried_before_on_demand(workers):
    priorities = {True: [], False: []}
    for node in workers.values():
        if "GPU" in node["resources"]:
            priorities["InstanceMarketOptions" in node["node_config"]].append(node["priority"])
    assert min(priorities[True]) > max(priorities[False])


def test_cpu_work_gets_a_cpu_worker(workers):
    """Uses the ranking of Ray's autoscaler."""
    from ray.autoscaler._private import resource_demand_scheduler as ray_scheduler

    rank = partial(
        ray_scheduler._default_utilization_scorer,
        node_availability_summary=NodeAvailabilitySummary(node_availabilities={}),
    )
    for demand, kinds in (({"CPU": 1}, {"cpu"}), ({"GPU": 1}, {"gpu_spot", "gpu_on_demand"})):
        chosen, _ = ray_scheduler.get_nodes_for(workers, {}, "head", 1, [demand], utilization_scorer=rank)
        assert set(chosen) <= kinds
        assert chosen


def test_nodes_are_in_one_zone_and_database_and_cache_are_on_the_host(aws):
    assert "," not in aws["provider"]["availability_zone"]
    made = " ".join(aws["initialization_commands"])
    volumes = dict(v.split(":") for v in re.findall(r"--volume (\S+)", options(aws, "head")))
    assert all(host in made for host in volumes)
    database, cache = (
        option(options(aws, "head"), f"--env {n}") for n in ("MLFLOW_BACKEND_STORE_URI", "HF_HOME")
    )
    assert {str(Path(database.removeprefix("sqlite:///")).parent), cache} == set(volumes.values())
    assert cache in re.findall(r"--volume \S+:(\S+)", options(aws, "worker"))


def test_linters_accept_the_files(documents, job, pods, tmp_path):
    """hadolint, and strict Kubernetes schemas for the accounts and each pod of the job."""
    validate = pytest.importorskip("kubernetes_validate").validate
    of_pods = [
        {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": n}, "spec": p} for n, p in pods.items()
    ]
    for document in [d for d in documents if d != job] + of_pods:
        validate(document, "1.34", strict=True)
    beside_python = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    subprocess.run([shutil.which("hadolint", path=beside_python), DOCKERFILE], check=True)


def test_buckets_are_accessed_by_roles_and_no_file_has_a_key(aws, documents, pods):
    for name, node in aws["available_node_types"].items():
        assert node["node_config"]["IamInstanceProfile"], name
        assert node["node_config"]["MetadataOptions"]["HttpTokens"] == "required", name
    assert list(aws["file_mounts"]) == ["/home/ray/token"]
    accounts = {d["metadata"]["name"]: d["metadata"] for d in documents if d["kind"] == "ServiceAccount"}
    for name in ("head", "gpu"):
        assert accounts[pods[name]["serviceAccountName"]]["annotations"]["eks.amazonaws.com/role-arn"]
    # the head's may delete pods
    assert pods["head"]["serviceAccountName"] != pods["gpu"]["serviceAccountName"]
    for path in FILES:
        assert not re.search(SECRETS, path.read_text()), path.name


def test_all_files_agree_on_ray_python_and_image(aws, cluster, containers, docker_lines):
    (image,) = {aws["docker"]["image"], *(container["image"] for container in containers.values())}
    tag = image.rpartition(":")[2]
    assert dict(docker_lines)["FROM"] == f"rayproject/ray:{tag}"
    version, python, device = tag.split("-")
    assert version == ray.__version__ == cluster["rayVersion"]
    assert device == "gpu"

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (allowed,) = (r.specifier for r in map(Requirement, project["dependencies"]) if r.name == "ray")
    assert version in allowed
    assert re.sub(r"py(\d)(\d+)", r"\1.\2", python) in SpecifierSet(project["requires-python"])
    assert f"ray=={version}" in (ROOT / "constraints.txt").read_text().splitlines()
    (install,) = (rest for name, rest in docker_lines if name == "RUN")
    assert "-c constraints.txt" in install  # torch, too: bytes depend on it


def test_shared_memory_fits_the_object_store(aws, cluster, pods, containers):
    for role in ("head", "worker"):
        store = int(option(start_command(aws, role), "--object-store-memory"))
        assert store < size(option(options(aws, role), "--shm-size")), role
    for name, group in {"head": cluster["headGroupSpec"], "gpu": cluster["workerGroupSpecs"][0]}.items():
        (volume,) = (v for v in pods[name]["volumes"] if v.get("emptyDir", {}).get("medium"))
        container = containers[name]
        assert {"name": volume["name"], "mountPath": "/dev/shm"} in container["volumeMounts"]
        store, room = group["rayStartParams"]["object-store-memory"], size(volume["emptyDir"]["sizeLimit"])
        assert int(store) < room < size(container["resources"]["limits"]["memory"])


def test_the_entrypoint_is_a_valid_run(job, cluster, docker_lines):
    (home,) = (rest for name, rest in docker_lines if name == "WORKDIR")
    words = shlex.split(job["spec"]["entrypoint"])
    assert " ".join(words) == job["spec"]["entrypoint"]
    assert not set("&|;<>$`'\"") & set(job["spec"]["entrypoint"])
    assert words[0] == "python"
    run = words[1].removeprefix(f"{home}/")
    assert ROOT / run == ROOT / "jobs/distill.py"
    assert (ROOT / run).is_file()
    recipe = words[words.index("--recipe") + 1]
    assert recipe in recipe_names()
    config = load_config(recipe, parse_overrides(words[words.index(recipe) + 1 :]))
    most = sum(group["maxReplicas"] for group in cluster["workerGroupSpecs"])
    assert 0 < config.workers.gpus <= most
    assert all(place.startswith("s3://") for place in (config.storage, config.data.train, config.data.test))


def test_the_rayjob_has_only_fields_of_kuberay(job):
    schema = json.loads((Path(__file__).with_name("rayjob.schema.json")).read_text())
    validator = jsonschema.Draft202012Validator(schema)
    validator.check_schema(schema)
    assert [f"{error.json_path}: {error.message}" for error in validator.iter_errors(job)] == []
    assert not validator.is_valid(job | {"spec": job["spec"] | {"entryPoint": "true"}})


def test_pods_are_not_root_and_declare_their_resources(cluster, pods, containers):
    guarded = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    for name, pod in pods.items():
        context, resources = pod["securityContext"], containers[name]["resources"]
        assert context["runAsNonRoot"]
        assert context["runAsUser"] > 0
        assert context["seccompProfile"]["type"] == "RuntimeDefault"
        assert containers[name]["securityContext"] == guarded, name
        assert {"cpu", "memory"} <= set(resources["requests"]) & set(resources["limits"]), name
        assert "ephemeral-storage" in resources["limits"], name
        assert resources["limits"].get("nvidia.com/gpu", 0) == (
            "nvidia.com/gpu.product" in pod.get("nodeSelector", {})
        )
    assert pods["gpu"]["nodeSelector"]
    assert cluster["autoscalerOptions"]["securityContext"] == guarded


def test_the_image_has_the_code_and_is_not_root(docker_lines):
    users = [rest for name, rest in docker_lines if name == "USER"]
    assert users
    assert all(int(user.partition(":")[0]) > 0 for user in users)
    assert not {name for name, _ in docker_lines} & {"ARG", "ENV", "ADD"}  # which could hold a secret
    (install,) = (rest for name, rest in docker_lines if name == "RUN")
    assert "." in shlex.split(install)
    assert not {"-e", "--editable"} & set(shlex.split(install))
    sources = [word for name, rest in docker_lines if name == "COPY" for word in rest.split()[1:-1]]
    assert {"pyproject.toml", "constraints.txt", "ims3_ray", "jobs"} <= set(sources)
    assert all((ROOT / source).exists() for source in sources)
    ignored = (FOLDER / "Dockerfile.dockerignore").read_text().split("\n")
    assert "*" in ignored
    assert {line[1:] for line in ignored if line.startswith("!")} == set(sources)


def test_a_submitted_job_sends_only_code_and_recipes(tmp_path):
    """Other files of the checkout, such as models, are not sent."""
    from ray._private.runtime_env.packaging import create_package

    for name in ("ims3_ray", "jobs"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in (".rayignore", ".gitignore"):
        shutil.copy(ROOT / name, tmp_path)
    code = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    for name in ("my-model/transformer/model.safetensors", "weights/a.pt", "docs/a.png", "mine.yaml"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    create_package(str(tmp_path), tmp_path / "sent.zip", include_gitignore=True)
    with zipfile.ZipFile(tmp_path / "sent.zip") as sent:
        files = {name for name in sent.namelist() if not name.endswith("/")}
    assert files == {name for name in code if not name.startswith(".")} | {"mine.yaml"}


@pytest.mark.chaos
def test_a_run_starts_once_the_requested_gpus_are_there(tmp_path):
    (tmp_path / "auth_token").write_text("ab" * 32 + "\n")  # like the README's command
    env = os.environ | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": f"{tmp_path}/auth_token"}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    pipes |= {"env": env, "text": True}
    with subprocess.Popen([sys.executable, "-c", GROWING_CLUSTER], **pipes) as nodes:
        env["RAY_ADDRESS"] = next(line for line in nodes.stdout if line.startswith("at ")).split()[1]
        waiting = subprocess.Popen([sys.executable, "-c", WAITING], **pipes)
        try:
            time.sleep(5)  # one is there
            assert waiting.poll() is None
            nodes.stdin.write("one more\n")
            nodes.stdin.flush()
            assert waiting.communicate(timeout=90)[0] == "cuda 2\n"
        finally:
            waiting.kill()
            nodes.stdin.close()


def test_missing_gpus_are_an_error_with_the_present_number(ray_cluster):
    there = int(ray_cluster.cluster_resources().get("GPU", 0))
    with pytest.raises(InputError, match=f"^workers.gpus: the cluster has {there} of {there + 1} free after"):
        find_machine(Workers(gpus=there + 1, wait_s=1))


def test_the_dashboard_queries_exported_metrics_by_their_labels():
    dashboard = json.loads((FOLDER / "grafana.json").read_text())
    asked = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    ours = {name for text in asked for name in re.findall(r"ray_(ims3_\w+)", text)}
    assert ours == set(GAUGES)
    others = {name for text in asked for name in re.findall(r"ray_(node_\w+)", text)}
    assert others <= set(METRICS_GAUGES)
    grouped = {group for text in asked for group in re.findall(r"by \(([^)]*)\)", text)}
    assert grouped <= {"run, stage, unit", "instance"}
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(ids) == len(set(ids))
