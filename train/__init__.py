"""Writes an artifact from folders of photos.

To read it, begin with `run`, the straight line of a job, and follow its names:

* photos: `channels`, `sets`, `doctor`, `data`, `workers`
* learning: `job`, `model`, `blocked`, `features`, `head`, `loop`, `recipe`, `checkpoint`, `outcome`, `predictions`
* what is kept: `saving`, `graph`, `export`, `engine`, `quantization`, `map_fidelity`, `calibration`, `results`
* what people see: `progress`, `timeline`, `report`, `figures`, `charts`
* the process: `entrypoint`, `config`, `hyperparameters`, `toolkit` (SageMaker's), `stop`, `failure`, `folders`
* many processes and hosts: `topology`, `launch`, `worker`, `rank`, `hostlink`, `casualty`, `distributed`
* programs beside it: `doctor_program`, `tune`, `import_weights`
"""
