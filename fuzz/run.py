"""Coverage-guided fuzzing with atheris of all that reads bytes from strangers (fuzz/targets.py).

pip install -e ".[fuzz]" && python -m fuzz.run TARGET [-max_total_time=600 and other flags of libFuzzer]

Anything but an InputError ends it with a crash, whose input is written to crash-*. Totals: results/reliability.md.
"""

import sys
import tempfile

try:
    import atheris
except ModuleNotFoundError:
    print('error: got a Python without atheris, expected one with it; pip install -e ".[fuzz]"', file=sys.stderr)
    sys.exit(2)

with atheris.instrument_imports(include=["cifar_jax", "json", "numpy.lib", "ml_collections"]):
    from cifar_jax.errors import InputError
    from fuzz.targets import make_targets


def main(argv):
    targets = make_targets()
    if len(argv) < 2 or argv[1] not in targets:
        sys.exit(f"got {' '.join(argv[1:2]) or 'nothing'}, expected one of {', '.join(targets)}")
    target, seeds = targets[argv[1]]

    def run(data: bytes):
        try:
            target(data)
        except InputError as error:
            if "\n" in str(error):
                raise RuntimeError("an error of several lines") from error

    corpus = tempfile.mkdtemp(prefix="cifar_jax-corpus-")
    for i, seed in enumerate(seeds):
        with open(f"{corpus}/{i}", "wb") as file:
            file.write(seed)
    atheris.Setup([argv[0], corpus, *argv[2:]], run)
    atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv)
