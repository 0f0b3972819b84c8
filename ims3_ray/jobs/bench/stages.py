"""`bench sample | finetune | encode | invert`: a stage of this project beside its published settings."""

import argparse
from dataclasses import asdict
from pathlib import Path

from ims3_ray.storage.artifacts import open_directory

from .figures import Figures, as_percent, print_head, print_row
from .own import own_side
from .published import published_side
from .recipe import prepare_contexts
from .sides import compare

COLUMNS = (
    "side | batch | images/s | ratio | TFLOP an image | matrix share | peak GB | load s | warm-up s | "
    "waits a step | checkpoint MB | settings"
)


def run(arguments: argparse.Namespace, work: Path) -> Figures:
    """Print the table; gives all figures, with what they were measured on."""
    contexts, device, document = prepare_contexts(arguments, work)
    stage, inputs = arguments.what, open_directory(str(work / "inputs"))
    sides = [own_side(context, stage, inputs / f"{stage}-{n}") for n, context in enumerate(contexts)]
    if arguments.published and stage != "refine":  # which is published nowhere
        sides.append(published_side(contexts[0], stage))
    measured = compare(
        sides, contexts[0].machine, device, repetitions=arguments.repetitions, seconds=arguments.seconds
    )
    print_head(COLUMNS)
    for m in measured:
        rates = f"{m.images_per_s:.4g}", "–" if m.ratio is None else f"{m.ratio:.2f}"
        work_done = f"{m.operations_per_image / 1e12:.4g}", as_percent(m.matrix_share)
        times = f"{m.peak_memory_bytes / 1e9:.2f}", f"{m.load_s:.1f}", f"{m.warm_up_s:.1f}"
        waits = "–" if m.waits_a_step is None else f"{m.waits_a_step:.3g}"
        checkpoint = "–" if m.checkpoint_bytes is None else f"{m.checkpoint_bytes / 1e6:.1f}"
        print_row(m.name, m.batch_size, *rates, *work_done, *times, waits, checkpoint, m.settings)
    return document | {"sides": [asdict(m) for m in measured]}
