"""What a machine costs an hour, by the prices that Modal's API tells. Pure: nobody is asked here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal

from bridge.plan import Resources

MIB_PER_GIB = 1024


@dataclass(frozen=True, slots=True)
class Prices:
    """US dollars an hour in one workspace: for a core and a GiB of memory of a sandbox, and for a GPU by its type, in
    the words of the settings. None where Modal names no price."""

    cpu: Decimal | None = None
    memory: Decimal | None = None
    gpus: Mapping[str, Decimal] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class NoPrices:
    """Nobody knows what anything costs: ``why``, a clause without a full stop."""

    why: str


def an_hour(resources: Resources, prices: Prices) -> str:
    """What a sandbox of these resources costs an hour at least, for a person to read.

    Modal bills what is asked for, or what is used where that is more: so the least, not the most. Each GPU type that
    would do has its own.
    """
    missing: list[str] = []
    base = Decimal(0)
    for what, amount, price in (
        ("cpu", None if resources.cpu is None else Decimal(str(resources.cpu)), prices.cpu),
        ("memory", None if resources.memory is None else Decimal(resources.memory) / MIB_PER_GIB, prices.memory),
    ):
        if amount is None or price is None:
            missing.append(f"{what} (no price is known)" if amount is not None else f"{what} that it uses")
        else:
            base += amount * price
    sums: list[str] = []
    if resources.gpu is None:
        sums = [f"${base:.4f}"] if base else []
    else:
        for kind in resources.gpu.types:
            price = prices.gpus.get(gpu_key(kind))
            if price is None:
                missing.append(f"{kind} (no price is known)")
            else:
                sums.append(f"${base + price * resources.gpu.count:.4f} with {kind}")
    least = f"at least {' or '.join(sums)} an hour" if sums else "unknown"
    return f"{least}; not counted: {', '.join(missing)}" if missing else least


def gpu_key(kind: str) -> str:
    """One spelling for all that a setting and Modal's price list have of a GPU type.

    ``A100`` is the one of 40 GB, ``A10`` was called ``A10G`` (modal.com/docs/guide/gpu); a ``!`` takes no better one.
    """
    key = kind.lower().rstrip("!").replace("-", "_")
    return {"a100": "a100_40gb", "a10": "a10g"}.get(key, key)
