"""Convert a DiT checkpoint, fine-tuned or not, to a diffusers folder.

    python jobs/convert.py --checkpoint package://digits \\
        --adapter runs/adapter/0123456789ab --out my-pipeline
    python jobs/convert.py --checkpoint DiT-XL-2-256x256.pt \\
        --vae stabilityai/sd-vae-ft-ema --out my-pipeline

diffusers.DiTPipeline then loads the folder. The outputs of both are compared.
"""

import argparse
import json
import shlex
import time
from typing import TYPE_CHECKING

from ims3_ray.data.classes import imagenet_names
from ims3_ray.errors import InputError
from ims3_ray.jobs.next_steps import installed_program, result_lines
from ims3_ray.progress import spinner

if TYPE_CHECKING:  # torch takes seconds to import
    from ims3_ray.models.convert import Difference
    from ims3_ray.models.generator import GeneratorInfo

IMAGENET = 1000  # number of classes by which a model without class names is taken for ImageNet's


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add, types = parser.add_argument, ("fp32", "fp16", "bf16")
    source = "original DiT .pt file, diffusers folder, hub id or package://digits"
    add("--checkpoint", required=True, help=source)
    add("--vae", metavar="DIR|ID", help="folder or hub id of the VAE, needed with a .pt file")
    add("--out", required=True, metavar="DIR", help="new folder for the pipeline")
    add("--adapter", metavar="DIR", help="a run's adapter/<fingerprint> to merge")
    weights = "moving average or last values of the adapter (default ema)"
    add("--weights", choices=("ema", "last"), default="ema", help=weights)
    add("--heads", type=int, metavar="N", help="attention heads of a .pt file of unpublished size")
    shift = "timestep frequencies, if the folder does not state them: 0 as DiT, 1 as diffusers"
    add("--frequency-shift", type=int, choices=(0, 1), help=shift)
    add("--dtype", choices=types, default="fp32", help="precision of the stored weights (default fp32)")


def run(arguments: argparse.Namespace) -> None:
    if "://" in arguments.out:
        raise InputError(f"--out: {arguments.out} is a URI; name a local folder")
    with spinner("imports"):  # heavy
        import torch

        from ims3_ray.models.convert import convert, new_folder
        from ims3_ray.models.device import Numerics
        from ims3_ray.models.finetuned import TunedModel, check_adapter, inspect_adapter
        from ims3_ray.models.generator import inspect_generator
        from ims3_ray.models.vae import read_vae

    start, out = time.perf_counter(), new_folder(arguments.out)
    adapter = inspect_adapter(arguments.adapter) if arguments.adapter else None
    shift = arguments.frequency_shift
    if shift is None and adapter:
        shift = adapter.frequency_shift
    info = inspect_generator(
        arguments.checkpoint, vae=arguments.vae, heads=arguments.heads, frequency_shift=shift
    )
    if adapter:
        check_adapter(adapter, info.config, arguments.weights)
    own = adapter.own_classes if adapter else None
    vae = read_vae(info.vae_path)  # small, so errors come early
    model = TunedModel(
        path=info.path,
        heads=arguments.heads,
        frequency_shift=shift,
        numerics=Numerics(),
        new_classes=len(own) if own else None,
        adapter=adapter.folder if adapter else None,
        weights=arguments.weights,
    )
    dit = model.load(torch.device("cpu")).dit
    difference = convert(dit, vae, out, id2label=class_names(own, info), dtype=arguments.dtype)
    print("\n".join(lines(arguments, info, dit.config.num_classes, difference)))
    result = {"pipeline": f"{out}  ({time.perf_counter() - start:.0f} s)"}
    load = f"import diffusers; print(diffusers.DiTPipeline.from_pretrained({json.dumps(str(out))}))"
    print(
        "", *result_lines(result, {"look": shlex.join([installed_program("python"), "-c", load])}), sep="\n"
    )


def class_names(own: list[str] | None, info: "GeneratorInfo") -> list[str] | None:
    """Returns the class names of the run, the checkpoint or ImageNet; None if there are none."""
    names = own or info.id2label
    return imagenet_names() if names is None and info.config.num_classes == IMAGENET else names


def lines(
    arguments: argparse.Namespace, info: "GeneratorInfo", num_classes: int, difference: "Difference"
) -> list[str]:
    """Returns lines on the written model, its guidance, and the difference of its outputs from ours."""
    from ims3_ray.models.convert import PIPELINE_NULL_LABEL as NULL  # imports torch

    dtype, size = arguments.dtype, f"{num_classes} classes, {info.image_size}-pixel images"
    tuned = f", {arguments.weights} values of the adapter merged" if arguments.adapter else ""
    summary = [f"model     {info.kind} checkpoint, {size}, {dtype}{tuned}"]
    if num_classes < NULL:
        summary.append(
            f"guidance  class embeddings padded to label {NULL}, the null label of diffusers' pipeline"
        )
    if num_classes > NULL:
        summary.append(
            f"guidance  none in diffusers' pipeline: its null label {NULL} is a class of this model; use "
            "guidance_scale=1"
        )
    outputs = f"outputs   diffusers' differ from ours by {difference.as_it_is:.1e} (relative RMS): "
    if difference.shifted:
        outputs += (
            "frequency shift; with ours at diffusers' timestep frequencies "
            f"{difference.same_frequencies:.1e}: {dtype} round-off (ims3 loads the folder with the "
            "checkpoint's frequencies)"
        )
    return [*summary, outputs if difference.shifted else f"{outputs}{dtype} round-off"]
