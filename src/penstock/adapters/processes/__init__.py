"""Child processes on this machine: our own and the services that they need, kept running and ended in order.

``Supervisor`` runs what a ``Program`` describes; ``services`` describes Redis, PostgreSQL and RabbitMQ.
"""

from penstock.adapters.processes.leftovers import end_leftovers, sole_supervisor
from penstock.adapters.processes.programs import Program, answers, free_port
from penstock.adapters.processes.services import (
    PostgresqlServer,
    RabbitmqServer,
    RedisServer,
)
from penstock.adapters.processes.supervising import Supervisor

__all__ = [
    "PostgresqlServer",
    "Program",
    "RabbitmqServer",
    "RedisServer",
    "Supervisor",
    "answers",
    "end_leftovers",
    "free_port",
    "sole_supervisor",
]
