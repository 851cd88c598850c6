"""What a sandbox on Modal runs: the :mod:`bridge.host` that lies beside this file, whatever else is installed.

Python puts this file's folder first on ``sys.path``; its modules mustn't be found as top-level ones, and the
package's parent must come before any other ``bridge``.
"""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[2])

from bridge.host.__main__ import main  # noqa: E402

raise SystemExit(main(sys.argv[1:]))
