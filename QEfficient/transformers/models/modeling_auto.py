"""The auto-classes under the path that scripts import them from."""

from QEfficient.transformers.models.causal_lm import QEFFAutoModelForCausalLM

__all__ = ["QEFFAutoModelForCausalLM"]
