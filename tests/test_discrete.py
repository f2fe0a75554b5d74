"""Discrete flows of species: kernels against enumeration, constraints, generation."""

import itertools
from collections import Counter

import pytest
import torch

from irlkit.crystals import CrystalBatch
from irlkit.flows.base_distribution import BaseDistribution
from irlkit.flows.constraints import Constraints
from irlkit.flows.discrete import DiscreteFlow
from irlkit.flows.dynamics import Dynamics
from irlkit.flows.interpolants import Interpolant
from irlkit.flows.schedules import time_grid
from irlkit.networks.cspnet import CSPNet
from irlkit.networks.flow_model import FlowModel
from irlkit.rl import SpeciesPolicy
from irlkit.utils.draws import SharedDraws


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def tiny_model(base="mask", elements=(8, 11, 12, 17, 22, 38), **settings):
    torch.manual_seed(0)
    network = CSPNet(16, 1, 4, 8, species_head=True, mask_token=base == "mask").double()
    interpolants = {"pos": Interpolant(periodic=True, center_of_mass_free=True)}
    return FlowModel(
        network,
        {**interpolants, "cell": Interpolant()},
        BaseDistribution((1.5,) * 3, (0.1,) * 3, n_atoms=(0.0, 0.3, 0.2, 0.4, 0.1)),
        species=DiscreteFlow(base, elements=elements, **settings),
    ).eval()


def every(n_atoms, n_classes):
    """All species of so many atoms, masked ones among them, shape (K, n)."""
    return torch.tensor(list(itertools.product(range(n_classes + 1), repeat=n_atoms)))


def probabilities(flow, logits, before, times, i, rules):
    """Probabilities of all next species of one structure from each of all species, (K, K)."""
    everything = every(*logits.shape[1:])
    rows = []
    for species, row in zip(before, logits, strict=True):
        step = flow.step(row[None], species[None], times, i, rules)
        # As if all next species were reached in as many steps with the same number.
        k = len(everything)
        many = flow.step(
            row.expand(k, -1, -1), species.expand(k, -1), times, torch.full((k,), i), rules
        )
        if flow.base == "uniform":
            safe = many.log_prob(everything.clamp(min=1)).exp() * (everything > 0)
        else:
            safe = many.log_prob(everything).exp()
        rows.append(safe.prod(1))
        assert type(step) is type(many)
    return torch.stack(rows)


# --- kernels ---


@pytest.mark.parametrize("base", ["mask", "uniform"])
@pytest.mark.parametrize("noise", [0.0, 0.7])
def test_steps_are_distributions_and_are_sampled(base, noise):
    flow, times = DiscreteFlow(base, noise, temperature=1.5), time_grid(8)
    rules = flow.rules(torch.tensor([2]), 3)
    before = torch.tensor([[1, 3], [2, 2], [0, 3], [0, 0]])[: 2 if base == "uniform" else 4]
    logits = torch.randn(len(before), 2, 3, generator=generator(), dtype=torch.float64)
    for i in (0, 5, 7):
        exact = probabilities(flow, logits, before, times, i, rules)
        torch.testing.assert_close(exact.sum(1), torch.ones(len(before)).double())
    n = 20_000
    step = flow.step(
        logits.repeat(n, 1, 1), before.repeat(n, 1), times, torch.full((n * len(before),), 5), rules
    )
    drawn = step.sample(generator(1)).reshape(n, len(before), 2)
    exact = probabilities(flow, logits, before, times, 5, rules)
    for k in range(len(before)):
        found = (drawn[:, k, None] == every(2, 3)).all(-1).double().mean(0)
        assert float((found - exact[k]).abs().max()) < 0.015


@pytest.mark.parametrize("base", ["mask", "uniform"])
def test_divergence_and_entropy_are_those_of_the_enumerated_step(base):
    flow, times = DiscreteFlow(base, 0.6), time_grid(6)
    rules = flow.rules(torch.tensor([2]), 3)
    before = torch.tensor([[1, 2]] if base == "uniform" else [[0, 2]])
    ours, theirs = torch.randn(2, 1, 2, 3, generator=generator(2), dtype=torch.float64)
    p, q = (probabilities(flow, x, before, times, 3, rules)[0] for x in (ours, theirs))
    steps = [flow.step(x, before, times, 3, rules) for x in (ours, theirs)]
    seen = p > 0
    expected = (p[seen] * (p[seen] / q[seen]).log()).sum()
    torch.testing.assert_close(steps[0].kl(steps[1]).sum(), expected)
    torch.testing.assert_close(steps[0].entropy().sum(), -(p[seen] * p[seen].log()).sum())


