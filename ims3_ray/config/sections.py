"""The configuration: one frozen typed section per stage, checked at construction.

Sources, strongest first: overrides (`sample.subgroups=20`), the recipe's YAML, environment variables
(`IMS3_STORAGE`, `IMS3_WORKERS__ACTORS`), defaults: the environment fills in what a recipe leaves open and
never bends what it says. All that changes a result stands in the recipe's sections and is fingerprinted;
`Workers` and `storage` change speed and place alone.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

DeviceKind = Literal["cpu", "cuda"]
Precision = Literal["fp32", "bf16"]
Count = Annotated[int, Field(ge=1)]
Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Seed = Annotated[int, Field(ge=0, lt=2**31)]
Share = Annotated[float, Field(ge=0, le=1)]
NetworkName = Literal["convnet3", "convnet6", "resnetap10", "resnet18"]
SEEDS_A_RUN = 1000  # classifier seeds that belong to one seed of the run


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)


class Settings(BaseSettings):
    """All that a command is told; environment variables fill in what it leaves open."""

    model_config = SettingsConfigDict(
        frozen=True, extra="forbid", validate_default=True, env_prefix="IMS3_", env_nested_delimiter="__"
    )


class PerDevice(Section):
    """A value for each kind of device: bits depend on it, so it is a recipe value and not one of Workers."""

    def on(self, device: DeviceKind) -> Any:
        return getattr(self, device)


class BatchSize(PerDevice):
    """Rows a forward pass."""

    cpu: Count
    cuda: Count


class Arithmetic(PerDevice):
    """Of matrices; values that train are fp32 everywhere."""

    cpu: Precision = "fp32"
    cuda: Precision = "bf16"


class Compile(PerDevice):
    """torch.compile of the transformer's blocks."""

    cpu: bool = False
    cuda: bool = True


