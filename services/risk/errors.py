"""The risk service's own errors."""

from weir.errors import ConfigError


class PolicyError(ConfigError):
    """A policy or reasons file cannot be used; its text names the file and the field."""
