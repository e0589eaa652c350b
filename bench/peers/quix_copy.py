"""Quix Streams (librdkafka beneath): source to target, bytes in and out.

python -m bench.peers.quix_copy SERVERS GROUP SOURCE TARGET
"""

import sys

from quixstreams import Application

servers, group, source, target = sys.argv[1:5]
app = Application(
    broker_address=servers,
    consumer_group=group,
    auto_offset_reset="earliest",
    auto_create_topics=False,
    loglevel="ERROR",
    state_dir=f"/tmp/{group}-quix",
)
incoming = app.topic(source, key_deserializer="bytes", value_deserializer="bytes")
outgoing = app.topic(target, key_serializer="bytes", value_serializer="bytes")
app.dataframe(incoming).to_topic(outgoing)

if __name__ == "__main__":
    app.run()
