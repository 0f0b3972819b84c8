"""A parser for pages under test, and the data of a small report."""

import re
from html.parser import HTMLParser
from io import BytesIO

import numpy as np
from PIL import Image

from ims3_ray.report.formatting import METRICS
from ims3_ray.report.inputs import ReportData

HOSTILE = "<script>alert(1)</script>"
TEMPLATE = "{{7*7}}"
FORMULA = "$\\frac{$ x_1"
IPC, SUBGROUPS = 2, 3


class Page(HTMLParser):
    """Elements with their attributes, and the text outside style sheets."""

    def __init__(self, page: bytes):
        super().__init__()
        self.elements, self.text, self._style = [], "", False
        self.feed(page.decode())

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        self._style = tag == "style"

    def handle_endtag(self, tag):
        self._style = False

    def handle_data(self, data):
        self.text += "" if self._style else data

    def values(self, *names):
        return [attributes[name] for _, attributes in self.elements for name in names if name in attributes]


def assert_self_contained(page: bytes) -> Page:
    """Assert that a page fetches and runs nothing and that ids are unique; return the parsed page."""
    parsed = Page(page)
    assert "script" not in {tag for tag, _ in parsed.elements}
    assert not [name for _, attributes in parsed.elements for name in attributes if name.startswith("on")]
    ids = parsed.values("id")
    assert len(ids) == len(set(ids))
    links = parsed.values("src", "href", "xlink:href", "srcset", "data", "action", "poster")
    assert links
    assert all(link.startswith("data:image/") or link[1:] in ids for link in links)
    assert not re.search(rb"@import|url\((?!#)", page)
    return parsed


def png(rng, size=8) -> bytes:
    buffer = BytesIO()
    Image.fromarray(rng.integers(0, 256, (size, size, 3), np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def score(*values) -> dict:
    spread = float(np.std(values, ddof=1)) if len(values) > 1 else None
    measured = {"mean": float(np.mean(values)), "values": list(values)}
    return measured | {"deviation": spread, "interval": spread}


def evaluation(distilled=(0.90, 0.91, 0.92), random=(0.80, 0.81, 0.82)) -> dict:
    values = {"distilled": distilled, "random": random, "full": (0.98, 0.98, 0.99)}
    sets = {
        name: {"images": 6, "last": score(*v), "best": score(*v), "curves": [[[10, 0.3], [20, v[0]]]]}
        for name, v in values.items()
    }
    measured = dict.fromkeys(METRICS, 0.25) | {"recall": None, "kid": 0.5, "deciles": None}
    coverage = {"distilled": measured, "random": {"coverage": 0.75}}
    return {"protocol": "quick-v1/convnet3-w32", "split": "test", "sets": sets, "coverage": coverage}


def selection(classes) -> dict:
    per_class = {
        c: {"subgroups": [0, 1, 2], "distances_to_real": [0.3, 0.1, 0.2 + i], "distance_to_real": 0.2 + i}
        for i, c in enumerate(classes)
    }
    solved = {"objective": -3.0, "start_objective": -2.5, "terms": {"attraction": -4.0, "separation": -1.0}}
    solved |= {"lower_bound": None, "gap": None, "solver": "coordinate descent", "certificate": "none"}
    chosen = {"selection": dict.fromkeys(classes, 2), "unit": "subgroup", "settings": {"alpha": 0.4}}
    return chosen | solved | {"per_class": per_class}


def report(classes=(HOSTILE, TEMPLATE, FORMULA), **changes) -> ReportData:
    rng, count = np.random.default_rng(0), len(classes)
    labels = np.repeat(np.arange(count), IPC * SUBGROUPS)
    subgroups = np.tile(np.repeat(np.arange(SUBGROUPS), IPC), count)
    centres = rng.normal(size=(count, 5)).astype(np.float32)

    def near(of):
        return (centres[of] + 0.1 * rng.normal(size=(len(of), 5))).astype(np.float32)

    shares = {"matching": 0.5, "grad_ratio/matching": 0.01, "weight/matching": 0.002}
    sample = {"subgroups": SUBGROUPS, "batch_size": {"cpu": 25}}
    values = {
        "title": "tiny",
        "config": {"ipc": IPC, "sample": sample, "im": {"minimax": None}},
        "classes": tuple(classes),
        "about": {"ray": "2.60.0"},
        "contact": {c: {"distilled": [png(rng) for _ in range(IPC)], "real": [png(rng)]} for c in classes},
        "real_features": near(labels),
        "real_labels": labels,
        "candidate_features": near(labels),
        "candidate_labels": labels,
        "candidate_selected": subgroups == 2,
        "selection": selection(classes),
        "history": [{"step": s, "diffusion": 1 / s, **shares} for s in range(1, 30)],
        "evaluation": evaluation(),
        "stages": [{"name": "encode", "rows": 10, "unit": "images", "seconds": 2.0, "rate": 5.0}],
        "commands": {"Again": "ims3 distill ipc=2 && echo '<done>'"},
    } | changes
    counts = [len(values["contact"][name]["distilled"]) for name in classes]
    return ReportData(counts=counts, **values)
