"""The direction of imports: jobs → commands → pipeline → stages → models, data → tables, artifacts, config; method alone."""

import ast
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "ims3_ray"
MAY_IMPORT = {  # a folder → what of the package it may import, beside itself
    "method": set(),
    "evaluation": {"method", "models", "errors", "shown"},
    "models": {"method", "artifacts", "config", "errors", "tables"},
    "data": {"method", "tables", "artifacts", "errors", "progress", "shown"},
    "report": {"evaluation", "method", "errors"},
}
STAGE_MAY = {
    "artifacts", "baselines", "cluster", "config", "config_pretrain", "context", "data", "embedding", "environment", "errors",
    "evaluation", "fanout", "method", "models", "optimisation", "pretraining", "progress", "report", "scoring", "selecting",
    "starts", "tables", "training",
}  # fmt: skip

MODULE_MAY = {  # top-level modules that score anybody's sets: below them are no stages and no pipeline
    "auditing": {"artifacts", "data", "errors", "evaluation"},
    "embedding": {"artifacts", "cluster", "config", "data", "evaluation", "fanout", "models", "tables"},
    "evaluating": {
        "artifacts", "auditing", "baselines", "cluster", "config", "data", "embedding", "environment", "errors",
        "evaluation", "hashing", "models", "preparation", "scoring",
    },
}  # fmt: skip


def imported(path):
    """First names below ims3_ray that a module imports, at any depth of its code."""
    depth = len(path.relative_to(PACKAGE).parts)
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            if node.level == depth:
                yield from [node.module.split(".")[0]] if node.module else [alias.name for alias in node.names]
            elif node.level == 0 and node.module and node.module.startswith("ims3_ray"):
                yield [*node.module.split("."), node.names[0].name][1]
        elif isinstance(node, ast.Import):
            yield from (alias.name.split(".")[1] for alias in node.names if alias.name.startswith("ims3_ray."))


def test_folders_import_in_one_direction_alone():
    for folder, allowed in MAY_IMPORT.items():
        for path in (PACKAGE / folder).rglob("*.py"):
            wrong = set(imported(path)) - allowed - {folder}
            assert not wrong, f"{path.relative_to(PACKAGE)} imports {sorted(wrong)}"


def test_modules_that_score_anybodys_sets_import_no_stage():
    for module, allowed in MODULE_MAY.items():
        wrong = set(imported(PACKAGE / f"{module}.py")) - allowed
        assert not wrong, f"{module}.py imports {sorted(wrong)}"


def test_stages_never_import_each_other():
    for path in (PACKAGE / "stages").glob("*.py"):
        wrong = set(imported(path)) - STAGE_MAY
        assert not wrong, f"{path.name} imports {sorted(wrong)}"
        for node in ast.walk(ast.parse(path.read_text())):
            assert not (isinstance(node, ast.ImportFrom) and node.level == 1), f"{path.name} imports a stage"


def test_the_method_knows_no_ray_no_files_and_no_logging():
    for path in (PACKAGE / "method").glob("*.py"):
        text = path.read_text()
        for forbidden in ("import ray", "import logging", "open(", "torch.manual_seed", "np.random.seed"):
            assert forbidden not in text, f"{path.name}: {forbidden}"


def test_the_walk_sees_an_import_in_the_wrong_direction(tmp_path, monkeypatch):
    module = PACKAGE / "method" / "schedule.py"
    fake = tmp_path / "method"
    fake.mkdir()
    (fake / "schedule.py").write_text("from ..config import Config\n" + module.read_text())
    monkeypatch.setattr("test_imports.PACKAGE", tmp_path)
    assert "config" in set(imported(fake / "schedule.py"))
