"""The files in `cluster/`: their own validators accept them, and properties that those do not check."""

import json
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import threading
import tomllib
from contextlib import nullcontext
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import jsonschema
import pytest
import ray
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from processes import ROOT
from ray.core.generated.autoscaler_pb2 import DrainNodeReason
from ray.dashboard.modules.reporter.reporter_agent import METRICS_GAUGES

from ims3_ray.cluster.metrics_actor import GAUGES
from ims3_ray.cluster.tasks import WAITING_CPUS
from ims3_ray.config.load import load_config, parse_overrides, recipe_names

FOLDER = ROOT / "cluster"
aws_setup = SimpleNamespace(**runpy.run_path(str(FOLDER / "aws_setup.py")))
TEXTS = {path.name: path.read_text() for path in FOLDER.iterdir() if path.is_file()}
SECRETS = (
    r"AKIA|ASIA|SECRET_ACCESS|ACCESS_KEY_ID|SESSION_TOKEN|PRIVATE KEY|\.pem\b|AUTH_TOKEN=|password\s*[:=]"
    "|secretKeyRef"
)
UNITS = {"gb": 10**9, "Gi": 2**30}

AWS = yaml.safe_load(TEXTS["aws.yaml"])
NODES = AWS["available_node_types"]
WORKERS = {name: node for name, node in NODES.items() if name != AWS["head_node_type"]}
DOCKER = AWS["docker"]
OPTIONS = {r: " ".join(DOCKER["run_options"] + DOCKER[f"{r}_run_options"]) for r in ("head", "worker")}
MLFLOW = next(line for line in AWS["head_start_ray_commands"] if "mlflow server" in line)

DOCUMENTS = list(yaml.safe_load_all(TEXTS["rayjob.yaml"]))
JOB = next(document for document in DOCUMENTS if document["kind"] == "RayJob")
CLUSTER = JOB["spec"]["rayClusterSpec"]
HEAD, GROUPS = CLUSTER["headGroupSpec"], CLUSTER["workerGroupSpecs"]
TEMPLATES = {"submitter": JOB["spec"]["submitterPodTemplate"], "head": HEAD["template"]}
TEMPLATES |= {group["groupName"]: group["template"] for group in GROUPS}
PODS = {name: template["spec"] for name, template in TEMPLATES.items()}
CONTAINERS = {name: pod["containers"][0] for name, pod in PODS.items()}

DOCKERFILE = re.sub(r"^#.*\n", "", TEXTS["Dockerfile"], flags=re.M).replace("\\\n", " ")
INSTRUCTIONS = [line.split(maxsplit=1) for line in DOCKERFILE.splitlines() if line.strip()]


def start_command(role):
    (line,) = (line for line in AWS[f"{role}_start_ray_commands"] if "ray start" in line)
    return line


def option(words, name):
    (value,) = re.findall(rf"{re.escape(name)}[= ](\S+)", words)
    return value


def size(text):
    number, unit = re.fullmatch(r"(\d+)(\w+)", text).groups()
    return int(number) * UNITS[unit]


def instructions(kind):
    return [rest for name, rest in INSTRUCTIONS if name == kind]


def test_ray_accepts_the_aws_file():
    from ray.autoscaler._private.util import prepare_config, validate_config

    prepared = prepare_config(yaml.safe_load(TEXTS["aws.yaml"]))
    validate_config(prepared)
    commands = [line for name, lines in prepared.items() if name.endswith("_commands") for line in lines]
    # Ray's defaults: a nightly for Python 3.10
    assert not any("pip install" in line or "conda" in line for line in commands)


