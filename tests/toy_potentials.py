"""A potential in closed form, and reward functions that worker processes import."""

import time

import torch

from irlkit.potentials._neighbors import find_neighbors, reduced
from irlkit.potentials.base import Potential, differentiate


class LennardJonesToy(Potential):
    """Lennard-Jones, cut and shifted like ASE's; fails where an element is in `breaks`."""

    name = "toy"

    def __init__(self, sigma=2.0, epsilon=0.3, rc=6.0, breaks=()):
        self.sigma, self.epsilon, self.rc, self.breaks = sigma, epsilon, rc, breaks
        self.seen = []

    def _compute(self, batch, forces, stress):
        self.seen += batch.species.tolist()
        if torch.isin(batch.species, torch.tensor(self.breaks, dtype=torch.int64)).any():
            raise ArithmeticError("this toy cannot")
        batch = reduced(batch)
        pairs = find_neighbors(batch, self.rc)
        structure = batch.batch[pairs.first]

        def energy(squares):
            c6 = (self.sigma**2 / squares) ** 3
            return 4 * self.epsilon * (c6**2 - c6)

        def energies(vectors):
            squares = vectors.square().sum(1)
            terms = energy(squares) - energy(torch.tensor(self.rc**2, dtype=squares.dtype))
            return terms.new_zeros(len(batch)).index_add(0, structure, terms)

        return differentiate(energies, batch, pairs, forces, stress)


def volume_per_atom(batch):
    return batch.volume / batch.n_atoms


def volume_without_helium(batch):
    if 2 in batch.species:
        raise ArithmeticError("no helium")
    return volume_per_atom(batch)


def volume_but_hangs_on_neon(batch):
    if 10 in batch.species:
        time.sleep(60)
    return volume_per_atom(batch)
