"""A program for the tests of imports: import each module in a process of its own that has ZenML loaded already.

``python forked.py FOLDER MODULE …`` prints a line for each module: ``{"module", "loaded", "error"}``: the packages that
are loaded then, or the traceback. A fresh interpreter for each module would spend four seconds on ZenML alone.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import traceback

sys.path.insert(0, sys.argv[1])
import zenml.client
import zenml.orchestrators  # noqa: F401

for modules in sys.argv[2:]:
    child = os.fork()
    if child:
        os.waitpid(child, 0)
        continue
    error = None
    try:
        for module in modules.split("+"):
            importlib.import_module(module)
    except BaseException:
        error = traceback.format_exc()
    loaded = sorted({name.partition(".")[0] for name in sys.modules})
    print(json.dumps({"module": modules, "loaded": loaded, "error": error}), flush=True)
    os._exit(0)
