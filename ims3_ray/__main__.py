"""`python -m ims3_ray COMMAND …` is `ims3 COMMAND …`."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
