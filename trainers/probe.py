"""The old spelling of `python -m trainers probe`."""

import sys

from trainers.__main__ import main

if __name__ == "__main__":
    sys.exit(main(["probe", *sys.argv[1:]]))
