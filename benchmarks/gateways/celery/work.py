"""The peer's worker: Celery. Late acknowledgement, a quorum queue, confirms; result and charge once, together.

``celery -A work worker``. Environment: PEER_BROKER, PEER_REDIS, PEER_DATABASE, PEER_MODEL (URLs), PEER_PEPPER.
"""

import os
from functools import cache

import httpx
import psycopg
import redis
from celery import Celery
from kombu import Queue
from psycopg.types.json import Jsonb

ORGANISATION = "acme"
TEMPLATE_TOKENS = 16
MODEL = os.environ["PEER_MODEL"]

store = redis.Redis.from_url(os.environ["PEER_REDIS"])
app = Celery("work", broker=os.environ["PEER_BROKER"])
app.conf.update(
    task_acks_late=True,
    task_reject_on_worker_lost=True,
    task_ignore_result=True,
    worker_prefetch_multiplier=1,
    broker_transport_options={"confirm_publish": True},
    task_default_queue="jobs",
    task_queues=[Queue("jobs", queue_arguments={"x-queue-type": "quorum"})],
    worker_send_task_events=False,
    task_send_sent_event=False,
    broker_connection_retry_on_startup=True,
)

# The hold becomes what was used, once: whoever comes second finds no hold.
SETTLE = store.register_script("""
local amount = redis.call('HGET', KEYS[2], ARGV[1])
if not amount then return 0 end
redis.call('HDEL', KEYS[2], ARGV[1])
redis.call('HINCRBY', KEYS[1], 'held', -amount)
redis.call('HINCRBY', KEYS[1], 'open', -1)
redis.call('HINCRBY', KEYS[1], 'used', ARGV[2])
return 1
""")
RESULT = """
INSERT INTO results (job, organisation, model, status, body, prompt_tokens, completion_tokens)
VALUES (%s, %s, %s, 'succeeded', %s, %s, %s) ON CONFLICT DO NOTHING RETURNING job
"""
CHARGE = """
INSERT INTO ledger (job, organisation, model, prompt_tokens, completion_tokens, cost_nanos)
VALUES (%s, %s, %s, %s, %s, %s) ON CONFLICT DO NOTHING
"""


@cache
def client() -> httpx.Client:
    """The connection to the model server, one for each process."""
    return httpx.Client(base_url=MODEL, timeout=60)


@cache
def database() -> psycopg.Connection:
    """The connection to PostgreSQL, one for each process."""
    return psycopg.connect(os.environ["PEER_DATABASE"])


@app.task(name="run")
def run(job: str, body: dict) -> None:
    """Call the model, keep result and charge, settle; all of it may happen again, and counts once."""
    answer = client().post("/v1/chat/completions", json=body)
    answer.raise_for_status()
    whole = answer.json()
    usage = whole["usage"]
    prompt, completion = usage["prompt_tokens"], usage["completion_tokens"]
    with database().transaction():
        new = (
            database().execute(RESULT, (job, ORGANISATION, body["model"], Jsonb(whole), prompt, completion)).fetchone()
        )
        if new is not None:
            cost_nanos = prompt * 1000 + completion * 2000
            database().execute(CHARGE, (job, ORGANISATION, body["model"], prompt, completion, cost_nanos))
    SETTLE([f"counters:{ORGANISATION}", f"holds:{ORGANISATION}"], [job, prompt + completion])
