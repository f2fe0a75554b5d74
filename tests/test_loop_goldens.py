"""The loop computes what it did when it was recorded: rollouts, losses, trainings, integration.

On a machine with the fingerprint of the one that recorded (versions of torch and numpy, kernels,
and what these compute) every bit has to be the same. Elsewhere only the numbers are compared, with
tolerances: digests are left out, and of each tensor the norm of the difference is taken over the
norm. A change that is meant to alter results is recorded anew with ``python -m tests.record_loop``,
and says so in the changelog.
"""

import pytest
import torch

from tests.record_loop import CASES, fingerprint, load, record

# Norm of the difference over the norm (over 1, if that is smaller). Measured between AVX-512 and
# kernels without vectors: at most a tenth of each. bfloat16 rounds to three digits.
TOLERANCES = {"float64": 1e-9, "float32": 1e-4, "mixed-precision": 2e-2}


@pytest.fixture(scope="module")
def recorded():
    return load()


@pytest.fixture(scope="module")
def same_machine(recorded):
    return fingerprint() == recorded[1]


def tolerance(case):
    for name in ("mixed-precision", "float32"):
        if name in case:
            return TOLERANCES[name]
    return TOLERANCES["float64"]


def difference(ours, theirs):
    """Relative to the norm, or to 1 if that is smaller; infinite where one alone is finite."""
    ours, theirs = ours.double(), theirs.double()
    finite = theirs.isfinite()
    if not torch.equal(ours.isfinite(), finite):
        return float("inf")
    ours, theirs = ours[finite], theirs[finite]
    return float((ours - theirs).norm() / theirs.norm().clamp(min=1.0))


def same_bits(ours, theirs):
    if ours.dtype != theirs.dtype or ours.shape != theirs.shape:
        return False
    as_bytes = (x.contiguous().flatten().view(torch.uint8) for x in (ours, theirs))
    return torch.equal(*as_bytes)


def test_every_case_is_recorded(recorded):
    assert set(recorded[0]) == set(CASES)


@pytest.mark.parametrize("case", CASES)
def test_loop_computes_what_was_recorded(case, recorded, same_machine):
    ours, theirs = record(case), recorded[0][case]
    assert set(ours) == set(theirs)
    if same_machine:
        wrong = [name for name in theirs if not same_bits(ours[name], theirs[name])]
    else:
        wrong = [
            name
            for name in theirs
            if not name.endswith("@digest")
            and difference(ours[name], theirs[name]) > tolerance(case)
        ]
    report = [
        f"{name}: relative difference {difference(ours[name], theirs[name]):.1e}, "
        f"{ours[name].flatten()[:4].tolist()} instead of {theirs[name].flatten()[:4].tolist()}"
        if ours[name].shape == theirs[name].shape
        else f"{name}: shape {tuple(ours[name].shape)} instead of {tuple(theirs[name].shape)}"
        for name in wrong
    ]
    assert not wrong, f"{len(wrong)} of {len(theirs)} differ\n" + "\n".join(report[:20])
