"""The first import of the process that forks loader workers: signals to its process group do not end it.

The kernel ends the workers together with this process (see `workers`), and a training that receives SIGTERM
still needs them to finish its step.
"""

import signal

signal.signal(signal.SIGTERM, signal.SIG_IGN)
