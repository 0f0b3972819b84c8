"""Ten checks of a GPU in order, each in its own process with a time limit; gpu_check.sh runs this module.

    python -m benchmarks.gpu_check --out DIR [--device cpu] [--only NAME,…]

Every check writes DIR/NAME.json; a check with a passed result is not run again. At the end DIR/gpu-check.json
and DIR/gpu-check.md have all of them. The exit code is 1 if one failed.
"""

import argparse
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from ims3_ray.cluster.environment import cpu_model, gpu_models
from ims3_ray.evaluation.inference import forward_fn, numerics_for
from ims3_ray.evaluation.protocols import get_protocol
from ims3_ray.evaluation.train import budget_for, generator_for, training_steps
from ims3_ray.method.seeding import generator
from ims3_ray.models.device import (
    Numerics,
    prepare_device,
    strictly_deterministic,
    supported_numerics,
    to_pixels,
)
from ims3_ray.models.generator import load_vae

from .random_inputs import size_named, write_pipeline

Result = dict[str, Any]
TABLE = "gpu-check"


@dataclass(frozen=True)
class Check:
    """A check: its time limit, and its function here or the command that it runs."""

    limit_s: int
    question: str
    run: Callable[[str, Path], Result]


def device(kind: str, _out: Path) -> Result:
    """What the machine is, and which numerics work on it."""
    numerics, missing = supported_numerics(Numerics(kind, "bf16", compiled=True, graphs=True))
    found: Result = {"torch": torch.__version__, "cpu": cpu_model(), "numerics": vars(numerics)}
    if kind == "cuda":
        free, total = torch.cuda.mem_get_info()
        found |= {
            "gpus": gpu_models(),
            "cuda": torch.version.cuda,
            "memory_gb": total / 1e9,
            "free_gb": free / 1e9,
        }
    return found | {"missing": missing}


def attention(kind: str, _out: Path) -> Result:
    """Gradients of attention: the same bits twice, and seconds, per kernel."""
    place, found = prepare_device(kind), {}
    shape = (8, 16, 256, 72) if kind == "cuda" else (1, 2, 16, 8)  # of DiT-XL/2 at 256 pixels
    dtype = torch.bfloat16 if kind == "cuda" else torch.float32
    draws = [torch.randn(shape, generator=generator("qkv", n)).to(place, dtype) for n in range(3)]

    def gradients() -> list[torch.Tensor]:
        q, k, v = (x.clone().requires_grad_() for x in draws)
        return list(
            torch.autograd.grad(scaled_dot_product_attention(q, k, v).float().square().sum(), (q, k, v))
        )

    for backend in (SDPBackend.FLASH_ATTENTION, SDPBackend.MATH):
        with strictly_deterministic(), sdpa_kernel(backend):
            first, again = gradients(), gradients()
            found[backend.name] = {"seconds": _seconds(gradients, kind), "same": _are_equal(first, again)}
    return found | {"passed": all(values["same"] for values in found.values())}


def classifier(kind: str, _out: Path) -> Result:
    """Steps per second of the protocols' loop, and the same weights from two trainings."""
    place, found = prepare_device(kind), {}
    cases = (("dsa-cifar10", None, 200), ("minimax", None, 40), ("soft", None, 20))
    for name, network, steps in cases if kind == "cuda" else (("smoke", None, 3), ("smoke", "resnet8", 3)):
        protocol = get_protocol(name, network)
        side, rows = protocol.image_size, 100 if kind == "cuda" else 10
        images = torch.randint(0, 256, (rows, 3, side, side), generator=generator("images"))
        train = images.to(place, torch.uint8), torch.arange(rows, device=place) % 10
        budget = budget_for(protocol, rows, 10)
        teacher = (lambda x: x.flatten(1)[:, :10]) if protocol.is_soft else None
        states, rate = [], 0.0
        for _ in range(2):
            model = protocol.build(10, generator_for(0, "weights")).to(place)
            forward = forward_fn(model, numerics_for(kind, steps))
            training = training_steps(model, forward, train, protocol, budget, 0, teacher)
            next(training)
            _wait(kind)
            started = time.perf_counter()
            for _, _loss in zip(range(steps), training, strict=False):
                pass
            _wait(kind)
            rate = steps / (time.perf_counter() - started)
            states.append(list(model.state_dict().values()))
        found[protocol.label] = {"steps_per_s": rate, "same": _are_equal(*states)}
    return found | {"passed": all(values["same"] for values in found.values())}


