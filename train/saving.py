"""The weights that are kept -> their figures on test, int8, calibration, the artifact and the report.

Every process answers for its share of the photos; rank 0 alone writes.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

import numpy as np
from torchvision.models.resnet import ResNet

from container import contract
from container.artifact import Manifest
from container.preprocessing import Float32Array, Preprocessing, preprocess
from train.calibration import calibrate
from train.channels import Photo
from train.export import build_network, versions, write_artifact
from train.job import Job
from train.map_fidelity import map_correlation
from train.model import weights_digest
from train.outcome import Outcome
from train.predictions import Predictions, joined
from train.quantization import LEAST_PHOTOS, answers, judge, quantize
from train.results import Results
from train.sets import spread
from train.stop import STOP, Stopped
from train.workers import usable_cores

_MAX_SAMPLES: Final = 16


def finish(model: ResNet, outcome: Outcome, job: Job) -> None:
    """Test, quantise, calibrate and save. Where the job is asked to stop, what is not done by then is left out."""
    check_agreement(model, job)
    results = Results(outcome=outcome, photos=job.sets.answered("validation"))
    if outcome.best is None:
        job.world.say(f"stopped after {outcome.steps} step(s) of the first epoch: weights are saved unvalidated")
    else:
        results = answer(model, results, job)
    photos = job.sets.photos
    with job.timeline.phase("export"):
        samples = sample_inputs(photos.validation or photos.training, job.spec)
        network = build_network(model, image_size=job.spec.crop_size, samples=samples)
    with job.timeline.phase("answers of the exported network"):
        results = answer_as_shipped(network, job, results)
    with job.timeline.phase("int8"):
        results = prove_int8(network, job, results)
    if job.world.leads:
        save(model, network, job, results)


def check_agreement(model: ResNet, job: Job) -> None:
    """Say whether all processes hold the same weights: those that do not have not trained together."""
    if job.world.size == 1:
        return
    found = job.world.gather(weights_digest(model, head=True)[:16])
    if len(set(found)) == 1:
        job.world.say(f"all {len(found)} processes hold the same weights ({found[0]})")
    else:  # Processors of different kinds round differently, say. Nobody wants to lose the job for it.
        job.world.say(f"warning: processes ended with different weights ({', '.join(found)}); the first's are saved")


def answer(model: ResNet, results: Results, job: Job) -> Results:
    """What the weights answer for validation, where that is not at hand, and for test."""
    found = results.outcome.found or job.predict(model, "validation")
    with job.timeline.phase("answers for test photos"):
        test = job.predict(model, "test") if job.sets.count("test") and not job.stopping() else None
    if job.stopping():  # Then these may be of a part of the photos.
        return replace(results, validation=results.outcome.found)
    if test is not None:
        job.world.say(contract.TEST_LOSS.line(test.loss))
        job.world.say(contract.TEST_ACCURACY.line(test.accuracy))
    return replace(results, validation=found, test=test)


def answer_as_shipped(network: bytes, job: Job, results: Results) -> Results:
    """Validation's answers by the exported network: torch's differ by a rounding, and what is fitted is for this one.

    One more pass over validation, a photo at a time; left out where the job is to stop.
    """
    if results.validation is None or job.stopping():
        return results
    return replace(results, validation=_answers(network, job) or results.validation)


def prove_int8(network: bytes, job: Job, results: Results) -> Results:
    """Make int8 and compare it with float32 on the validation photos, if that is wanted and can tell."""
    always = job.config.quantize == "always"
    count = len(results.photos)
    if job.config.quantize == "never" or results.validation is None or job.stopping():
        return results
    if count < LEAST_PHOTOS and not always:
        job.world.say(f"float32 is served: {count} validation photos are too few to judge int8 by")
        return results
    int8 = job.world.from_first(_int8(network, job) if job.world.leads else None)
    rounded = _answers(int8, job) if int8 else None
    if int8 is None or rounded is None:
        job.world.say("float32 is served: the job is to end before int8 has proved itself")
        return results
    verdict = judge(rounded, results.validation, max_drop_points=job.config.max_accuracy_drop, always=always)
    job.world.say(f"{'int8' if verdict.ships else 'float32'} is served: {verdict.reason}")
    return replace(results, verdict=verdict, int8=int8, int8_answers=rounded)


def _int8(network: bytes, job: Job) -> bytes | None:
    try:
        return quantize(network, job.sets.photos.training, job.spec)
    except Stopped:
        return None


def _answers(network: bytes, job: Job) -> Predictions | None:
    """Validation's answers by the engine that serves, from all processes; None where one was asked to stop."""
    threads = max(1, usable_cores() // job.world.local_size)
    try:
        own = answers(network, job.sets.own("validation"), job.spec, threads=threads, world=job.world)
    except Stopped:
        return None
    return joined(job.world.gather(own))


def save(model: ResNet, network: bytes, job: Job, results: Results) -> None:
    """Calibrate what is served, write the artifact, and the report beside it."""
    started = time.perf_counter()
    head = model.fc.weight.detach().cpu().numpy()
    if results.int8 is not None and not STOP.requested():
        with job.timeline.phase("comparison of heat maps"):
            alike = map_correlation(network, results.int8, head, job.sets.photos.validation, job.spec)
        results = replace(results, int8_maps=alike)
    if results.shipped is not None:
        with job.timeline.phase("calibration"):
            results = replace(results, calibration=calibrate(results.shipped, coverage=job.config.coverage))
    with job.timeline.phase("export"):
        manifest = write_artifact(job.paths.model, model, results.networks(network), draft_manifest(job, results))
    seconds = time.perf_counter() - started
    print(f"saved {job.paths.model} (version {manifest.version}) in {seconds:.1f} s", flush=True)
    if job.config.report and not STOP.requested():
        try:
            write_report_of(model, job, results, network)
        except Exception as error:  # The artifact is whole: nobody wants to lose the job for a page about it.
            traceback.print_exception(error)
            print(f"warning: the report is not written: {error}; the artifact is whole", flush=True)


def draft_manifest(job: Job, results: Results) -> Manifest:
    calibration = results.calibration
    return Manifest(
        architecture=job.config.architecture,
        class_names=job.sets.class_names,
        preprocessing=job.spec,
        top_k=job.config.top_k,
        temperature=calibration.temperature if calibration else 1.0,
        confidence_threshold=calibration.threshold if calibration else None,
        metrics=results.metrics(),
        hyperparameters=job.config.to_json(),
    )


def write_report_of(model: ResNet, job: Job, results: Results, network: bytes) -> None:
    """A page for people, beside the artifact."""
    from train.figures import collect
    from train.report import write_report  # TensorBoard takes a second to import.

    figures = collect(
        results,
        config=job.config,
        class_names=job.sets.class_names,
        seconds=job.timeline.seconds,
        run={"strategy": job.config.plan, "processes": job.world.size, "device": job.world.device.type, **versions()},
    )
    if figures is None:
        return
    served = results.int8 if results.int8_ships and results.int8 is not None else network
    folder = job.paths.output_data
    write_report(folder, figures, network=served, head=model.fc.weight.detach().cpu().numpy(), spec=job.spec)
    print(f"report: {folder / 'report.html'}", flush=True)


def sample_inputs(photos: Sequence[Photo], spec: Preprocessing) -> Float32Array:
    """Real inputs on which the exported network is checked."""
    return np.stack([preprocess(photo.path.read_bytes(), spec) for photo in spread(photos, _MAX_SAMPLES)])
