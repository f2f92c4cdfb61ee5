"""The fuzzer's mutations, led by coverage: libFuzzer through atheris keeps the inputs that reach new code.

``python tests/fuzz/guided.py --target onnx --minutes 60 --seed 0``; atheris is the extra ``fuzz`` (``pip install 'tritloom[fuzz]'``). Stops at the
first defect and writes its input to ``--findings``, where ``fuzz.py --file`` takes it. Bounds as in ``fuzz.py``, but kept by libFuzzer.
"""

import argparse
import random
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", choices=("onnx", "loom", "npz", "toml"), default="onnx")
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--findings", type=Path, default=Path("fuzz-findings"))
    options = parser.parse_args()
    try:
        import atheris
    except ImportError:
        print("atheris is not installed: pip install 'tritloom[fuzz]'", file=sys.stderr)
        return 3
    with atheris.instrument_imports(include=["tritloom"]):
        from corpus import corpus
        from mutate import mutate
        from targets import run
    files = corpus(options.target)
    options.findings.mkdir(parents=True, exist_ok=True)

    def one(data: bytes) -> None:
        run(options.target, data)

    def mutated(data: bytes, size: int, seed: int) -> bytes:
        return mutate(options.target, data, files, random.Random(seed))[:size]

    with tempfile.TemporaryDirectory() as folder:
        for number, data in enumerate(files):
            (Path(folder) / str(number)).write_bytes(data)
        settings = [f"-max_total_time={int(60 * options.minutes)}", f"-seed={options.seed + 1}", "-timeout=5", "-rss_limit_mb=4096"]
        atheris.Setup(
            [sys.argv[0], *settings, f"-artifact_prefix={options.findings}/{options.target}-", "-max_len=1048576", folder],
            one,
            custom_mutator=mutated,
        )
        atheris.Fuzz()
    return 0


if __name__ == "__main__":
    sys.exit(main())