def decoding(kind: str, out: Path) -> Result:
    """Memory and images per second of decoding in parts of 32, 64 and 256."""
    place, size, found = prepare_device(kind), size_named("XL/2" if kind == "cuda" else "tiny"), {}
    folder = out / f"decoder-{kind}"
    if not folder.exists():
        write_pipeline(size, folder)
    dtype = torch.bfloat16 if kind == "cuda" else torch.float32
    vae = load_vae(str(folder), device=place, dtype=dtype)
    for rows in (32, 64, 256) if kind == "cuda" else (2, 4):
        z = torch.randn(rows, 4, size.image_size // 8, size.image_size // 8, generator=generator("z")).to(
            place
        )
        if kind == "cuda":
            torch.cuda.reset_peak_memory_stats()
        with torch.inference_mode():
            seconds = _seconds(lambda: to_pixels(vae.decode(z)), kind)  # noqa: B023
        peak = torch.cuda.max_memory_allocated() / 1e9 if kind == "cuda" else None
        found[str(rows)] = {"images_per_s": rows / seconds, "peak_gb": peak}
    return found


def tests(_kind: str, _out: Path) -> Result:
    """The tests behind the mark `gpu`."""
    words = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "tests/gpu"]
    done = subprocess.run(words, capture_output=True, text=True)
    return {"summary": done.stdout[-2000:], "passed": done.returncode == 0}


def distil(kind: str, out: Path) -> Result:
    """The recipe digits-paper twice, from nothing: seconds, and the same checksums of images."""
    sums, seconds = [], []
    tiny = [
        "ipc=1",
        "encode.images_per_class=10",
        "finetune.epochs=1",
        "sample.steps=3",
        "evaluate.protocol=smoke",
    ]
    for number in range(2):
        storage = out / f"distil-{number}"
        words = [
            sys.executable,
            "-m",
            "ims3_ray",
            "distill",
            "--recipe",
            "digits-paper",
            f"storage={storage}",
        ]
        shutil.rmtree(storage, ignore_errors=True)
        started = time.perf_counter()
        subprocess.run([*words, *(tiny if kind == "cpu" else ()), f"workers.device={kind}"], check=True)
        seconds.append(time.perf_counter() - started)
        (manifest,) = storage.glob("distilled/*/manifest.json")
        checksums = json.loads(manifest.read_text())["checksums"]
        sums.append({name: checksum for name, checksum in checksums.items() if name != "README.md"})
    return {"seconds": seconds, "passed": sums[0] == sums[1]}


def benchmark(name: str, *words: str) -> Callable[[str, Path], Result]:
    """Run `python -m benchmarks NAME` with random weights of DiT-XL/2; tiny ones on a CPU."""

    def run(kind: str, out: Path) -> Result:
        path = out / f"{name}-result.json"
        size = (
            ["--size", "XL/2"]
            if kind == "cuda"
            else ["--size", "tiny", "--seconds", "0.01", "--repetitions", "1"]
        )
        less = [] if kind == "cuda" else ["ipc=2", "sample.steps=3", "invert.steps=3", "finetune.log_every=2"]
        command = [sys.executable, "-m", "benchmarks", name, "--random-init", *size, "--out", str(path)]
        subprocess.run([*command, *words, *less, f"workers.device={kind}"], check=True)
        variants = json.loads(path.read_text())["variants"]
        kept = ("images_per_s", "operations_per_image", "ratio", "peak_memory_bytes", "syncs_per_step")
        return {f"{v['name']}, {v['batch_size']}": {name: v[name] for name in kept} for v in variants}

    return run


CHECKS = {
    "device": Check(60, "Does torch see the GPU, bf16, compilation and CUDA graphs?", device),
    "attention": Check(120, "Are gradients of attention the same twice?", attention),
    "classifier": Check(300, "How fast do classifiers train, and is a training the same twice?", classifier),
    "decoding": Check(180, "What does decoding take in parts of 32?", decoding),
    "tests": Check(600, "Do the tests for GPUs pass?", tests),
    "distil": Check(600, "Is a run the same twice, byte by byte?", distil),
    "finetune": Check(420, "Images/s of fine-tuning, beside the published settings?", benchmark("finetune")),
    "sample": Check(420, "Images/s of sampling, beside the published settings?", benchmark("sample")),
    "refine": Check(300, "Seconds and memory of a refinement step?", benchmark("refine")),
    "invert": Check(300, "Images/s of inversion?", benchmark("invert")),
}


