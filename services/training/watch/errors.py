"""What can go wrong when a model is watched."""

from services.training.errors import TrainingError


class WatchRefused(TrainingError):
    """The events or the request cannot be judged; nothing was written."""


class AlarmRaised(TrainingError):
    """The model was judged, and an alarm stands; everything asked for was written."""


class RetrainRefused(TrainingError):
    """No candidate was trained: another run holds the lock, or the data has no later week to judge on."""