@pytest.mark.slow
def test_an_account_is_prepared_once_and_ray_up_creates_nothing_more(tmp_path, monkeypatch):
    """On simulated AWS: the stack twice, then `ray up` until the head starts."""
    import boto3
    from moto import mock_aws
    from ray.autoscaler._private.commands import _bootstrap_config
    from ray.autoscaler._private.util import prepare_config

    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "simulated")
    monkeypatch.setenv("HOME", str(tmp_path))  # Ray writes an SSH key there
    with mock_aws():
        ec2, iam, stacks = (boto3.client(name, "us-east-1") for name in ("ec2", "iam", "cloudformation"))
        outputs, again = (aws_setup.deploy(stacks, "203.0.113.7/32") for _ in range(2))
        assert outputs == again

        def account():
            return ec2.describe_security_groups()["SecurityGroups"], iam.list_roles()["Roles"]

        before = account()
        filled = aws_setup.fill_in(TEXTS["aws.yaml"], outputs, "us-east-1", "ami-1")
        bootstrapped = _bootstrap_config(prepare_config(yaml.safe_load(filled)), no_config_cache=True)
        assert account() == before
        boto3.client("s3").head_bucket(Bucket=outputs["Bucket"])
    opened = [rule for group in before[0] for rule in group["IpPermissions"]]
    assert [r["CidrIp"] for rule in opened for r in rule["IpRanges"]] == ["203.0.113.7/32"]
    assert "FILL_IN" not in filled
    nodes = bootstrapped["available_node_types"]
    assert all(n["node_config"]["SecurityGroupIds"] == [outputs["SecurityGroup"]] for n in nodes.values())
    gpu_instance = {"CPU": 16, "GPU": 1, "accelerator_type:L40S": 1}
    for name, own in {"gpu_spot": gpu_instance, "gpu_on_demand": gpu_instance, "cpu": {"CPU": 16}}.items():
        assert own.items() <= nodes[name]["resources"].items()


@pytest.mark.parametrize(
    ("cpus", "missing"),
    [({}, None), ({aws_setup.SPOT: 0}, None), ({aws_setup.SPOT: 0, aws_setup.ON_DEMAND: 8}, "a GPU worker")],
)
def test_a_quota_that_allows_no_gpu_worker_is_named_with_the_remedy(cpus, missing):
    def get_service_quota(ServiceCode, QuotaCode):  # noqa: N803
        return {"Quota": {"Value": cpus.get(QuotaCode, 64.0)}}

    problem = pytest.raises(aws_setup.SetupError, match=f"{missing} needs 16; request")
    with problem if missing else nullcontext():
        aws_setup.check_quotas(Mock(get_service_quota=get_service_quota), "us-east-1")


def test_the_user_edits_only_the_first_block():
    first, rest = TEXTS["aws.yaml"].split("\ncluster_name:")
    assert "FILL_IN" in first
    assert "FILL_IN" not in rest
    defined, used = (set(re.findall(rf"{mark}(\w+)", rest)) for mark in (r"&", r"\*"))
    assert set(re.findall(r"&(\w+)", first)) == used - defined
    assert not [n for n in AWS["metadata"] if not re.search(rf"^  {n}: &{n} ", first, flags=re.M)]


def test_no_port_is_open_to_the_world():
    assert not [name for name, text in TEXTS.items() if "::/0" in text]  # nor 0.0.0.0: tests/test_secrets.py
    for node in NODES.values():
        assert node["node_config"]["SecurityGroupIds"]
        assert node["node_config"]["InstanceInitiatedShutdownBehavior"] == "terminate"  # by `shutdown`
        assert not {"NetworkInterfaces", "KeyName"} & set(node["node_config"])
    assert "security_group" not in AWS["provider"]
    assert option(start_command("head"), "--dashboard-host") == "127.0.0.1" == option(MLFLOW, "--host")
    assert HEAD["serviceType"] == "ClusterIP"


def test_jobs_find_the_mlflow_server():
    address = f"http://127.0.0.1:{option(MLFLOW, '--port')}"
    assert f"MLFLOW_TRACKING_URI={address}" in OPTIONS["head"].split()
    assert "MLFLOW_TRACKING_URI" in {variable["name"] for variable in CONTAINERS["head"]["env"]}


