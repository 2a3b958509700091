"""`harness map`: source models from inside. Each stage stands in a file of its own, `map_<stage>.py`."""

from __future__ import annotations

from cyclopts import App

from harness.cli.map_catalogue import catalogue
from harness.cli.map_clusters import clusters
from harness.cli.map_shared import shared
from harness.cli.map_topology import topology

app = App(
    name="map",
    help="Source models from inside: what their features mean, which point the same way, which are shared.",
    help_format="plaintext",
)
app.command(catalogue)
app.command(topology)
app.command(clusters)
app.command(shared)
