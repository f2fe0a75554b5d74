"""How idle threads of torch wait; imported before torch, which reads it once.

By default, GNU's OpenMP lets threads spin for milliseconds while they wait for each other. On a
machine whose cores have anything else to do, a thread spins for one that is not running, and
everything becomes many times slower (benchmarks/README.md). So they spin for some microseconds
only, and then sleep, unless the environment says otherwise.
"""

import os

if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
