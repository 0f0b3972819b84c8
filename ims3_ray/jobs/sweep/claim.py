"""What a sweep's page opens with: the best trial by IPC and its setting, what its score may be taken for,
what was shared.
"""

from ims3_ray.jobs.ablate.claim import listed
from ims3_ray.report.claim import Claim
from ims3_ray.report.wording import duration

from .trials import ACCURACY, FAILED, FINISHED, IPC, MOST_NAMED, STOPPED, Sweep, Trial, metric_name, setting


def sweep_claim(sweep: Sweep) -> Claim:
    """Of the first objective, on the largest IPCs. Says so where no trial finished."""
    split = sweep.document["split"]
    if not sweep.best:
        return Claim("No trial finished", "Nothing was chosen, and there is no setting to run.")
    named = list(sweep.best.items())[-MOST_NAMED:]
    scores = [f"{score_in_words(sweep, trial)} at {ipc}" for ipc, trial in named]
    images = "image" if named[-1][0] == "1" else "images"
    headline = (
        f"Best {metric_name(sweep.objective).lower()} on {split} images: {listed(scores)} {images} a class"
    )
    settings = [f"{_at(sweep, ipc)}trial {trial.number} ({_setting(trial)})" for ipc, trial in named]
    more = f" The table has {len(sweep.best) - len(named)} more." if len(sweep.best) > len(named) else ""
    return Claim(headline, f"{_sentence('; '.join(settings))}{more} {_scored_on(sweep, split)}")


def sweep_work(sweep: Sweep) -> str:
    """What became of the trials, how many lie on the Pareto front, and what they shared."""
    front = len(sweep.document["pareto"])
    on_front = f"{front} {'lies' if front == 1 else 'lie'} on the Pareto front." if front else ""
    return " ".join(part for part in (counts(sweep), on_front, shared(sweep)) if part)


def score_in_words(sweep: Sweep, trial: Trial) -> str:
    """`91.2 ± 2.1 %`; of other objectives the plain figure."""
    score, interval = sweep.score(trial), sweep.interval(trial)
    if sweep.objective != ACCURACY:
        return f"{score:.3f}"
    return f"{100 * score:.1f}{'' if interval is None else f' ± {100 * interval:.1f}'}\u202f%"


def counts(sweep: Sweep) -> str:
    """How many trials finished, were stopped early and failed, and how many of them were complete before."""
    total, found = len(sweep.trials), sum(trial.found for trial in sweep.trials)
    by = f" by {sweep.document['scheduler']}" if sweep.document["scheduler"] else ""
    parts = [f"{sweep.status_count(FINISHED)} finished", f"{sweep.status_count(FAILED)} failed"]
    if by or sweep.status_count(STOPPED):
        parts.insert(
            1, f"{sweep.status_count(STOPPED)} {_were(sweep.status_count(STOPPED))} stopped early{by}"
        )
    before = f" {found} {_were(found)} complete before this sweep." if found else ""
    return f"Of {total} trial{'' if total == 1 else 's'} {listed(parts)}.{before}"


def shared(sweep: Sweep) -> str:
    """How many pools of candidates served the trials, and the time that this saved."""
    pools, saved = sweep.document["pools"], sweep.document["saved_seconds"]
    if not pools:
        return ""
    served = sum(pool["trials"] for pool in pools)
    pools_of = f"{len(pools)} pool{'' if len(pools) == 1 else 's'} of candidates"
    saving = f", which saved {duration(saved)}" if saved else ""
    return f"{pools_of} served {served} trial{'' if served == 1 else 's'}{saving}."


def _scored_on(sweep: Sweep, split: str) -> str:
    if split == "test":
        return (
            "Trials were scored on test images: these figures served a choice, and none of them is a result."
        )
    luck = f"; the highest of {len(sweep.scored)} is in part luck, so score the winner on test images, once"
    return (
        f"Trials were scored on {split} images, never on test images{luck if len(sweep.scored) > 1 else ''}."
    )


def _setting(trial: Trial) -> str:
    return setting(trial, leave_out=[IPC]) or "the recipe as it is"


def _at(sweep: Sweep, ipc: str) -> str:
    return f"at {ipc}: " if len(sweep.best) > 1 else ""


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."


def _were(number: int) -> str:
    return "was" if number == 1 else "were"
