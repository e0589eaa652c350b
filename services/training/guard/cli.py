"""`weir models guard`: a program that takes a step back by itself, and no other."""

import asyncio
import time
from typing import Annotated

import typer

from services.training.command import Repository
from services.training.stages_cli import By, Key, Model, opened


def guard(
    by: By,
    key: Key,
    worker: Annotated[
        list[str] | None, typer.Option(help="A worker's /metrics; more than once. Default from the settings.")
    ] = None,
    model: Model = "risk",
    repository: Repository = None,
) -> None:
    """Watch the workers, and take a canary or a new champion back when it passes a limit of [guard]."""
    from services.training.guard.run import run
    from services.training.guard.settings import GuardSettings
    from weir.config import LogSettings, TritonSettings
    from weir.obs.log import configure

    limits = GuardSettings.load()
    if worker:
        limits = limits.model_copy(update={"workers": worker})
    log, signer = opened(model, by, key, repository)
    configure(LogSettings.load(), service="guard")
    asyncio.run(run(log, signer, limits, TritonSettings.load(), time.time))
