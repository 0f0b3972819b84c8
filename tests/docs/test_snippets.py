"""Python that a page prints gives what the page says."""

import torch
from printed import FENCE, ROOT

from ims3_ray.method.packing import unpack


def run(page, beginning, **names):
    """Runs the page's block that begins so; returns its names."""
    code = (ROOT / page).read_text(encoding="utf-8")
    (block,) = (body for _, body in FENCE.findall(code) if body.startswith(beginning))
    exec(block, names)
    return names


def test_the_printed_unpacking_is_that_of_the_package():
    stored = torch.rand(2, 3, 12, 12, generator=torch.Generator().manual_seed(0))
    for factor in (2, 3):
        printed = run("docs/packing.md", "tiles =", images=stored, side=12, s=12 // factor, torch=torch)
        torch.testing.assert_close(printed["images"], unpack(stored, factor, 12))


def test_the_printed_selection_is_proven_optimal():
    selection = run("docs/select.md", "import numpy")["selection"]
    assert (selection.choice.shape, selection.gap) == ((10,), 0.0)
