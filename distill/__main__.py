"""`python -m distill run ...`: the same as `fovea distill run ...`."""

import argparse
import json
import sys

from distill.cli import add_arguments
from models.support.errors import FoveaError


def main() -> int:
    """Run one command; an error is one line on stderr."""
    parser = argparse.ArgumentParser(prog="fovea distill")
    add_arguments(parser)
    args = parser.parse_args()
    try:
        return int(args.run(args))
    except FoveaError as error:
        if args.json:
            print(json.dumps({"error": error.as_dict()}))
        print(f"fovea distill: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("fovea: interrupted; what was answered is kept", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
