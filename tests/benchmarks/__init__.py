"""Benchmarks: run each with ``python -m tests.benchmarks.NAME``; none of them is a test.

Each says on stderr what it is doing, prints results as soon as they are known, and at Ctrl-C what it has until then.
"""

import os
import signal
import sys

if sys.argv[0] == "-m":  # Python is looking for the benchmark, whose imports take seconds: no traceback at Ctrl-C
    signal.signal(signal.SIGINT, lambda *_: os._exit(130))