def test_expected_number_of_events():
    for noise in (0.0, 1.0):
        flow, times = DiscreteFlow(noise=noise), time_grid(200)
        rules = flow.rules(torch.tensor([3000]), 4)
        species, events = flow.initial(rules, generator()), 0
        for i in range(200):
            step = flow.step(torch.zeros(1, 3000, 4), species[None], times, i, rules)
            new = step.sample(generator(i))[0]
            events, species = events + int(((species == 0) & (new > 0)).sum()), new
        assert bool((species > 0).all())
        assert events / 3000 == pytest.approx(flow.expected_events(times), abs=0.04)
        assert flow.expected_events(times) == pytest.approx(1 + noise / 2, abs=0.02)


def endpoint(data, n_steps, kernel):
    """Distribution of one atom after a flow with the exact posterior, all classes enumerated."""
    times, n = time_grid(n_steps), len(data)
    p = torch.full((n,), 1 / n, dtype=torch.float64)
    for i in range(n_steps):
        t = float(times[i])
        posterior = data * (t * torch.eye(n).double() + (1 - t) / n)
        p = p @ kernel(posterior / posterior.sum(1, keepdim=True), times, i)
    return p


def ours(noise):
    flow = DiscreteFlow("uniform", noise)

    def kernel(posterior, times, i):
        n = len(posterior)
        rules = flow.rules(torch.tensor([n]), n)
        before = torch.arange(1, n + 1)[None]
        return flow.step(posterior.log()[None], before, times, i, rules).kernel[0].exp()

    return kernel


def published(noise):
    """The reference's kernel: the rate of detailed balance goes to every class.

    Where its probability of staying is negative, it is taken as 0 and the rest made to add up to 1.
    """

    def kernel(posterior, times, i):
        t, dt, n = float(times[i]), float(times[i + 1] - times[i]), len(posterior)
        same = torch.eye(n, dtype=torch.bool)
        # From (rows), final species that was drawn, to.
        rate = torch.where(same, noise, noise * (n * t + 1 - t) / (1 - t)).double()
        rate = rate[:, :, None].repeat(1, 1, n)
        rate += (~same)[:, :, None] * same.double() / (1 - t)
        steps = (rate * dt).clamp(max=1.0).masked_fill(same[:, None], 0.0)
        stays = (1 - steps.sum(-1)).clamp(min=0.0)
        steps = (
            steps / steps.sum(-1, keepdim=True).clamp(min=1.0) + same[:, None] * stays[..., None]
        )
        return (posterior[..., None] * steps).sum(1)

    return kernel


def test_the_uniform_kernel_keeps_the_data_and_the_published_one_does_not():
    """The numbers of docs/differences.md: 20 species, the first with a share of 60 %."""
    data = torch.tensor([0.6, 0.3, *[0.1 / 18] * 18], dtype=torch.float64)
    share = {
        (name, noise): round(float(endpoint(data, 50, kernel(noise))[0]), 3)
        for name, kernel in (("ours", ours), ("published", published))
        for noise in (0.0, 0.05, 0.2)
    }
    assert share == {
        ("ours", 0.0): 0.6,
        ("ours", 0.05): 0.6,
        ("ours", 0.2): 0.6,
        ("published", 0.0): 0.599,
        ("published", 0.05): 0.478,
        ("published", 0.2): 0.242,
    }
    assert float((endpoint(data, 400, ours(0.2)) - data).abs().max()) < 0.002


# --- constraints ---


def test_exact_numbers_are_a_distribution_over_what_is_allowed():
    """Atoms of one step draw one after the other; every way has the product's probability."""
    flow, times = DiscreteFlow(noise=0.5, elements=(1, 3, 4)), time_grid(5)
    constraints = [
        Constraints(fractions={"H": 2 / 3, "Be": 1 / 3}),
        Constraints(chemical_system="H-Li"),
    ]
    logits = torch.randn(1, 3, 4, generator=generator(), dtype=torch.float64)
    for constraint in constraints:
        rules = flow.rules(torch.tensor([3]), 4, constraint)
        for before in ([0, 0, 0], [0, 1, 0], [1, 0, 1]):
            for i in (2, 4):
                p = probabilities(flow, logits, torch.tensor([before]), times, i, rules)[0]
                assert float(p.sum()) == pytest.approx(1.0, abs=1e-12)
                if i == 4:
                    good = [
                        (constraint.fractions is None and set(x) == {1, 3})
                        or Counter(x) == {1: 2, 4: 1}
                        for x in every(3, 4).tolist()
                    ]
                    assert float(p[torch.tensor(good)].sum()) == pytest.approx(1.0, abs=1e-12)
            many = 4000
            step = flow.step(
                logits.repeat(many, 1, 1),
                torch.tensor([before]).repeat(many, 1),
                times,
                torch.full((many,), 2),
                rules,
            )
            drawn = step.sample(generator(3))
            p = probabilities(flow, logits, torch.tensor([before]), times, 2, rules)[0]
            found = (drawn[:, None] == every(3, 4)).all(-1).double().mean(0)
            assert float((found - p).abs().max()) < 0.03


