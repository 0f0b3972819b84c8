"""All of Ray's set-up: the machine, work that is fanned out, training, what workers tell the driver."""

from ims3_ray import progress

from .board import CountedBar

progress.BAR = CountedBar  # in every process that uses Ray
