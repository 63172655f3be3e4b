"""Serving: HAProxy in front of multi-model-server in front of ONNX Runtime, started and watched by `serve`."""
