"""All of Ray's set-up: the machine, work that is fanned out, training, what workers tell the driver."""

from ims3_ray import progress
from ims3_ray.data import folders

from .metrics_actor import PrometheusBar
from .tasks import map_on_cluster

# in every process that uses Ray
progress.BAR_CLASS = PrometheusBar
folders.EACH = map_on_cluster
