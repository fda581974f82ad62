"""`python -m yolonas` is the command `yolonas`."""

import sys

from .cli import main

sys.exit(main())
