"""The recipe's `method.refine.Refinement`, and the sizes of its images."""

from dataclasses import dataclass

from torch import Tensor

from ims3_ray.config.evaluation import Refine
from ims3_ray.data.images import Tiles
from ims3_ray.evaluation.augment import view
from ims3_ray.evaluation.protocols import Protocol
from ims3_ray.method.packing import enlarge, unpack
from ims3_ray.method.refine import OBJECTIVES, Refinement
from ims3_ray.models.vae import Vae


@dataclass(frozen=True)
class Sizes:
    """Sizes of a set in refinement; unpacked, a stored image is its own tile."""

    factor: int
    tile: int  # pixels per side, of a start and of a result
    trained: int  # pixels per side at which classifiers see it

    @classmethod
    def of(cls, tiles: Tiles | None, stored: int, trained: int) -> "Sizes":
        """Return the sizes; `stored` is that of the set's images, `trained` the classifiers'."""
        return cls(tiles.factor, tiles.side, trained) if tiles else cls(1, stored, trained)

    def as_stored(self, images: Tensor) -> Tensor:
        """Return decoded images (K, 3, H, H) at the size of stored ones."""
        return enlarge(images, self.factor * self.tile)

    def as_trained(self, images: Tensor) -> Tensor:
        """Return the images (K · f², 3, S, S) that classifiers see of decoded ones (K, 3, H, H)."""
        if self.factor == 1:
            return enlarge(images, self.trained)
        return unpack(self.as_stored(images), self.factor, self.trained)


def refinement(settings: Refine, vae: Vae | None, rules: Protocol, packing: Sizes, part: int) -> Refinement:
    """Return the recipe's Refinement, of latents if there is a `vae`; `part` images are decoded at once."""
    return Refinement(
        objective=OBJECTIVES[settings.objective],
        decode=(lambda z: packing.as_trained((vae.decode_unclamped(z) + 1) / 2))
        if vae
        else packing.as_trained,
        view=lambda images, draws: view(images, rules, draws, siamese=True),
        steps=settings.steps,
        lr=settings.lr,
        views=views_of(settings, rules),
        chunk=part,
        clamp=vae is None,
    )


def views_of(settings: Refine, rules: Protocol) -> int:
    """Return views per image and step; siamese augmentation has one, that of the target."""
    return 1 if rules.augmentations.siamese else settings.views
