"""Prepare an AWS account for a cluster of cluster/aws.yaml, and write the file with its values.

    python cluster/aws_setup.py --ssh-from 203.0.113.7/32 --out my-aws.yaml

Checks EC2's quotas, deploys the stack of cluster/aws-account.yaml, finds the newest machine image with
NVIDIA's driver, and prints the next commands. Again, it updates the stack. Needs boto3 and your AWS login.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
STACK = "ims3-ray"
# with Docker and NVIDIA's driver and container toolkit; AWS keeps the newest id in this parameter
IMAGE = "/aws/service/deeplearning/ami/x86_64/base-oss-nvidia-driver-gpu-ubuntu-22.04/latest/ami-id"
WORKER_CPUS, HEAD_CPUS = 16, 8  # of the instance types in aws.yaml
ON_DEMAND, SPOT, STANDARD = "L-DB2E81BA", "L-3819A6DF", "L-1216C47A"  # quotas of EC2, in vCPUs
REGION = "us-east-1"  # of aws.yaml as it is


class SetupError(Exception):
    """An account or argument that does not fit; its text is the line for the user."""


def check_quotas(quotas: Any, region: str) -> None:
    """Raise SetupError if EC2's quotas do not allow the head and one GPU worker, spot or on demand."""
    codes = (STANDARD, SPOT, ON_DEMAND)
    cpus = {
        code: quotas.get_service_quota(ServiceCode="ec2", QuotaCode=code)["Quota"]["Value"] for code in codes
    }
    for code, needed, node in (
        (STANDARD, HEAD_CPUS, "the head"),
        (max(SPOT, ON_DEMAND, key=cpus.__getitem__), WORKER_CPUS, "a GPU worker"),
    ):
        if cpus[code] < needed:
            raise SetupError(
                f"EC2's quota {code} allows {cpus[code]:g} vCPUs, and {node} needs {needed}; request more:\n"
                f"  aws service-quotas request-service-quota-increase --service-code ec2 --quota-code {code} "
                f"--desired-value {4 * needed} --region {region}"
            )


def deploy(stacks: Any, ssh_from: str) -> dict[str, str]:
    """Create or update the stack; return its outputs."""
    options = {
        "StackName": STACK,
        "TemplateBody": (FOLDER / "aws-account.yaml").read_text(encoding="utf-8"),
        "Parameters": [{"ParameterKey": "SshFrom", "ParameterValue": ssh_from}],
        "Capabilities": ["CAPABILITY_IAM"],
    }
    try:
        stacks.create_stack(**options)
        waiter = "stack_create_complete"
    except stacks.exceptions.AlreadyExistsException:
        waiter = "stack_update_complete"
        try:
            stacks.update_stack(**options)
        except stacks.exceptions.ClientError as error:
            if "No updates" not in str(error):
                raise
            waiter = ""
    if waiter:
        stacks.get_waiter(waiter).wait(StackName=STACK)
    (stack,) = stacks.describe_stacks(StackName=STACK)["Stacks"]
    return {output["OutputKey"]: output["OutputValue"] for output in stack["Outputs"]}


def fill_in(text: str, outputs: dict[str, str], region: str, ami: str) -> str:
    """Return aws.yaml's `text` with the account's values in place of each FILL_IN."""
    registry = outputs["Repository"].partition("/")[0]
    for old, new in {
        f"FILL_IN.dkr.ecr.{REGION}.amazonaws.com/ims3-ray": outputs["Repository"],
        f"FILL_IN.dkr.ecr.{REGION}.amazonaws.com": registry,
        "ami-FILL_IN_CPU": ami,
        "ami-FILL_IN_GPU": ami,
        "sg-FILL_IN": outputs["SecurityGroup"],
        "FILL_IN-head": outputs["HeadProfile"],
        "FILL_IN-worker": outputs["WorkerProfile"],
        "s3://FILL_IN/": f"s3://{outputs['Bucket']}/",
        REGION: region,
        "Each FILL_IN is yours to replace, or cluster/aws_setup.py's;": "By cluster/aws_setup.py;",
    }.items():
        text = text.replace(old, new)
    return text


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--ssh-from", required=True, metavar="CIDR", help="who may use SSH: 203.0.113.7/32")
    parser.add_argument("--region", default=REGION, help=f"default {REGION}")
    parser.add_argument(
        "--out", type=Path, default=Path("my-aws.yaml"), help="new file (default my-aws.yaml)"
    )
    arguments = parser.parse_args(words)
    out, region = arguments.out, arguments.region
    import boto3
    from botocore.exceptions import BotoCoreError, ClientError

    def client(service: str) -> Any:
        return boto3.client(service, region_name=region)

    try:
        if out.exists():
            raise SetupError(f"--out: {out} exists; name another file, or remove it")
        if not out.absolute().parent.is_dir():
            raise SetupError(f"--out: {out.parent} is no folder; make it, or name another")
        check_quotas(client("service-quotas"), region)
        ami = client("ssm").get_parameter(Name=IMAGE)["Parameter"]["Value"]
        outputs = deploy(client("cloudformation"), arguments.ssh_from)
    except (SetupError, BotoCoreError, ClientError) as error:
        print(error, file=sys.stderr)
        return 2
    text = fill_in((FOLDER / "aws.yaml").read_text(encoding="utf-8"), outputs, region, ami)
    out.write_text(text, encoding="utf-8")
    image = next(line.split()[-1] for line in text.splitlines() if line.startswith("  image:"))
    print(f"""wrote {out}; storage=s3://{outputs["Bucket"]}/runs; next:
  docker build -f cluster/Dockerfile -t {image} .
  aws ecr get-login-password --region {region} \\
      | docker login --username AWS --password-stdin {image.partition("/")[0]}
  docker push {image}
  install -d -m 700 ~/.ims3-ray && (umask 077; openssl rand -hex 32 > ~/.ims3-ray/auth_token)
  export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=~/.ims3-ray/auth_token
  ray up {out}""")
    return 0


if __name__ == "__main__":
    sys.exit(main())
