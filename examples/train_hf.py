"""Train a network of transformers' on a distilled set that was pushed, by their Trainer, and score it.

python examples/train_hf.py ./my-digits /data/my-images/test      # or ORG/NAME of the hub
"""

import sys
from tempfile import mkdtemp

import datasets
import torch
from torchvision.transforms import v2
from transformers import ResNetConfig, ResNetForImageClassification, Trainer, TrainingArguments, set_seed

SIZE, BATCH, STEPS, RATE = 32, 50, 300, 2e-3
tensor = [v2.RGB(), v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize([0.5] * 3, [0.5] * 3)]


def pixels(rows, *views):
    see = v2.Compose([*views, *tensor])
    return rows.with_transform(lambda b: {"pixel_values": [*map(see, b["image"])], "labels": b["label"]})


train = datasets.load_dataset(sys.argv[1], split="train")
test = datasets.load_dataset("imagefolder", data_dir=sys.argv[2], split="train")
names = train.features["label"].names
assert names == test.features["label"].names, "labels count the classes in this order"

set_seed(0)
shape = {"embedding_size": 64, "hidden_sizes": [64, 128, 256, 512], "depths": [1, 1, 1, 1]}
model = ResNetForImageClassification(ResNetConfig(**shape, layer_type="basic", num_labels=len(names)))
words = {"per_device_train_batch_size": BATCH, "max_steps": STEPS, "learning_rate": RATE}
words |= {"weight_decay": 0.05, "lr_scheduler_type": "cosine", "warmup_steps": 0.1, "save_strategy": "no"}
arguments = TrainingArguments(mkdtemp(), remove_unused_columns=False, **words)
trainer = Trainer(model, arguments, train_dataset=pixels(train, v2.RandomResizedCrop(SIZE, (0.7, 1.0))))
trainer.train()
answers = trainer.predict(pixels(test, v2.Resize(SIZE), v2.CenterCrop(SIZE)))
right = (answers.predictions.argmax(1) == answers.label_ids).mean()
print(f"{100 * right:.2f} % of {len(test):,} images right")