def test_every_process_requires_the_token():
    (folder,) = AWS["file_mounts"]
    for words in OPTIONS.values():
        assert {"RAY_AUTH_MODE=token", f"RAY_AUTH_TOKEN_PATH={folder}/auth_token"} <= set(words.split())
    assert CLUSTER["authOptions"] == {"mode": "token"}
    for name in ("head", "gpu"):
        assert {"name": "RAY_AUTH_MODE", "value": "token"} in CONTAINERS[name]["env"]


def test_an_idle_cluster_has_no_workers():
    assert WORKERS
    for node in WORKERS.values():
        assert node["min_workers"] == 0 < node["max_workers"] <= AWS["max_workers"]
    assert NODES[AWS["head_node_type"]]["resources"] == {"CPU": 0}
    assert CLUSTER["enableInTreeAutoscaling"]
    assert HEAD["rayStartParams"]["num-cpus"] == "0"
    for group in GROUPS:
        assert group["replicas"] == group["minReplicas"] == 0 < group["maxReplicas"]
    assert JOB["spec"]["shutdownAfterJobFinishes"]
    assert JOB["spec"]["activeDeadlineSeconds"]


@pytest.mark.parametrize(
    ("count", "resource", "kinds"),
    [(int(WAITING_CPUS), "CPU", {"cpu"}), (64, "CPU", {"cpu", "gpu_spot"}), (2, "GPU", {"gpu_spot"})],
)
def test_cpu_work_in_flight_starts_no_gpu_node(count, resource, kinds):
    """With the scheduler that `ray up` uses; 64 tasks at once would start nodes with GPUs."""
    from ray.autoscaler._private.util import prepare_config
    from ray.autoscaler.v2.instance_manager.config import AutoscalingConfig
    from ray.autoscaler.v2.scheduler import ResourceDemandScheduler, SchedulingRequest
    from ray.autoscaler.v2.utils import ResourceRequestUtil as Requests

    config = AutoscalingConfig(prepare_config(AWS | {"file_mounts": {}}))
    request = SchedulingRequest(
        disable_launch_config_check=True,
        node_type_configs=config.get_node_type_configs(),
        max_num_nodes=config.get_max_num_worker_nodes(),
        resource_requests=Requests.group_by_count([Requests.make({resource: 1})] * count),
    )
    launches = ResourceDemandScheduler(Mock()).schedule(request).to_launch
    assert {launch.instance_type for launch in launches} == kinds


def test_a_spot_notice_drains_the_node(tmp_path):
    """A server like EC2; `ray` is a script that keeps its words."""

    class Metadata(BaseHTTPRequestHandler):
        answers = iter([404, 200])

        def answer(self, status, body=b""):
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body)

        def do_PUT(self):
            self.answer(200, b"key")

        def do_GET(self):
            self.answer(next(self.answers) if self.headers["X-aws-ec2-metadata-token"] == "key" else 401)

    (tmp_path / "ray").write_text(f'#!/bin/sh\necho "$RAY_ADDRESS $@" > {tmp_path}/words')
    (tmp_path / "ray").chmod(0o700)
    (command,) = (line for line in AWS["worker_start_ray_commands"] if "drain" in line)
    with ThreadingHTTPServer(("127.0.0.1", 0), Metadata) as server:
        threading.Thread(target=server.serve_forever).start()
        command = command.replace("169.254.169.254", f"127.0.0.1:{server.server_port}").rstrip("& \n")
        env = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "RAY_HEAD_IP": "10.0.0.1"}
        subprocess.run(["bash", "-c", command.replace("sleep 5", "sleep 0.1")], env=env, timeout=60)
        server.shutdown()
    words = (tmp_path / "words").read_text()
    assert words.startswith("10.0.0.1:6379 drain-node --address=10.0.0.1:6379 ")
    assert DrainNodeReason.Value(option(words, "--reason"))


