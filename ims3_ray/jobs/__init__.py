"""The commands of `ims3`, each with its module."""

COMMANDS = {  # name → module of this package with `add_arguments(parser)` and `run(arguments)`
    "convert": "ims3_ray.jobs.convert",
    "distill": "ims3_ray.jobs.distill.command",
    "doctor": "ims3_ray.jobs.doctor",
    "evaluate": "ims3_ray.jobs.evaluate.command",
    "init": "ims3_ray.jobs.init",
    "pretrain": "ims3_ray.jobs.pretrain.command",
    "push": "ims3_ray.jobs.share.push",
    "runs": "ims3_ray.jobs.runs.command",
    "select": "ims3_ray.jobs.select",
    "sweep": "ims3_ray.jobs.sweep.command",
    "verify": "ims3_ray.jobs.share.verify",
    "view": "ims3_ray.jobs.view.command",
}
