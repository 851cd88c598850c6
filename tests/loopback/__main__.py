"""``python -m tests.loopback [PYTHON]``: start one by hand; prints what to export, runs until Ctrl+C.

Every image name of the form ``registry.example.com/…`` isn't there: the one image is ``loopback/python``.
"""

from __future__ import annotations

import signal
import sys
import threading
from pathlib import Path

from tests.loopback import LoopbackImage, LoopbackModal

stop = threading.Event()
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, lambda *_: stop.set())
python = Path(sys.argv[1] if len(sys.argv) > 1 else sys.executable).absolute()
with LoopbackModal(images={"loopback/python": LoopbackImage(python)}) as modal:
    for name, value in modal.env.items():
        print(f"export {name}={value}", flush=True)
    stop.wait()
