"""A wheel made by hand: of one module, which no package index has."""

from __future__ import annotations

import io
import zipfile


def wheel(package: str, code: str) -> tuple[str, bytes]:
    """The name of its file, and what is in it. It is release 1.0, and its module is called as the package is."""
    module = package.replace("-", "_")
    about = f"{module}-1.0.dist-info"
    files = {
        f"{module}.py": code,
        f"{about}/METADATA": f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n",
        f"{about}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    files[f"{about}/RECORD"] = "".join(f"{name},,\n" for name in (*files, f"{about}/RECORD"))
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    return f"{module}-1.0-py3-none-any.whl", packed.getvalue()
