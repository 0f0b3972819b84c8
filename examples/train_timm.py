"""Train a timm network on a distilled set by timm's own transforms, optimiser and schedule, and score it.

python examples/train_timm.py runs/distilled/KEY /data/my-images/test      # or hf://ORG/NAME
"""

import sys

import timm
import torch
from timm.data import create_transform
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, RandomSampler
from torchvision.datasets import ImageFolder

import ims3_ray

SIZE, BATCH, STEPS, RATE = 32, 64, 200, 0.15
torch.manual_seed(0)
values = {"input_size": SIZE, "interpolation": "bilinear", "mean": (0.5,) * 3, "std": (0.5,) * 3}
views = create_transform(**values, is_training=True, scale=(0.7, 1.0), hflip=0.0, color_jitter=0.0)
train = ims3_ray.load_distilled(sys.argv[1], views)
test = ImageFolder(sys.argv[2], create_transform(**values, crop_pct=1.0))
assert train.classes == test.classes, "labels count the classes in the order of train.classes"

model = timm.create_model("resnet10t", num_classes=len(train.classes))
optimiser = create_optimizer_v2(model, opt="nesterov", lr=RATE, momentum=0.9, weight_decay=5e-4)
schedule = CosineLRScheduler(optimiser, STEPS, warmup_t=STEPS // 10, t_in_epochs=False)
draws = RandomSampler(train, replacement=True, num_samples=STEPS * BATCH)
for step, (images, labels) in enumerate(DataLoader(train, BATCH, sampler=draws)):
    schedule.step_update(step)
    loss = cross_entropy(model(images), labels)
    optimiser.zero_grad()
    loss.backward()
    optimiser.step()
model.eval()
with torch.inference_mode():
    right = sum(int((model(images).argmax(1) == labels).sum()) for images, labels in DataLoader(test, 250))
print(f"{100 * right / len(test):.2f} % of {len(test):,} images right")
