"""The old spelling of `bertha probe`."""

import sys

from trainers.__main__ import main

if __name__ == "__main__":
    sys.exit(main(["probe", *sys.argv[1:]]))