class Licence(Section):
    """As the distilled set's card states it: an identifier of the Hugging Face hub, or `other` with a name
    and a link.
    """

    id: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9.+-]*$")]
    name: str | None = None
    link: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _from_identifier(cls, value: Any) -> Any:
        return {"id": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _other_alone_has_a_name(self) -> "Licence":
        if (self.id == "other") != bool(self.name) or (self.link and not self.name):
            raise ValueError("id=other needs a name, and takes a link; the hub's own identifiers stand alone")
        return self


class Data(Section):
    # places of class folders or of a Hugging Face data set, see data/sources.py
    # a recipe for images that everybody has to fetch leaves it open, and a run stops without it
    train: str | None = None
    validation: str | None = None
    test: str | None = None
    # share of every class's training images that is held out of all training; `validation` where no folder is
    # named
    validation_split: Annotated[float, Field(ge=0, lt=1)] = 0.0
    classes: tuple[str, ...] | None = None  # the class folders to use, in every split; None uses all
    # a YAML or JSON table of folder name → model label, or "new" for fresh class rows
    class_map: str | None = None
    mirror: bool = True
    max_bad_fraction: Share = 0.01
    # of the scored images that may be training files: a few are told, more are refused
    max_overlap_fraction: Share = 0.01
    licence: Licence | None = None  # of the images

    @model_validator(mode="after")
    def _one_validation_set(self) -> "Data":
        if self.validation_split and self.validation:
            raise ValueError("data.validation_split: data.validation names a folder; drop one of them")
        return self

    @field_validator("classes")
    @classmethod
    def _are_folder_names(cls, classes: tuple[str, ...] | None) -> tuple[str, ...] | None:
        """Sorted, so that their order says nothing."""
        if classes is None:
            return None
        for name in classes:
            if not name or name.startswith(".") or "/" in name or "\\" in name:
                raise ValueError(f"{name!r} can't be a class folder's name")
            if classes.count(name) > 1:
                raise ValueError(f"{name!r} is named twice")
        if len(classes) < 2:
            raise ValueError("name at least 2 class folders, or null for all")
        return tuple(sorted(classes))


class Model(Section):
    path: str = "package://digits"
    vae: str | None = None  # beside an original DiT .pt file
    heads: Count | None = None
    frequency_shift: Literal[0, 1] | None = None  # None: by the checkpoint's kind
    precision: Arithmetic = Arithmetic()
    compile: Compile = Compile()
    licence: Licence | None = None  # of the weights


class Encode(Section):
    images_per_class: Count | None = None  # a seeded random subset; None takes all
    batch_size: BatchSize = BatchSize(cpu=50, cuda=64)


class Invert(Section):
    points: Annotated[int, Field(ge=1, le=999)] = 10  # S grid points up to T − 1
    # a part of the latents, with its mirror images on a GPU
    batch_size: BatchSize = BatchSize(cpu=50, cuda=128)


class Minimax(Section):
    """Minimax Diffusion's criteria; weights and memory as it publishes them, once `im.minimax` is on."""

    representativeness: Weight = 0.002
    diversity: Weight = 0.008
    memory: Count = 64


class InversionMatching(Section):
    weight: Weight = 0.002  # λ_IM of the paper
    # λ_IM as the ratio of gradient norms, matching to diffusion; replaces weight
    grad_ratio: Weight | None = None
    target: Literal["trajectory", "one_step"] = "trajectory"  # one_step: the published code, to reproduce it
    metric: Literal["cosine", "l1", "l2"] = "cosine"
    minimax: Minimax | None = None

    @field_validator("minimax", mode="before")
    @classmethod
    def _on_or_off(cls, value: Any) -> Any:
        return {} if value is True else None if value is False else value


class Finetune(Section):
    epochs: Annotated[int, Field(ge=0)] = 8  # 0 keeps the pretrained model
    batch_size: Count = 8
    micro_batches: Count = 2  # parts of a batch whose gradients are summed in order: worker counts divide it
    lr: Annotated[float, Field(gt=0)] = 1e-3
    weight_decay: Weight = 0.0
    label_dropout: Share = 0.1
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.9999
    log_every: Count = 50
    checkpoint_every: Count = 500

    @model_validator(mode="after")
    def _parts_fill_the_batch(self) -> "Finetune":
        if self.batch_size % self.micro_batches:
            raise ValueError(
                f"finetune.batch_size: {self.batch_size} is no multiple of micro_batches {self.micro_batches}"
            )
        return self


class Embed(Section):
    extractor: str = "package://digits"
    batch_size: BatchSize = BatchSize(cpu=100, cuda=256)


class Sample(Section):
    subgroups: Count = 5  # G
    pool_ipc: Count | None = None  # images a subgroup, of which the first `ipc` count; None draws ipc
    # inversion: of real images, at start_level, beyond the paper
    start: Literal["noise", "inversion"] = "noise"
    # timestep; the nearest grid point of the inversions is taken
    start_level: Annotated[int, Field(ge=1, le=999)] = 400
    # real images: k-means medoids, any, or the sparsest
    start_from: Literal["medoids", "random", "sparse"] = "medoids"
    # how many a class, dealt out in turn; None: pool_ipc, the same for every subgroup
    start_images: Count | None = None
    # share of fresh noise in the variance of a start; None: what the inversions lack of 1
    start_noise: Share | None = None
    sampler: Literal["ancestral", "ddim"] = "ancestral"
    steps: Annotated[int, Field(ge=2, le=1000)] = 50
    spacing: Literal["linspace", "leading"] = "linspace"
    guidance_scale: Annotated[float, Field(ge=0)] = 4.0
    guidance_channels: Count = 3  # DiT's published sampler guides 3 of the 4 latent channels
    weights: Literal["ema", "last"] = "ema"
    batch_size: BatchSize = BatchSize(cpu=25, cuda=256)


class Select(Section):
    alpha: Weight = 0.4
    beta: Weight = 0.9
    epsilon: Weight = 0.0
    normalization: Literal["per_class", "none"] = "per_class"
    partners: Literal["selected", "pool"] = "selected"
    subgroups: Count | None = None  # choose among a class's first so many, with 1 among nothing; None: all
    # exact: branch and bound, up to 2,000 subgroups; auto: up to 200
    solver: Literal["auto", "rounds", "exact"] = "auto"
    restarts: Annotated[int, Field(ge=0)] = 8
    # rounds score this many nearest classes one by one, the far ones by their mean
    neighbours: Count | None = None
    certify: Literal["auto", "none", "half_pair", "handshake", "trws"] = "auto"  # what gives the lower bound
    # image: any ipc of a class's candidates, beyond the paper
    unit: Literal["subgroup", "image"] = "subgroup"
    coverage: Weight = 0.0  # weight of how well the real images are covered, where images are chosen
    # balls: the share with a chosen image in their k-nearest-neighbour ball; distance: closeness to the
    # nearest chosen one
    coverage_by: Literal["balls", "distance"] = "balls"
    coverage_neighbours: Count = 5  # k of the balls
    # leave out candidates as near to a real image as the nearest percent of these to each other
    exclude_copies: bool = False
    real_images: Count | None = 200  # K_i, a seeded random subset per class; None takes all
    memory: Annotated[float, Field(gt=0)] = 2.5  # GB an actor may take: more shards where they need more

    @model_validator(mode="after")
    def _belong_together(self) -> "Select":
        rules = (
            (
                self.coverage and self.unit != "image",
                f"select.coverage: {self.coverage} needs select.unit=image",
            ),
            (self.exclude_copies and self.unit != "image", "select.exclude_copies: needs select.unit=image"),
            (
                self.unit == "image" and self.solver == "exact",
                "select.solver: exact needs select.unit=subgroup",
            ),
            (
                self.unit == "image" and self.partners == "pool",
                "select.partners: pool needs select.unit=subgroup",
            ),
            (
                self.neighbours and self.solver == "exact",
                "select.neighbours: needs select.solver=auto or rounds",
            ),
            (
                self.neighbours and self.partners == "pool",
                "select.neighbours: needs select.partners=selected",
            ),
        )
        for broken, rule in rules:
            if broken:
                raise ValueError(rule)
        return self


class Evaluate(Section):
    protocol: str = "quick"  # "none" leaves evaluation out
    # None: the protocol's own
    networks: Annotated[tuple[NetworkName, ...], Field(min_length=1)] | None = None
    seeds: Annotated[int, Field(ge=2, le=SEEDS_A_RUN)] = 3  # fewer than 2 give no interval
    baselines: tuple[Literal["random", "herding", "k_center", "medoids", "k_medoids"], ...] = (
        "random",
    )  # real images, as many
    full: bool = True  # also train on the full real set
    neighbours: Count = 5  # k of the coverage balls
    # also measure the coverage of the pool's first so many candidates a class
    pool_images: Count | None = None

    @field_validator("networks", "baselines")
    @classmethod
    def _are_named_once(cls, names: tuple[str, ...] | None) -> tuple[str, ...] | None:
        for name in names or ():
            if names.count(name) > 1:
                raise ValueError(f"{name!r} is named twice")
        return names


class Workers(Section):
    """What changes speed alone. None sizes a number to the machine or cluster at hand."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    # begin once the cluster has so many: one that was scaled down to its head grows to them
    gpus: Count | None = None
    wait_s: Count = 1800  # at most, for gpus: those that came cost money while the others are waited for
    actors: Count | None = None
    min_actors: Count = 1  # a pool works with as few while the cluster grows or after nodes are lost
    train_workers: Count | None = None
    # lets fine-tuning go on with as few when nodes are lost, and grow again
    min_train_workers: Count | None = None
    shards: Count | None = None
    trials: Count | None = None  # of a sweep at once
    gpus_per_classifier: Annotated[float, Field(gt=0, le=1)] = 0.25  # small networks leave most of a GPU idle


class Selecting(Settings):
    """Selection alone, from anybody's candidates (jobs/select_subgroups.py)."""

    seed: Seed = 0
    ipc: Count = 10  # images a class, where select.unit=image
    select: Select = Select()
    workers: Workers = Workers()


class Evaluating(Settings):
    """Scoring anybody's image sets (jobs/evaluate.py); the number of images a class is read off each set."""

    seed: Seed = 0
    data: Data = Data()
    embed: Embed = Embed()
    evaluate: Evaluate = Evaluate()
    workers: Workers = Workers()
    storage: str = "./runs"  # of what is unpacked and embedded once


class Config(Settings):
    """A run: the recipe's sections, where it stores, and how many work on it."""

    recipe: str = "digits"
    seed: Seed = 0
    ipc: Count = 10
    data: Data = Data()
    model: Model = Model()
    encode: Encode = Encode()
    invert: Invert = Invert()
    im: InversionMatching = InversionMatching()
    finetune: Finetune = Finetune()
    embed: Embed = Embed()
    sample: Sample = Sample()
    select: Select = Select()
    evaluate: Evaluate = Evaluate()
    workers: Workers = Workers()
    storage: str = "./runs"

    @model_validator(mode="after")
    def _pool_holds_what_is_chosen(self) -> "Config":
        subgroups = self.select.subgroups or self.sample.subgroups
        if subgroups > self.sample.subgroups:
            raise ValueError(
                f"select.subgroups: {subgroups} of sample.subgroups {self.sample.subgroups}; lower it"
            )
        held = self.pool_ipc * (subgroups if self.select.unit == "image" else 1)
        if held < self.ipc:
            raise ValueError(
                f"sample.pool_ipc: {self.pool_ipc} holds {held} images to choose ipc={self.ipc} from; raise it"
            )
        return self

    @property
    def pool_ipc(self) -> int:
        """Images drawn a subgroup."""
        return self.sample.pool_ipc or self.ipc

    def results(self) -> dict[str, Any]:
        """All that a result depends on, as plain data."""
        return self.model_dump(mode="json", exclude={"workers", "storage"})
