"""Retained module → ONNX: traced with fake weights, rewritten by passes, checked, written with streamed tensors."""
