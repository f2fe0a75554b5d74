"""Radii of ions."""

_MORE_RADII = {("Sn", 2): 1.18, ("P", -3): 1.65, ("As", -3): 1.72, ("Sb", -3): 1.95}
_MORE_RADII |= {("Si", -4): 1.85, ("Ge", -4): 1.9, ("Sn", -4): 2.1}


def shannon_radius(symbol: str, charge: int) -> float:
    """Return Shannon's ionic radius for six neighbours and high spin, Å.

    Where he has none for six, that for the nearest number of neighbours. For tin(II) and anions
    that he lacks, what usual distances leave.

    Raises:
        ValueError: none is known for this charge.
    """
    from pymatgen.core import Element

    numbers = {"IV": 4, "IVSQ": 4, "VI": 6, "VII": 7, "VIII": 8, "IX": 9, "X": 10, "XII": 12}
    radii = Element(symbol).data["Shannon radii"].get(str(charge), {})
    known = {numbers[key]: spins for key, spins in radii.items() if key in numbers}
    if not known:
        if (symbol, charge) in _MORE_RADII:
            return _MORE_RADII[symbol, charge]
        raise ValueError(f"no radius of {symbol} with charge {charge}")
    spins = known[min(known, key=lambda n: abs(n - 6))]
    return float(max(spin["ionic_radius"] for spin in spins.values()))
