"""Functions that misbehave; worker processes import this, and so it imports little."""

import os
import signal
import threading
import time

import numpy as np


def make_worker():
    return misbehave


def misbehave(item):
    """Do what an item says, and return it in capitals."""
    if item == "raise":
        raise ArithmeticError("no")
    if item == "hang":
        time.sleep(60)
    if item == "exit":
        os._exit(3)
    if item == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    if item == "leave":
        raise SystemExit(4)
    if item == "strange":
        return threading.Lock()
    if item.startswith("sleep"):
        time.sleep(float(item.split()[1]) / 1000)
    return item.upper()


def volume_but_killed_by_one_atom(batch):
    """SIGKILL, as the system sends it when memory is short."""
    if len(batch.species) == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return batch.volume


def np_volume(batch):
    """Slow enough to be killed at it."""
    threading.Event().wait(0.1)
    return np.asarray(batch.volume)