def test_nodes_are_in_one_zone_and_database_and_cache_are_on_the_host():
    assert "," not in AWS["provider"]["availability_zone"]
    made = " ".join(AWS["initialization_commands"])
    volumes = dict(v.split(":") for v in re.findall(r"--volume (\S+)", OPTIONS["head"]))
    scratch = option(OPTIONS["worker"], "--env TMPDIR")
    ((host, _),) = [v for v in re.findall(r"--volume (\S+):(\S+)", OPTIONS["worker"]) if v[1] == scratch]
    assert all(host in made for host in (*volumes, host))
    database, cache = (option(OPTIONS["head"], f"--env {n}") for n in ("MLFLOW_BACKEND_STORE_URI", "HF_HOME"))
    assert {str(Path(database.removeprefix("sqlite:///")).parent), cache} == set(volumes.values())
    assert cache in re.findall(r"--volume \S+:(\S+)", OPTIONS["worker"])


@pytest.mark.slow  # CI installs the linters before the slow tests
def test_linters_accept_the_files():
    """Kubernetes' schemas accept the documents and the job's pods."""
    validate = pytest.importorskip("kubernetes_validate").validate
    pods = [{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": n}, "spec": p} for n, p in PODS.items()]
    for document in [d for d in DOCUMENTS if d != JOB] + pods:
        validate(document, "1.34", strict=True)
    beside_python = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    for tool, file in ("hadolint", "Dockerfile"), ("cfn-lint", "aws-account.yaml"):
        subprocess.run([shutil.which(tool, path=beside_python), FOLDER / file], check=True)
    if promtool := shutil.which("promtool"):
        subprocess.run([promtool, "check", "config", FOLDER / "prometheus.yml"], check=True)


def test_buckets_are_accessed_by_roles_and_no_file_has_a_key():
    for node in NODES.values():
        assert node["node_config"]["IamInstanceProfile"]
        assert node["node_config"]["MetadataOptions"]["HttpTokens"] == "required"
    assert list(AWS["file_mounts"]) == ["/home/ray/token"]
    accounts = {d["metadata"]["name"]: d["metadata"] for d in DOCUMENTS if d["kind"] == "ServiceAccount"}
    head, gpu = (PODS[name]["serviceAccountName"] for name in ("head", "gpu"))
    assert head != gpu  # the head's may delete pods
    assert all(accounts[name]["annotations"]["eks.amazonaws.com/role-arn"] for name in (head, gpu))
    assert not [name for name, text in TEXTS.items() if re.search(SECRETS, text)]


def test_all_files_agree_on_ray_python_and_image():
    (image,) = {AWS["docker"]["image"], *(container["image"] for container in CONTAINERS.values())}
    tag = image.rpartition(":")[2]
    assert instructions("FROM") == [f"rayproject/ray:{tag}"]
    version, python, device = tag.split("-")
    assert version == ray.__version__ == CLUSTER["rayVersion"]
    assert device == "gpu"

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (allowed,) = (r.specifier for r in map(Requirement, project["dependencies"]) if r.name == "ray")
    assert version in allowed
    assert re.sub(r"py(\d)(\d+)", r"\1.\2", python) in SpecifierSet(project["requires-python"])
    assert f"ray=={version}" in (ROOT / "constraints.txt").read_text().splitlines()
    (install,) = instructions("RUN")
    assert "-c constraints.txt" in install  # torch, too: bytes depend on it


def test_shared_memory_fits_the_object_store():
    for role, words in OPTIONS.items():
        assert int(option(start_command(role), "--object-store-memory")) < size(option(words, "--shm-size"))
    for name, group in {"head": HEAD, "gpu": GROUPS[0]}.items():
        (volume,) = (v for v in PODS[name]["volumes"] if v.get("emptyDir", {}).get("medium"))
        assert {"name": volume["name"], "mountPath": "/dev/shm"} in CONTAINERS[name]["volumeMounts"]
        store, room = group["rayStartParams"]["object-store-memory"], size(volume["emptyDir"]["sizeLimit"])
        assert int(store) < room < size(CONTAINERS[name]["resources"]["limits"]["memory"])


def test_the_entrypoint_is_a_valid_run():
    entrypoint, (home,) = JOB["spec"]["entrypoint"], instructions("WORKDIR")
    python, script, option_name, recipe, *words = shlex.split(entrypoint)
    assert " ".join(shlex.split(entrypoint)) == entrypoint
    assert not set("&|;<>$`'\"") & set(entrypoint)
    assert (python, option_name) == ("python", "--recipe")
    assert script.removeprefix(f"{home}/") == "jobs/distill.py"
    assert (ROOT / "jobs/distill.py").is_file()
    assert recipe in recipe_names()
    config = load_config(recipe, parse_overrides(words))
    (gpus,) = (group["maxReplicas"] for group in GROUPS if group["groupName"] == "gpu")
    assert 0 < config.workers.gpus <= gpus
    assert all(place.startswith("s3://") for place in (config.storage, config.data.train, config.data.test))


def test_the_rayjob_has_only_fields_of_kuberay():
    schema = json.loads(Path(__file__).with_name("rayjob.schema.json").read_text())
    validator = jsonschema.Draft202012Validator(schema)
    validator.check_schema(schema)
    assert list(validator.iter_errors(JOB)) == []
    assert not validator.is_valid(JOB | {"spec": JOB["spec"] | {"entryPoint": "true"}})


def test_other_namespaces_reach_no_pod_and_the_node_autoscaler_evicts_none():
    (policy,) = (document["spec"] for document in DOCUMENTS if document["kind"] == "NetworkPolicy")
    own = policy["podSelector"]["matchLabels"].items()
    assert policy["policyTypes"] == ["Ingress"]
    assert {"podSelector": policy["podSelector"]} in policy["ingress"][0]["from"]
    for template in TEMPLATES.values():
        assert own <= template["metadata"]["labels"].items()
        assert template["metadata"]["annotations"] == {
            "cluster-autoscaler.kubernetes.io/safe-to-evict": "false"
        }


def test_pods_are_not_root_and_declare_their_resources():
    guarded = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    for name, pod in PODS.items():
        context, resources = pod["securityContext"], CONTAINERS[name]["resources"]
        assert context["runAsNonRoot"]
        assert context["runAsUser"] > 0
        assert context["seccompProfile"]["type"] == "RuntimeDefault"
        assert CONTAINERS[name]["securityContext"] == guarded, name
        assert {"cpu", "memory"} <= set(resources["requests"]) & set(resources["limits"]), name
        assert "ephemeral-storage" in resources["limits"], name
        selects_gpu = "nvidia.com/gpu.product" in pod.get("nodeSelector", {})
        assert resources["limits"].get("nvidia.com/gpu", 0) == selects_gpu
    assert PODS["gpu"]["nodeSelector"]
    assert CLUSTER["autoscalerOptions"]["securityContext"] == guarded


def test_the_image_has_the_code_and_is_not_root():
    users = instructions("USER")
    assert users
    assert all(int(user.partition(":")[0]) > 0 for user in users)
    assert not {name for name, _ in INSTRUCTIONS} & {"ARG", "ENV", "ADD"}  # which could hold a secret
    (install,) = map(shlex.split, instructions("RUN"))
    assert "." in install
    assert not {"-e", "--editable"} & set(install)
    sources = {word for rest in instructions("COPY") for word in rest.split()[1:-1]}
    assert {"pyproject.toml", "constraints.txt", "ims3_ray", "jobs"} <= sources
    assert all((ROOT / source).exists() for source in sources)
    ignored = TEXTS["Dockerfile.dockerignore"].split("\n")
    assert "*" in ignored
    assert {line[1:] for line in ignored if line.startswith("!")} == sources


def test_dashboard_and_alerts_query_exported_metrics_by_their_labels():
    panels = json.loads(TEXTS["grafana.json"])["panels"]
    asked = "\n".join(target["expr"] for panel in panels for target in panel["targets"])
    asked += TEXTS["alerts.yml"]
    assert set(re.findall(r"ray_(ims3_\w+)", asked)) == set(GAUGES)
    assert set(re.findall(r"ray_(node_\w+)", asked)) <= {*METRICS_GAUGES, "node_failure_total"}
    assert set(re.findall(r"by \(([^)]*)\)", asked)) <= {"run, stage, unit", "run, stage", "instance"}
    assert len({panel["id"] for panel in panels}) == len(panels)
