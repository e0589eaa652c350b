"""Faust as its guide shows it: one agent, one event at a time, raw bytes in and out.

python -m bench.peers.faust_copy SERVERS GROUP SOURCE TARGET
"""

import sys
from typing import Any

import faust
import uvloop

uvloop.install()
servers, group, source, target = sys.argv[1:5]
app = faust.App(
    group,
    broker=f"kafka://{servers}",
    store="memory://",
    web_enabled=False,
    topic_allow_declare=False,
    topic_disable_leader=True,
    consumer_auto_offset_reset="earliest",
    value_serializer="raw",
    key_serializer="raw",
    datadir=f"/tmp/{group}-faust",
)
incoming = app.topic(source, key_type=bytes, value_type=bytes)
outgoing = app.topic(target, key_type=bytes, value_type=bytes)


@app.agent(incoming)
async def copy(events: Any) -> None:
    async for key, value in events.items():
        await outgoing.send(key=key, value=value)


if __name__ == "__main__":
    sys.argv = [sys.argv[0], "worker", "-l", "error", "--without-web"]
    app.main()
