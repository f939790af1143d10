"""The auto-classes: four verbs each, no logic of their own."""

from QEfficient.transformers.models.causal_lm import QEFFAutoModelForCausalLM
from QEfficient.transformers.models.common_loader import QEFFCommonLoader
from QEfficient.transformers.models.features import QEFFAutoModel

__all__ = ["QEFFAutoModel", "QEFFAutoModelForCausalLM", "QEFFCommonLoader"]
