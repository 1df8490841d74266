"""``python -m mobile_sam_plugin``: the same as the command ``mobile-sam``."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
