"""Where existing scripts look for `QAICInferenceSession`."""

from QEfficient.devices.cloud_ai_100.inference_session import QAICInferenceSession

__all__ = ["QAICInferenceSession"]
