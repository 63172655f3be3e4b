"""Serving: HAProxy in front of multi-model-server (MMS) in front of ONNX Runtime, started and watched by `serve`.

To read it, begin with `handler`, the straight line of a request in a worker; `stack` starts it all:

* a request: `handler`, `codec`, `options`, `predictor`, `prediction`, `explanation`, `engine`, `torch_engine`
* the programs: `entrypoint`, `stack`, `front` (HAProxy), `mms`, `worker`, `processes`
* their size and place: `config`, `machine`, `shape`, `cores`
* control: `control`, `routes`, `models` (multi-model), `link` (to workers), `unix`
* what people see: `api`, `openapi`, `logs`, `metrics`
"""
