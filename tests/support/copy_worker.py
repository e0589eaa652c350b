"""A Faust worker that copies a batch topic; run as a process by the stream tests.

python -m tests.support.copy_worker SERVERS GROUP SOURCE TARGET [DELAY_MS]
"""

import asyncio
import sys

from faust.types import TP

from weir.config import KafkaSettings
from weir.streams import AtLeastOnce, BatchApp, Output

servers, group, source, target, *rest = sys.argv[1:]
seek_back_at = int(rest[1]) if len(rest) > 1 else None
delay_s = float(rest[0]) / 1000 if rest else 0.0
kafka = KafkaSettings(bootstrap_servers=servers)
app = BatchApp(
    group,
    kafka=kafka,
    web_enabled=False,
    datadir="/tmp/weir-copy-worker",
    batch_rows_max=500,
    session_timeout_s=6.0,
    commit_interval_s=0.3,
)
out = AtLeastOnce(kafka, client_id=group)


@app.agent(app.batch_topic(source))
async def copy(stream):
    global seek_back_at
    await out.start()
    async for taken in app.batches(stream):
        batch = taken.batch
        if delay_s:
            await asyncio.sleep(delay_s)
        print(f"TAKEN {batch.partition} {batch.offset_first} {len(batch)}", flush=True)
        if seek_back_at is not None and batch.offset_last >= seek_back_at:
            seek_back_at = None
            await app.consumer.seek(TP(source, batch.partition), 0)
        copy_of = Output(
            target, batch.partition, batch.keys, batch.values, [[]] * len(batch), batch.timestamps_ms
        )
        await out.enqueue([taken], [copy_of])


if __name__ == "__main__":
    sys.argv = [sys.argv[0], "worker", "-l", "warn", "--without-web"]
    app.main()
