"""The peer's door: FastAPI. Checks the key, reserves in one atomic call, publishes with confirm, answers 202.

``uvicorn accept:app``. Environment: see ``work.py``, which it shares the queue with.
"""

import hashlib
import hmac
import json
import os
import uuid

from fastapi import FastAPI, Header, HTTPException, Response
from kombu.exceptions import OperationalError
from pydantic import BaseModel
from work import ORGANISATION, TEMPLATE_TOKENS, run, store

PEPPER = os.environ["PEER_PEPPER"].encode()
CONCURRENT_MAX = 1_000_000

# One key, a budget and a bound on what is open: held first, so that no two can pass one limit together.
RESERVE = store.register_script("""
local counters, holds, amount = KEYS[1], KEYS[2], tonumber(ARGV[2])
if redis.call('HGET', counters, 'mac') ~= ARGV[3] then return 'key' end
local now = redis.call('HMGET', counters, 'cap', 'used', 'held', 'open')
if tonumber(now[2]) + tonumber(now[3]) + amount > tonumber(now[1]) then return 'limit' end
if tonumber(now[4]) + 1 > tonumber(ARGV[4]) then return 'limit' end
redis.call('HINCRBY', counters, 'held', amount)
redis.call('HINCRBY', counters, 'open', 1)
redis.call('HSET', holds, ARGV[1], amount)
return 'ok'
""")
RELEASE = store.register_script("""
local amount = redis.call('HGET', KEYS[2], ARGV[1])
if not amount then return 0 end
redis.call('HDEL', KEYS[2], ARGV[1])
redis.call('HINCRBY', KEYS[1], 'held', -amount)
redis.call('HINCRBY', KEYS[1], 'open', -1)
return 1
""")


class Message(BaseModel):
    """One message of a chat."""

    role: str
    content: str


class Chat(BaseModel):
    """What is asked."""

    model: str
    messages: list[Message]
    max_tokens: int = 64


app = FastAPI()


@app.post("/jobs", status_code=202)
def accept(chat: Chat, response: Response, authorization: str = Header()) -> dict[str, str]:
    """Take one job. A blocking function, since Celery publishes by blocking: FastAPI runs it in its pool of threads."""
    mac = hmac.new(PEPPER, authorization.removeprefix("Bearer ").encode(), hashlib.sha256).hexdigest()
    body = chat.model_dump()
    amount = len(json.dumps(body["messages"])) + TEMPLATE_TOKENS + chat.max_tokens
    job = uuid.uuid4().hex
    keys = [f"counters:{ORGANISATION}", f"holds:{ORGANISATION}"]
    answer = RESERVE(keys, [job, amount, mac, CONCURRENT_MAX])
    if answer == b"key":
        raise HTTPException(401, "unknown key")
    if answer == b"limit":
        raise HTTPException(429, "a limit is reached")
    try:
        run.apply_async(args=(job, body), task_id=job)
    except OperationalError as error:
        RELEASE(keys, [job])
        raise HTTPException(503, "the queue took no job") from error
    response.headers["location"] = f"/jobs/{job}"
    return {"id": job, "status": "queued"}