def main(words: Sequence[str]) -> int:
    """Run the checks, or with --check one of them in this process."""
    parser = argparse.ArgumentParser(prog="gpu_check", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--only", default=",".join(CHECKS), help="names of checks, with commas")
    parser.add_argument("--check", choices=tuple(CHECKS), help=argparse.SUPPRESS)
    arguments = parser.parse_args(words)
    out: Path = arguments.out.absolute()
    out.mkdir(parents=True, exist_ok=True)
    if arguments.check:
        found = CHECKS[arguments.check].run(arguments.device, out)
        (out / f"{arguments.check}.json").write_text(json.dumps({"passed": True} | found, indent=2) + "\n")
        return 0
    if unknown := set(names := arguments.only.split(",")) - set(CHECKS):
        parser.error(f"--only: {', '.join(sorted(unknown))} is unknown; choose from {', '.join(CHECKS)}")
    results = {name: _result(name, arguments.device, out) for name in names}
    table = _table(results)
    (out / f"{TABLE}.json").write_text(json.dumps(results, indent=2) + "\n")
    (out / f"{TABLE}.md").write_text(table)
    print(table, end="")
    return 0 if all(result["passed"] for result in results.values()) else 1


def _result(name: str, kind: str, out: Path) -> Result:
    """The stored result of a check that passed on this kind of device, or a new one."""
    path, check = out / f"{name}.json", CHECKS[name]
    stored = json.loads(path.read_text()) if path.exists() else {}
    if stored.get("passed") and stored.get("device") == kind:
        return stored
    print(f"{name}: {check.question} (at most {check.limit_s} s)", flush=True)
    started, log = time.perf_counter(), out / f"{name}.log"
    path.unlink(missing_ok=True)
    with log.open("w") as stream:
        own = {"stdout": stream, "stderr": stream, "start_new_session": True}
        process, code = subprocess.Popen(_command(name, kind, out), **own), None
        with contextlib.suppress(subprocess.TimeoutExpired):
            code = process.wait(check.limit_s)
        if code is None:
            os.killpg(process.pid, signal.SIGKILL)  # with the processes that it started
            process.wait()
    found = json.loads(path.read_text()) if path.exists() else {"passed": False}
    if code != 0:
        end = " ".join(log.read_text(errors="replace").split())[-300:]
        found |= {"passed": False, "error": f"over {check.limit_s} s" if code is None else end}
    found |= {"device": kind, "check_s": round(time.perf_counter() - started, 1)}
    path.write_text(json.dumps(found, indent=2) + "\n")
    return found


def _command(name: str, kind: str, out: Path) -> list[str]:
    module = [sys.executable, "-m", "benchmarks.gpu_check"]
    return [*module, "--out", str(out), "--device", kind, "--check", name]


def _table(results: dict[str, Result]) -> str:
    lines = ["| check | passed | seconds | result |", "|---|---|---|---|"]
    for name, result in results.items():
        figures = {key: value for key, value in result.items() if key not in ("passed", "device", "check_s")}
        text = json.dumps(_rounded(figures)).replace("|", "\\|").replace('"', "")[:400]
        lines.append(f"| {name} | {'yes' if result['passed'] else '**no**'} | {result['check_s']} | {text} |")
    return "\n".join(lines) + "\n"


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _rounded(of) for name, of in value.items()}
    return float(f"{value:.4g}") if isinstance(value, float) else value


def _are_equal(ours: Sequence[torch.Tensor], theirs: Sequence[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def _seconds(function: Callable[[], object], kind: str, repetitions: int = 5) -> float:
    """Mean seconds of a call, after one that is not counted."""
    function()
    _wait(kind)
    started = time.perf_counter()
    for _ in range(repetitions):
        function()
    _wait(kind)
    return (time.perf_counter() - started) / repetitions


def _wait(kind: str) -> None:
    if kind == "cuda":
        torch.cuda.synchronize()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
