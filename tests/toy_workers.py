"""Functions that misbehave; worker processes import this."""

import os
import signal
import threading
import time


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
