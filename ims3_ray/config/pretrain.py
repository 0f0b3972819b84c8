"""The configuration of pretraining (jobs/pretrain.py): what is trained, on what, for how long."""

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from .base import Count, Section, Seed, Settings, Share, Weight
from .data import Data
from .settings import OF_RUN, Workers

STEPS = "steps of training"
IMAGES = "images a step"
RATE = "learning rate"


class TrainVae(Section):
    """AutoencoderKL: L1 reconstruction plus a weak pull of the latents towards a normal distribution."""

    channels: tuple[Count, ...] = Field(
        default=(16, 32, 64), description="channels of each level; every level but the last halves the image"
    )
    latent_channels: Count = Field(default=4, description="channels of a latent")
    kl_weight: Weight = Field(default=1e-3, description="weight of the pull")
    steps: Count = Field(default=1500, description=STEPS)
    batch_size: Count = Field(default=64, description=IMAGES)
    lr: float = Field(default=1e-3, gt=0, description=RATE)


class TrainTransformer(Section):
    """DiT: noise and variance prediction with label dropout, exponential moving average of the weights."""

    hidden_size: Count = Field(default=128, description="width of a token, a multiple of heads")
    depth: Count = Field(default=6, description="blocks")
    heads: Count = Field(default=4, description="attention heads a block")
    patch_size: Count = Field(default=2, description="latent pixels a side of a token's patch")
    label_dropout: Share = Field(
        default=0.1, description="share of labels replaced by no class, for guidance"
    )
    steps: Count = Field(default=12000, description=STEPS)
    batch_size: Count = Field(default=64, description=IMAGES)
    lr: float = Field(default=1e-3, gt=0, description=RATE)
    ema_decay: float = Field(
        default=0.999, ge=0, lt=1, description="of the moving average of the weights, a step"
    )


class TrainExtractor(Section):
    """φ: one of the evaluation networks, trained to classify; its penultimate features serve."""

    network: str = Field(default="convnet3", description="convnet3, convnet6, resnetap10 or resnet18")
    width: Count = Field(default=32, description="channels of its first layer")
    steps: Count = Field(default=1500, description=STEPS)
    batch_size: Count = Field(default=64, description=IMAGES)
    lr: float = Field(default=1e-3, gt=0, description=RATE)


class Pretrain(Settings):
    """A generator and an extractor of one's own, from class folders (jobs/pretrain.py)."""

    model_config = SettingsConfigDict(env_prefix="IMS3_PRETRAIN_")

    seed: Seed = Field(default=0, description=OF_RUN)
    image_size: int = Field(default=32, ge=16, description="pixels a side")
    data: Data = Data(train="package://digits/train", mirror=False)
    micro_batches: Count = Field(
        default=2, description="parts of a batch whose gradients are summed in order"
    )
    vae: TrainVae = TrainVae()
    transformer: TrainTransformer = TrainTransformer()
    extractor: TrainExtractor = TrainExtractor()
    check_images: int = Field(
        default=1000, ge=0, description="samples that a second classifier judges, for the model card"
    )
    check_guidance_scale: float = Field(default=1.5, ge=0, description="guidance scale of those samples")
    log_every: Count = Field(default=100, description="steps between logged losses")
    checkpoint_every: Count = Field(default=1000, description="steps between checkpoints")
    workers: Workers = Workers()
    storage: str = Field(default="./runs", description="folder or URI of the checkpoints")
