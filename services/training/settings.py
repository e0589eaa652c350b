"""How models are trained and where they are kept."""

from pathlib import Path
from typing import ClassVar

from pydantic import Field

from weir.config import WeirSettings


class TrainingSettings(WeirSettings):
    """[training] or WEIR_TRAINING_*."""

    section: ClassVar[str] = "training"

    repository: Path = Field(Path("triton_models"), description="Triton's model repository")
    threads: int = Field(0, ge=0, le=1024, description="threads of LightGBM; 0 for one a core")
    bags: int = Field(3, ge=1, le=64, description="fits that are averaged into one model")
    pairs_max: int = Field(
        64, ge=0, le=1000, description="pairs of features that may act together; all there are from 561 on"
    )
    prune: float = Field(
        0.003,
        ge=0,
        le=0.1,
        description="logit units that joining cells may move each table by, root mean square; 0 for none",
    )
    honest_rows_max: int = Field(
        300_000, ge=1000, description="honest rows kept for fitting; each then weighs for those left out"
    )
    validation_days: int = Field(7, ge=1, le=90, description="choose rounds and pairs, calibrate")
    test_days: int = Field(7, ge=1, le=90, description="the later days that judge")
    warmup_days: int = Field(
        0,
        ge=0,
        le=90,
        description="first days to leave out; they teach what an account with no past looks like",
    )
    bootstrap_draws: int = Field(200, ge=10, le=10_000, description="resamplings behind an interval")
    dask_scheduler: str | None = Field(
        None,
        pattern=r"^(tcp|tls)://[^\s/]+:[0-9]+$",
        description="whose workers compute, such as tcp://scheduler:8786; none: this process alone",
    )
    dask_ca: Path | None = Field(None, description="whose certificates are believed (PEM); for tls://")
    dask_certificate: Path | None = Field(None, description="our own (PEM), for mutual TLS")
    dask_key: Path | None = Field(None, description="its private key (PEM, not encrypted)")
