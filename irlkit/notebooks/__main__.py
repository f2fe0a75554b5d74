"""``python -m irlkit.notebooks``."""

import sys

from irlkit.notebooks.cli import main

sys.exit(main())