CONSTRAINTS = {
    "elements": (dict(elements=["Na", "Cl"]), lambda c: set(c) <= {"Na", "Cl"}),
    "exclude": (dict(exclude=["O"]), lambda c: "O" not in c),
    "system": (dict(chemical_system="Sr-Ti-O"), lambda c: set(c) == {"Sr", "Ti", "O"}),
    "formula": (dict(formula="MgO"), lambda c: set(c) == {"Mg", "O"} and c["Mg"] == c["O"]),
    "fractions": (dict(fractions={"Ti": 1 / 3, "O": 2 / 3}), lambda c: 2 * c["Ti"] == c["O"]),
    "sites": (
        dict(sites=[("Ti", (0.0, 0.0, 0.0)), ("O", (0.5, 1.5, -0.5))]),
        lambda c: c["Ti"] >= 1 and c["O"] >= 1,
    ),
}


@pytest.mark.parametrize("name", CONSTRAINTS)
def test_constraints_hold(name):
    model = tiny_model(noise=1.0)
    constraints, obeyed = Constraints(**CONSTRAINTS[name][0]), CONSTRAINTS[name][1]
    n_atoms = model.base.sample_n_atoms(30, generator(), constraints.divisor(), constraints.least())
    made = Dynamics(model, constraints=constraints).generate(n_atoms, 12, generator=generator())
    structures = made.to_structures()
    assert all(obeyed(Counter(str(s.specie) for s in x)) for x in structures)
    assert torch.equal(made.n_atoms, n_atoms)
    if name == "sites":
        first = n_atoms.cumsum(0) - n_atoms
        assert bool((made.species[first] == 22).all() and (made.species[first + 1] == 8).all())
        assert torch.equal(made.pos[first], torch.zeros(30, 3).double())
        assert torch.equal(made.pos[first + 1], torch.full((30, 3), 0.5).double())


@pytest.mark.parametrize(
    ("given", "n_atoms", "message"),
    [
        (dict(elements=["Na", "Fe"]), 4, "ask for Fe, which the model has not seen in training"),
        (dict(exclude=["O", "Na", "Mg", "Cl", "Ti", "Sr"]), 4, "leave no element"),
        (dict(fractions={"Ti": 1 / 3, "O": 2 / 3}), 4, "multiples of 3 .* got \\[4\\]"),
        (dict(formula="SrTiO3"), 4, "multiples of 5"),
        (dict(chemical_system="Sr-Ti-O"), 2, "multiples of 1 of at least 3 to meet"),
        (dict(formula="MgO", sites=[("O", (0, 0, 0)), ("O", (0.5, 0, 0))]), 2, "at least 4"),
    ],
)
def test_constraints_that_cannot_be_met(given, n_atoms, message):
    dynamics = Dynamics(tiny_model(), constraints=Constraints(**given))
    with pytest.raises(ValueError, match=message):
        dynamics.generate(torch.tensor([n_atoms]), 2, generator=generator())


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (dict(fractions={"Ti": 0.5, "O": 0.4}), "add up to 1"),
        (dict(fractions={"Ti": 0.31415, "O": 0.2718, "Na": 0.41405}), "ratios of whole numbers"),
        (dict(formula="NaCl", chemical_system="Na-Cl"), "one of chemical_system"),
        (dict(formula="NaCl", exclude=["Na"]), "exclude names Na"),
        (dict(elements=["Na"], formula="NaCl"), "elements lacks Cl"),
        (dict(formula="NaCl", sites=[("O", (0, 0, 0))]), "sites hold O"),
        (dict(sites=[("O", (0, 0, 0)), ("O", (0.999, 0, 1))]), "sites 0 and 1 overlap"),
        (dict(sites=[("O", (0, 0))]), "three coordinates"),
        (dict(elements=["Xx"]), "elements: 'Xx' is no element"),
    ],
)
def test_impossible_constraints(given, message):
    with pytest.raises(ValueError, match=message):
        Constraints(**given)


def test_numbers_of_atoms_that_no_structure_had():
    base = tiny_model().base
    assert set(base.sample_n_atoms(200, generator()).tolist()) == {2, 3, 4, 5}
    with pytest.raises(ValueError, match=r"multiples of 7 of at least 1 atoms.*have"):
        base.sample_n_atoms(3, generator(), divisor=7)
    with pytest.raises(ValueError, match="uniform base, give elements"):
        tiny_model("uniform").prepare(torch.tensor([2]), Constraints(formula="NaCl"))


# --- the model ---


