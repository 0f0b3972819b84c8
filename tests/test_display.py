"""Numbers and their units, as a person reads them."""

import pytest

from ims3_ray.display import format_bytes, noun


@pytest.mark.parametrize(
    ("number", "plural", "said"),
    [
        (1, "pages", "page"),
        (2, "pages", "pages"),
        (1, "classes", "class"),
        (1, "images", "image"),
        (0, "steps", "steps"),
    ],
)
def test_one_is_no_plural(number, plural, said):
    assert noun(number, plural) == said


@pytest.mark.parametrize(
    ("num_bytes", "said"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (999.6, "1 kB"),
        (12_345_678, "12.3 MB"),
        (999.7e6, "1 GB"),
        (2.5e15, "2.5e+03 TB"),
    ],
)
def test_a_size_has_three_digits_and_a_unit(num_bytes, said):
    assert format_bytes(num_bytes) == said
