"""Prepares published data sets, once, for training without TensorFlow.

    python -m experiments.tools.prepare NAME [NAME ...] [--folder=FOLDER]

It downloads each set and writes it as array_record. No other command needs TensorFlow: pip install
'learn-to-guide[prepare]'. Sets that must be requested from their owners (imagenet2012) are read from
FOLDER/downloads/manual. Exit codes: 0 done, 1 a download or builder that failed, 2 a name, archive or package that is
missing; 1 and 2 come with one line on stderr.
"""

import argparse
import sys

from experiments.data import published


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m experiments.tools.prepare", description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="+", metavar="NAME", help=f"one of {', '.join(published.SETS)}")
    parser.add_argument("--folder", help="where to put them (default: $TFDS_DATA_DIR or ~/tensorflow_datasets)")
    options = parser.parse_args(arguments)
    for name in options.names:
        try:
            print(f"{name}: {published.prepare(name, options.folder)}")
        except (ValueError, ModuleNotFoundError) as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        except Exception as error:  # downloads and builders raise many kinds of errors
            print(f"error: {name} was not prepared: {' '.join(str(error).split())}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
