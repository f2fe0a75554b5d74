"""``python -m irlkit.lab.notebooks``."""

import sys

from irlkit.lab.notebooks.cli import main

sys.exit(main())
