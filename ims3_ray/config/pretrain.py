"""The configuration of pretraining (jobs/pretrain.py): what is trained, on what, for how long. See config.py."""

from typing import Annotated

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from .sections import Count, Data, Section, Seed, Settings, Share, Weight, Workers


class TrainVae(Section):
    """AutoencoderKL: L1 reconstruction plus a weak pull of the latents towards a normal distribution."""

    channels: tuple[Count, ...] = (16, 32, 64)  # one level a value; every level but the last halves the image
    latent_channels: Count = 4
    kl_weight: Weight = 1e-3
    steps: Count = 1500
    batch_size: Count = 64
    lr: Annotated[float, Field(gt=0)] = 1e-3


class TrainTransformer(Section):
    """DiT: noise and variance prediction with label dropout, exponential moving average of the weights."""

    hidden_size: Count = 128
    depth: Count = 6
    heads: Count = 4
    patch_size: Count = 2
    label_dropout: Share = 0.1
    steps: Count = 12000
    batch_size: Count = 64
    lr: Annotated[float, Field(gt=0)] = 1e-3
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.999


class TrainExtractor(Section):
    """φ: one of the evaluation networks, trained to classify; its penultimate features serve."""

    network: str = "convnet3"
    width: Count = 32
    steps: Count = 1500
    batch_size: Count = 64
    lr: Annotated[float, Field(gt=0)] = 1e-3


class Pretrain(Settings):
    """A generator and an extractor of one's own, from class folders (jobs/pretrain.py)."""

    model_config = SettingsConfigDict(env_prefix="IMS3_PRETRAIN_")

    seed: Seed = 0
    image_size: Annotated[int, Field(ge=16)] = 32
    data: Data = Data(train="package://digits/train", mirror=False)
    micro_batches: Count = 2
    vae: TrainVae = TrainVae()
    transformer: TrainTransformer = TrainTransformer()
    extractor: TrainExtractor = TrainExtractor()
    # samples that a second classifier judges, for the model card
    check_images: Annotated[int, Field(ge=0)] = 1000
    check_guidance_scale: Annotated[float, Field(ge=0)] = 1.5
    log_every: Count = 100
    checkpoint_every: Count = 1000
    workers: Workers = Workers()
    storage: str = "./runs"
