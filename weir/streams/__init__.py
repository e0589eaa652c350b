"""Batch streaming on Faust: an agent is handed one record batch a partition a fetch, and sends one."""

from weir.streams.app import BatchApp, TakenBatch
from weir.streams.batch import RecordBatch
from weir.streams.outbox import AtLeastOnce, Delivery, Output

__all__ = ["AtLeastOnce", "BatchApp", "Delivery", "Output", "RecordBatch", "TakenBatch"]
