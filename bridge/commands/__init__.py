"""The commands of `modal-prefect`, a module each: :mod:`bridge.cli` puts them together.

A command imports ZenML, Prefect and Modal inside its function: they take seconds to import, and ``--help`` and a
mistyped option need none of them.
"""
