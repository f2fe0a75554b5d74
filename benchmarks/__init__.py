"""Measurements of speed, run as ``python -m benchmarks.network`` from the repository's root.

Each prints a table and, last, one line of JSON. What is compared is timed in turns in one run, so
that whatever else the machine does hits both sides; ratios are ratios of medians.
"""

import irlkit  # noqa: F401  # before torch, whose idle threads then soon sleep
