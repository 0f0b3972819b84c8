"""Train all weights of the digits' generator on the densest half of each class.

    python examples/biased_generator.py digits-biased --steps 1500

An image is as dense as its fifth neighbour in its class is near, in feature space; low-density coverage ranks
images in the same way. The result is a model folder (`model.path=digits-biased`). docs/results/ablation.md
asks with it whether fine-tuning on all images brings the sparse half back.
"""

import argparse

import numpy as np
import torch

from ims3_ray.data.images import open_images
from ims3_ray.data.loader import BatchReader, payloads
from ims3_ray.method.coverage import neighbour_distances
from ims3_ray.method.ddim import abar_at, add_noise
from ims3_ray.method.losses import diffusion_loss, variational_loss
from ims3_ray.method.schedule import alphas_bar
from ims3_ray.models.checkpoints import load_transformer
from ims3_ray.models.convert import save_pipeline
from ims3_ray.models.device import to_images
from ims3_ray.models.extractor import embed_pixels, load_extractor
from ims3_ray.models.files import resolve_model
from ims3_ray.models.generator import load_vae
from ims3_ray.storage.artifacts import open_storage

MODEL, BATCH, DROPOUT, CPU = "package://digits", 32, 0.1, torch.device("cpu")


def densest_half() -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Pixels (N, 3, S, S), labels (N,) and the class names."""
    images = open_images(f"{MODEL}/train", open_storage("runs"), name="train", seed=0, max_bad_fraction=0)
    extractor = load_extractor(MODEL)
    read = BatchReader(images.directory, extractor.image_size)
    pixels, columns, _ = read(payloads(images, range(len(images)), len(images))[0])
    features, labels = embed_pixels(extractor, pixels, 100, CPU), columns["label"]
    dense = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        dense[rows[np.argsort(neighbour_distances(features[rows]), kind="stable")[: len(rows) // 2]]] = True
    return pixels[dense], labels[dense], list(images.classes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("out", help="new model folder")
    parser.add_argument("--steps", type=int, default=1500, help="of 32 images (default 1500)")
    arguments = parser.parse_args()
    pixels, labels, classes = densest_half()
    vae = load_vae(MODEL, device=CPU, dtype=torch.float32)
    with torch.no_grad():
        latents = torch.cat([vae.encode(to_images(part))[0] for part in torch.from_numpy(pixels).split(100)])
    dit, abar, labels = load_transformer(resolve_model(MODEL)).train(), alphas_bar(), torch.from_numpy(labels)
    optimiser, draws = torch.optim.AdamW(dit.parameters(), 2e-4), torch.Generator().manual_seed(0)
    for step in range(arguments.steps):
        rows = torch.randint(len(latents), (BATCH,), generator=draws)
        t = torch.randint(1, len(abar), (BATCH,), generator=draws)
        noise = torch.randn(latents[rows].shape, generator=draws)
        is_dropped = torch.rand(BATCH, generator=draws) < DROPOUT
        z = add_noise(latents[rows], noise, abar=abar_at(abar, t, torch.float32))
        output = dit(z, t, torch.where(is_dropped, dit.null_label, labels[rows]))
        loss = diffusion_loss(output[:, : z.shape[1]], noise).mean()
        loss = loss + variational_loss(output, z, latents[rows], t, abar).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        if step % 200 == 0:
            print(f"step {step}: loss {loss.item():.4f}", flush=True)
    save_pipeline(dit.eval(), vae.model, arguments.out, id2label=classes)


if __name__ == "__main__":
    main()
