"""Derivatives of ONNX graphs as ONNX nodes: reverse-mode differentiation, operator by operator.

It knows operators and no framework, so that it does not matter what trained a network.
"""
