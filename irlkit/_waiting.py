"""How idle threads of torch wait; imported before torch, which reads it once.

By default, OpenMP's threads wait for each other and for work by spinning. On a machine whose cores
have anything else to do, a thread spins for one that is not running, and everything becomes
many times slower (benchmarks/README.md). So they sleep, unless the environment says otherwise.
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
