"""Batch streaming on Faust: an agent is handed one record batch a partition a fetch, and sends one."""

from weir.streams.app import BatchApp, TakenBatch
from weir.streams.batch import BatchGroup, RecordBatch
from weir.streams.gather import Gatherer
from weir.streams.output import Output
from weir.streams.worker import run_worker

__all__ = [
    "BatchApp",
    "BatchGroup",
    "Gatherer",
    "Output",
    "RecordBatch",
    "TakenBatch",
    "run_worker",
]
