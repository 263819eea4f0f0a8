"""The dashboards, in the order in which an operator needs them."""

from deploy.observe.boards.cost import COST
from deploy.observe.boards.edge import EDGE
from deploy.observe.boards.latency import LATENCY
from deploy.observe.boards.overview import OVERVIEW
from deploy.observe.boards.queue import QUEUE

DASHBOARDS = (OVERVIEW, LATENCY, QUEUE, EDGE, COST)

__all__ = ["DASHBOARDS"]
