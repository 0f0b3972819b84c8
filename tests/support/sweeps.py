"""sweep.json of a search, made by hand."""

from ims3_ray.jobs.sweep.results import FIELDS, best_trials
from ims3_ray.jobs.sweep.trial import Trial

SPAN = {"low": 0.1, "high": 0.9, "log": False, "integer": False}
SPACE = {
    "select.alpha": SPAN,
    "ipc": {"values": [1, 10]},
    "select.unit": {"values": ["subgroup", "image", None]},
}


def trial(number, accuracy=0.5, *, state="finished", ipc=10, alpha=0.3, **changes):
    """A trial; failed ones have no metric."""
    usual = {
        "values": {"select.alpha": alpha, "ipc": ipc, "select.unit": "image"},
        "metrics": {} if state == "failed" else {"accuracy": accuracy, "coverage": 0.2},
        "interval": 0.02 if state == "finished" else None,
        "error": "ValueError: it broke" if state == "failed" else None,
    }
    return Trial(number, state=state, seconds=12.3, pool="ab12cd34ef56", **usual | changes)


def document(*trials, **changes):
    usual = [trial(0, 0.71, ipc=1), trial(1, 0.85), trial(2, 0.91, alpha=0.7)]
    trials = list(trials) or [*usual, trial(3, 0.6, state="stopped"), trial(4, state="failed")]
    best = best_trials([t for t in trials if t.state == "finished"], "accuracy", 10)
    pool = {"fingerprint": "ab12cd34ef56", "seconds": 41.0, "trials": len(trials), "images": 2000}
    return {
        "title": "tiny images",
        "recipe": "tiny",
        "key": "1a2b3c4d5e6f",
        "protocol": "quick-val-v1/convnet3-w32",
        "split": "validation",
        "search": "random",
        "scheduler": "asha",
        "objective": ["accuracy"],
        "space": SPACE,
        "classifier_seeds": 3,
        "device": "cpu",
        "trials_at_once": 2,
        "seconds": 321.0,
        "written": "2026-01-01T00:00:00Z",
        "trials": [{"status": t.state} | {name: getattr(t, name) for name in FIELDS} for t in trials],
        "pools": [pool],
        "saved_seconds": 900.0,
        "best": best,
        "commands": {ipc: f"ims3 distill --recipe /s/best-ipc{ipc}.yaml storage=/s" for ipc in best},
        "pareto": [],
        "comparison": None,
    } | changes
