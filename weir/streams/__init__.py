"""Batch streaming on Faust: an agent is handed one record batch a partition a fetch, and sends one."""

from weir.streams.app import BatchApp, TakenBatch
from weir.streams.batch import RecordBatch
from weir.streams.outbox import AtLeastOnce, Delivery, Output
from weir.streams.worker import run_worker

__all__ = ["AtLeastOnce", "BatchApp", "Delivery", "Output", "RecordBatch", "TakenBatch", "run_worker"]
