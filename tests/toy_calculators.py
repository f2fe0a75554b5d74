"""ASE calculators that misbehave; worker processes import this."""

import os
import time

from ase.calculators.lj import LennardJones


class Troubled(LennardJones):
    """Raises for helium, hangs for neon, ends its process for argon, returns nan for krypton."""

    def calculate(self, atoms=None, properties=("energy",), system_changes=()):
        if 2 in atoms.numbers:
            raise ArithmeticError("no helium")
        if 10 in atoms.numbers:
            time.sleep(60)
        if 18 in atoms.numbers:
            os._exit(3)
        super().calculate(atoms, list(properties), list(system_changes))
        if 36 in atoms.numbers:
            self.results["energy"] = float("nan")


def missing_calculator():
    raise OSError("no licence")


def calculator_for(atoms, quantity):
    """ASE's effective-medium potential, which knows few elements."""
    from ase.calculators.emt import EMT

    unknown = set(atoms.get_chemical_symbols()) - {"Cu", "Al", "Ni"}
    if unknown:
        raise ValueError(f"no parameters for {sorted(unknown)}")
    return EMT()


class ToyConvergenceError(Exception):
    """As GPAW's, without a message."""


class NeverDone(LennardJones):
    """Does not converge."""

    def calculate(self, atoms=None, properties=("energy",), system_changes=()):
        raise ToyConvergenceError


def never_done(atoms, quantity):
    return NeverDone()


def troubled(atoms, quantity):
    return Troubled()
