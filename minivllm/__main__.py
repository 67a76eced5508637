"""The door to the command line: `python -m minivllm ...` runs `minivllm.cli.main`."""

import sys

from minivllm.cli import main

if __name__ == "__main__":
    sys.exit(main())
