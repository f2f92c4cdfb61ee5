"""Ternarises ``mnist_cnn_float`` without retraining and prints the accuracy on rows that nothing else has seen.

::

    python docs/benchmarks/mnist_planes.py mnist10k.npz

The file is that of ``tritloom.models.train.mnist_cnn_float``. Rows 7/10 to 9/10 are the labelled samples of ``compile``, the last tenth
judges. Writes ``mnist_planes.json`` and ``mnist_planes.svg`` beside this script.
"""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime

import tritloom
from tritloom.planes import choose_planes
from tritloom.report.scatter import accuracy_plot

MODEL = "mnist_cnn_float"
MAX_LOSS = 0.01
LEFT_OUT = {", no bias correction": {"bias_correction": False}, ", nearest codes": {"compensation": False}, "": {}}
"""What of the corrections is left out, and how."""


def main() -> None:
    with np.load(sys.argv[1]) as arrays:
        images, labels = arrays["images"][:, None].astype(np.float32) / np.float32(255), arrays["labels"].astype(np.int64)
    first, last = len(labels) * 7 // 10, len(labels) - len(labels) // 10
    samples, answers, held_out, truth = images[first:last], labels[first:last], images[last:], labels[last:]
    data = (Path(__file__).parent / f"{MODEL}.onnx").read_bytes()

    def correct(session: tritloom.InferenceSession | onnxruntime.InferenceSession) -> int:
        return int((np.asarray(session.run(None, {"image": held_out})[0]).argmax(axis=1) == truth).sum())

    def row(name: str, model: tritloom.CompiledModel) -> dict[str, object]:
        schedule = model.schedule("sim")
        found = {"setting": name, "held_out_correct": correct(tritloom.InferenceSession(model)), "cycles": schedule.cycles}
        return {**found, "weight_bytes": int(schedule.weights.nbytes)}

    # The grids of a fixed number of planes come from the same half of the samples as those of the search.
    rows = []
    for planes in (1, 2, 3, 4):
        for left_out, options in LEFT_OUT.items():
            model = tritloom.compile(data, name=MODEL, calibration={"image": samples[::2]}, planes=planes, **options)
            rows.append(row(f"{planes} plane{'s'[: planes > 1]}{left_out}", model))
    search = choose_planes(data, name=MODEL, calibration={"image": samples}, labels=answers, max_loss=MAX_LOSS)
    rows.append(row(f"auto, at most {MAX_LOSS:.0%}", search.model))
    reference = correct(onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"]))
    print(f"float model: {reference} of {len(truth)}\n\n| setting | held out | cycles | bytes of weights |\n| --- | --- | --- | --- |")
    for entry in rows:
        print(f"| {entry['setting']} | {entry['held_out_correct'] / len(truth):.1%} | {entry['cycles']} | {entry['weight_bytes']} |")
    folder = Path(__file__).parent
    stored = {"float_held_out_correct": reference, "held_out": len(truth), "rows": rows, "search": search.to_json()}
    (folder / "mnist_planes.json").write_text(json.dumps(stored, indent=1) + "\n")
    (folder / "mnist_planes.svg").write_text(accuracy_plot(search, f"{MODEL}: digit planes for each layer"))


if __name__ == "__main__":
    main()
