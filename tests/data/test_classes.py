"""The map from class folders to the generator's labels."""

import json

import pytest
import yaml

from ims3_ray.data.classes import class_map, imagenet_labels
from ims3_ray.errors import InputError


def test_imagenet_ids_map_to_their_sorted_index():
    labels = imagenet_labels()
    assert (len(labels), labels["n01440764"], labels["n15075141"]) == (1000, 0, 999)
    assert class_map(("n02087394", "n02086240"), None, 1000, None) == [159, 155]


def test_folders_map_by_the_models_names():
    assert class_map(("b", "a"), ("a", "b", "c"), 3, None) == [1, 0]
    assert class_map(("x", "y"), None, 1000, "new") == [0, 1]


def test_a_name_of_two_classes_maps_to_neither():
    with pytest.raises(InputError, match="'crane'"):
        class_map(("crane", "dog"), ("crane", "dog", "crane"), 3, None)
    assert class_map(("dog",), ("crane", "dog", "crane"), 3, None) == [1]


@pytest.mark.parametrize(
    ("table", "problem"),
    [
        ("{a: 1}", "'b'"),
        ("{a: 1, b: 1}", "one label to two"),
        ("{a: 1, b: 9}", "0 … 2"),
        ("[1]", "table"),
        ("{a: 1, b: x}", "'x'"),
    ],
)
def test_an_invalid_class_table_is_an_error(tmp_path, table, problem):
    path = tmp_path / "table.yaml"
    path.write_text(table)
    given = yaml.safe_load(table)
    for way in (str(path), given) if isinstance(given, dict) else (str(path),):
        with pytest.raises(InputError, match=problem):
            class_map(("a", "b"), None, 3, way)


@pytest.mark.parametrize("suffix", [".yaml", ".json"])
def test_a_table_in_the_recipe_equals_one_in_a_file(tmp_path, suffix):
    path, table = (tmp_path / "table").with_suffix(suffix), {"b": 0, "a": 2, "c": 1}
    path.write_text(json.dumps(table, indent=2))
    assert class_map(("a", "b"), None, 3, table) == class_map(("a", "b"), None, 3, str(path)) == [2, 0]


def test_an_unknown_folder_is_an_error_that_names_the_field():
    with pytest.raises(InputError, match=r"'cat'.*data\.class_map"):
        class_map(("cat", "n01440764"), None, 1000, None)
