"""``python -m benchmarks NAME``: measures, and prints tables."""

import argparse

from . import (
    annotation,
    deploy,
    embeddings,
    endurance,
    finetuning,
    first_mask,
    fuzz,
    gpu,
    kills,
    search,
    serve,
    speed,
    tracking,
)

BENCHMARKS = {
    "speed": speed,
    "gpu": gpu,
    "deploy": deploy,
    "first-mask": first_mask,
    "annotation": annotation,
    "tracking": tracking,
    "embeddings": embeddings,
    "search": search,
    "finetuning": finetuning,
    "serve": serve,
    "fuzz": fuzz,
    "kills": kills,
    "endurance": endurance,
}


def main() -> None:
    """Runs the benchmark that the command line names."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks")
    commands = parser.add_subparsers(dest="benchmark", required=True)
    for name, module in BENCHMARKS.items():
        summary = str(module.__doc__).partition("\n")[0]
        module.add_arguments(commands.add_parser(name, help=summary, description=summary))
    arguments = parser.parse_args()
    try:
        BENCHMARKS[arguments.benchmark].run(arguments)
    except (OSError, ValueError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
