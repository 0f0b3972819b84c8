"""Ray: connection, resources, actor pools, training, metrics.

Importing this package installs two hooks for code that does not import Ray: bars export gauges, and images
are read by tasks.
"""

from ims3_ray import progress
from ims3_ray.data import folders

from .metrics_actor import PrometheusBar
from .tasks import map_on_cluster

progress.BAR_CLASS = PrometheusBar
folders.EACH = map_on_cluster
