"""The Open Inference Protocol: the contract of the inference service."""
