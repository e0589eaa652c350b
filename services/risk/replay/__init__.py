"""Past events decided again: with the model, policy and state of then, or to see what others would change."""

from services.risk.replay.plan import Plan
from services.risk.replay.report import Report
from services.risk.replay.run import replay

__all__ = ["Plan", "Report", "replay"]
