"""The inference process: loads versions of models into ONNX Runtime and answers over gRPC.

Layers, each knowing only those before it: `datatypes`, `signature`, `tensors` (what travels);
`engine`, `golden`, `loading` (what runs); `repository` (what is served); `directory`, `registry`
(where it comes from); `wire`, `codec`, `answering` (bytes in, bytes out); `servicer` (gRPC).
"""
