"""`python -m pathorestore` is the command `pathorestore`."""

import sys

from pathorestore.cli import main

sys.exit(main())
