"""`python -m quantize run ...`: the same as `fovea quantize run ...`."""

import argparse
import json
import sys

from models.support.errors import FoveaError
from quantize.cli import add_arguments


def main() -> int:
    """Run one command; an error is one line on stderr."""
    parser = argparse.ArgumentParser(prog="fovea quantize")
    add_arguments(parser)
    args = parser.parse_args()
    try:
        return int(args.run(args))
    except FoveaError as error:
        if args.json:
            print(json.dumps({"error": error.as_dict()}))
        print(f"fovea quantize: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("fovea: interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
