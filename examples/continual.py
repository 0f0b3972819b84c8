"""Class-incremental learning with a memory of distilled images, beside one of as many random real images.

python examples/continual.py runs/distilled/KEY /data/my-images/train /data/my-images/test

Classes arrive two by two; after each step a network is trained from scratch on the memory alone, and scored
on all classes so far (GDumb: Prabhu et al. 2020; with distilled memories: Zhao & Bilen 2023).
"""

import random
import sys

import torch
from torch.nn import AvgPool2d, Conv2d, Flatten, GroupNorm, Linear, ReLU, Sequential
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, RandomSampler, Subset
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

import ims3_ray

NEW, SIZE, WIDTH, BATCH, STEPS, RATE = 2, 32, 32, 32, 100, 0.1
tensor = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize([0.5] * 3, [0.5] * 3)]
views = v2.Compose([v2.RandomResizedCrop(SIZE, (0.7, 1.0)), *tensor])
distilled, real = ims3_ray.load_distilled(sys.argv[1], views), ImageFolder(sys.argv[2], views)
test = ImageFolder(sys.argv[3], v2.Compose([v2.Resize(SIZE), v2.CenterCrop(SIZE), *tensor]))
assert distilled.classes == real.classes == test.classes, "labels count the classes in the same order"


def of(images, labels):
    return [i for i, label in enumerate(images.targets) if label in labels]


def block(channels):
    return Sequential(Conv2d(channels, WIDTH, 3, padding=1), GroupNorm(WIDTH, WIDTH), ReLU(), AvgPool2d(2))


def train(memory, classes):
    torch.manual_seed(classes)  # both memories start from the same weights
    model = Sequential(*map(block, (3, WIDTH, WIDTH)), Flatten(), Linear(WIDTH * SIZE**2 // 64, classes))
    optimiser = torch.optim.SGD(model.parameters(), RATE, momentum=0.9, nesterov=True, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, RATE, STEPS, pct_start=0.1)
    for images, labels in DataLoader(memory, BATCH, sampler=RandomSampler(memory, True, STEPS * BATCH)):
        cross_entropy(model(images), labels).backward()
        optimiser.step()
        optimiser.zero_grad()
        schedule.step()
    return model.eval()


random.seed(0)
labels = range(len(test.classes))
chosen = [i for label in labels for i in random.sample(of(real, [label]), len(of(distilled, [label])))]
for seen in [*range(NEW, len(labels), NEW), len(labels)]:
    scored, memory = (Subset(images, of(images, labels[:seen])) for images in (test, distilled))
    drawn = Subset(real, [i for i in chosen if real.targets[i] < seen])
    for name, images in {"distilled": memory, "random real": drawn}.items():
        model = train(images, seen)
        with torch.inference_mode():
            right = sum(int((model(x).argmax(1) == y).sum()) for x, y in DataLoader(scored, 250))
        print(f"{seen} classes, {len(images)} images, {name}: {100 * right / len(scored):.2f} % right")
