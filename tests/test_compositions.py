"""Formulas that people type, and what they are told."""

import pytest

from irlkit.crystals.compositions import from_formula


@pytest.mark.parametrize(
    ("formula", "units", "expected"),
    [
        ("NaCl", 1, [11, 17]),
        ("NaCl", 2, [11, 11, 17, 17]),
        ("  SrTiO3 ", 1, [8, 8, 8, 22, 38]),
        ("TiO₂", 1, [8, 8, 22]),
        ("Mg(OH)2", 1, [1, 1, 8, 8, 12]),
        ("Na2 Cl2", 1, [11, 11, 17, 17]),
        ("Si", 1, [14]),
        ("Fe 2 O 3", 1, [8, 8, 8, 26, 26]),
        ("\ufeffLi₂O\xa0", 1, [3, 3, 8]),
        ("Na1.0Cl", 1, [11, 17]),
        ("[Mg(OH)2]2", 1, [1] * 4 + [8] * 4 + [12] * 2),
    ],
)
def test_formulas_become_atoms(formula, units, expected):
    batch = from_formula(formula, units)
    assert len(batch) == 1
    assert batch.species.tolist() == expected


@pytest.mark.parametrize(
    ("formula", "words"),
    [
        ("", "must be a text"),
        (None, "must be a text"),
        ("nacl", "begin with a capital letter"),
        ("Nacl", "begin with a capital letter|no element"),
        ("NaX", "'X' is no element that is known"),
        ("TIO2", "'T' is no element that is known; did you mean Ti"),
        ("DY2O3", "did you mean Dy"),
        ("Na Cl 4", "could mean formula units as well"),
        ("Mg (OH) 2", "could mean formula units as well"),
        ("Fe³⁺", "carries a charge"),
        ("Na0Cl", "the number 0 leaves no atoms"),
        ("(NaCl]", "']' closes no bracket"),
        ("Na()2", "follows no element and no bracket"),
        ("Jo2", "'Jo' is no element.*did you mean"),
        ("LvO", "atomic number is above 100"),
        ("D2O", "isotopes are not told apart, write H"),
        ("Na0.5Cl", "fractions of atoms"),
        ("Na+", "carries a charge"),
        ("Na-Cl!", "signs that are not part"),
        ("Ca3(PO4", "cannot read"),
        ("123", "cannot read"),
        ("Al12Fe17", "29 atoms, more than the 28 that are allowed: take a smaller formula"),
    ],
)
def test_wrong_formulas_are_answered_in_words(formula, words):
    with pytest.raises(ValueError, match=words):
        from_formula(formula)


def test_too_many_formula_units():
    with pytest.raises(ValueError, match="take at most 5 formula units"):
        from_formula("SrTiO3", 6)
    assert len(from_formula("SrTiO3", 6, max_atoms=30).species) == 30
    for wrong in (0, 1.5, True):
        with pytest.raises(ValueError, match="n_formula_units must be"):
            from_formula("SrTiO3", wrong)
