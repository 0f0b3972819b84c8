"""Train a ResNet on a distilled set and score it on real images, by torch and torchvision alone.

python examples/train_resnet.py runs/distilled/KEY/train /data/my-images/test

A packed set says so in distilled.json beside `train`; each view then takes one of an image's tiles.
"""

import json
import random
import sys
from pathlib import Path

import torch
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, RandomSampler
from torchvision.datasets import ImageFolder
from torchvision.models.resnet import BasicBlock, ResNet
from torchvision.transforms import v2

SIZE, BATCH, RATE = 32, 64, 0.05
torch.manual_seed(0)
random.seed(0)
packed = Path(sys.argv[1]).absolute().parent / "distilled.json"
factor = json.loads(packed.read_text())["packing_factor"] if packed.exists() else 1
steps = 200 * factor**2  # a packed set has as many times more images


def tile(image):
    side = image.width // factor
    left, top = (side * random.randrange(factor) for _ in range(2))
    return image.crop((left, top, left + side, top + side)).resize(image.size, 2)  # bilinear


tensor = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize([0.5] * 3, [0.5] * 3)]
views = v2.Compose([tile, v2.RandomResizedCrop(SIZE, (0.7, 1.0)), *tensor])
train = ImageFolder(sys.argv[1], views)
test = ImageFolder(sys.argv[2], v2.Compose([v2.Resize(SIZE), v2.CenterCrop(SIZE), *tensor]))

model = ResNet(BasicBlock, [1, 1, 1, 1], num_classes=len(train.classes))
model.conv1, model.maxpool = torch.nn.Conv2d(3, 64, 3, stride=2, padding=1, bias=False), torch.nn.MaxPool2d(1)
optimiser = torch.optim.SGD(model.parameters(), RATE, momentum=0.9, nesterov=True, weight_decay=5e-4)
schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, RATE, steps, pct_start=0.1)
for images, labels in DataLoader(train, BATCH, sampler=RandomSampler(train, True, steps * BATCH)):
    loss = cross_entropy(model(images), labels)
    optimiser.zero_grad()
    loss.backward()
    optimiser.step()
    schedule.step()
model.eval()
with torch.inference_mode():
    right = sum(int((model(images).argmax(1) == labels).sum()) for images, labels in DataLoader(test, 250))
print(f"{100 * right / len(test):.2f} % of {len(test):,} images right")
