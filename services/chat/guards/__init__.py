"""What must not reach a model, and what must not reach a customer: by rules that a bank edits."""

from services.chat.guards.guards import ALLOWED, Action, Guards, Threat, Verdict
from services.chat.guards.rules import BadRules

__all__ = ["ALLOWED", "Action", "BadRules", "Guards", "Threat", "Verdict"]
