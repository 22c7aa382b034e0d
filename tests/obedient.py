"""Workers for tests: they do what their text says. In a file of its own, which loads quickly."""

import os
import signal
import time

from configurator import UserError


def obedient():
    def work(text):
        if text == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if text == "leave":
            os._exit(3)
        if text == "hang":
            time.sleep(600)
        if text == "fail":
            raise ValueError("no good")
        if text == "user":
            raise UserError("a told mistake")
        return text.upper()

    return work


def broken():
    raise UserError("not installed")


def hanging():
    return lambda text: time.sleep(600)
