"""Custom operators, each once: what it computes in eager PyTorch, how it is traced, and its portable ONNX body.

`transformers/` calls the PyTorch side while a model runs or is traced; `graph/` adds the bodies of the operators that a
traced graph uses. Neither knows the other.
"""
