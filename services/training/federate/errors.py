"""What can go wrong between banks that train together."""

from services.training.errors import TrainingError


class UpdateRefused(TrainingError):
    """A bank sent what is no update of this model; it is never averaged."""


class FederationStopped(TrainingError):
    """The banks could not go on, or voted a model down; what they had agreed on before still stands."""
