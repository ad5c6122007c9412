"""The inference process: loads versions of models into ONNX Runtime and answers over gRPC.

Layers, each knowing only those before it: `datatypes`, `signature`, `tensors` (what travels);
`options`, `engine`, `model_config`, `warmup`, `golden`, `sandbox`, `loading` (what runs, and how it
is brought up); `repository` (what is served); `layout`, `directory`, `object_storage`, `registry`
(where it comes from); `wire`, `codec`, `answering` (bytes in, bytes out); `servicer` (gRPC).
"""
