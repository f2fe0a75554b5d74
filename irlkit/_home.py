"""A home folder for those who have none, such as a user in a container who is a number alone.

Libraries (ASE among them) look for one when they are imported. It ends with this process.
"""

import atexit
import os
import shutil
import tempfile
from pathlib import Path

try:
    Path.home()
except RuntimeError:
    os.environ["HOME"] = tempfile.mkdtemp(prefix="irlkit-home-")
    atexit.register(shutil.rmtree, os.environ["HOME"], ignore_errors=True)