@pytest.mark.parametrize("base", ["mask", "uniform"])
def test_a_model_is_saved_and_generates(base, tmp_path):
    model = tiny_model(base, noise=0.3, temperature=0.8)
    model.save(tmp_path / "model.safetensors")
    again = FlowModel.load(tmp_path / "model.safetensors")
    assert again.species == model.species and again.base == model.base
    n_atoms = torch.tensor([2, 5, 1])
    made = [
        Dynamics(m).generate(n_atoms, 6, generator=generator(), max_batch=2) for m in (model, again)
    ]
    assert torch.equal(made[0].pos, made[1].pos)
    assert set(made[0].species.tolist()) <= set(model.species.elements)


def test_given_species_are_crystal_structure_prediction():
    """The same numbers whether the species are the request's or the state's."""
    model = tiny_model()
    batch = CrystalBatch.from_formulas(["NaCl", "SrTiO3"]).to(dtype=torch.float64)
    expected = Dynamics(model).generate(batch, 5, generator=generator())
    conditioning = model.prepare(batch.n_atoms, given=batch.species)
    state = model.sample_state(conditioning, generator())
    assert torch.equal(state["species"], batch.species)
    for i, (t, dt) in enumerate(zip(time_grid(5)[:-1], time_grid(5).diff(), strict=True)):
        output = model.velocity(
            t, state["pos"], state["cell"], conditioning, ("velocity", "species"),
            species=state["species"],
        )  # fmt: skip
        logits = output.species["species"][None]
        step = model.species.step(
            logits, state["species"][None], time_grid(5), i, conditioning.rules
        )
        state = {
            "species": step.sample(generator(i))[0],
            "pos": (state["pos"] + dt * output.velocity["pos"]) % 1.0,
            "cell": state["cell"] + dt * output.velocity["cell"],
        }
    assert torch.equal(state["species"], batch.species)
    torch.testing.assert_close(state["cell"], expected.cell)


def test_models_without_the_flow_say_so():
    with pytest.raises(ValueError, match="needs a network with species_head=True and mask_token"):
        FlowModel(
            CSPNet(16, 1, 4, 8), tiny_model().interpolants, tiny_model().base,
            species=DiscreteFlow(),
        )  # fmt: skip
    plain = FlowModel(CSPNet(16, 1, 4, 8), tiny_model().interpolants, tiny_model().base)
    salt, bound = CrystalBatch.from_formulas(["NaCl"]), Constraints(exclude=["O"])
    for model in (plain, tiny_model()):
        with pytest.raises(ValueError, match="bind species that are generated; these are given"):
            Dynamics(model, constraints=bound).generate(salt, 2, generator=generator())
    with pytest.raises(ValueError, match="some are given"):
        SpeciesPolicy(tiny_model(), constraints=bound).prepare(salt)
    with pytest.raises(ValueError, match="sites must have finite coordinates"):
        Constraints(sites=[("Ti", (torch.nan, 0, 0))])
    with pytest.raises(ValueError, match="does not generate species"):
        Dynamics(plain).generate(torch.tensor([2]), 2, generator=generator())
    for wrong in (torch.tensor([0]), torch.tensor([2.0]), torch.tensor([[2]])):
        with pytest.raises(ValueError, match="numbers of atoms must be an int64 tensor"):
            Dynamics(tiny_model()).generate(wrong, 2, generator=generator())
    with pytest.raises(ValueError, match="elements must be atomic numbers from 1 to 100"):
        DiscreteFlow(elements=(0, 8))
    with pytest.raises(ValueError, match="needs a generator, and neither x_0 nor record"):
        Dynamics(tiny_model()).generate(torch.tensor([2]), 2)


def test_ranks_draw_what_one_process_draws():
    """Also where the number of draws within a step depends on the structures."""
    flow, times = DiscreteFlow(elements=(1, 3, 4)), time_grid(2)
    logits = torch.randn(1, 6, 4, generator=generator(), dtype=torch.float64)

    def step(n_atoms, atoms):
        rules = flow.rules(torch.tensor(n_atoms), 4, Constraints(fractions={"H": 0.5, "Li": 0.5}))
        before = torch.zeros(1, len(rules.batch), dtype=torch.long)
        return flow.step(logits[:, atoms], before, times, 1, rules)

    alone, shared = generator(1), [generator(1), generator(1)]
    whole = step([2, 4], slice(0, 6)).sample(alone)
    parts = [
        step(n, part).sample(SharedDraws(draws, 6, part))
        for n, part, draws in zip(([2], [4]), (slice(0, 2), slice(2, 6)), shared, strict=True)
    ]
    assert torch.equal(torch.cat(parts, 1), whole)
    assert torch.equal(shared[0].get_state(), shared[1].get_state())
