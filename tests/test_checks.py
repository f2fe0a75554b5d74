"""Arguments against annotations; all public functions are in test_entry_points."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from irlkit.rl.config import TrainerConfig
from irlkit.utils.checks import check_count, check_finite, check_kind, checked
from tests.toys import trainer_config


@pytest.mark.parametrize(
    ("hint", "right", "wrong"),
    [
        (int, [2, np.int64(2)], [True, 2.5, "2", None]),
        (float, [2, 2.5, np.float32(2)], [True, "2", torch.tensor(2.0), None]),
        (bool, [True, np.bool_(False)], ["yes", 2]),
        (Sequence[float], [[1, 2.5], (1,), torch.ones(2), np.ones(2)], [torch.ones(2, 2), {1.0}]),
        (Sequence[str], [["a"], ()], ["a", torch.ones(2), [1], {"a"}]),
        (tuple[int, ...], [(1, 2), [1]], [torch.tensor([1]), {1}, [1.5]]),
        (tuple[float, float], [(1, 2)], [(1, 2, 3), (1, None)]),
        (Mapping[str, float], [{}, {"a": 1}], [{"a": "b"}, {1: 1.0}, [("a", 1)]]),
        (float | None, [None, 1], ["1"]),
        (str | Path, ["a", Path("a")], [b"a", 1]),
    ],
)
def test_kinds(hint, right, wrong):
    for value in right:
        check_kind("x", value, hint)
    for value in wrong:
        with pytest.raises(ValueError, match=r"^x.* must be"):
            check_kind("x", value, hint)


@pytest.mark.parametrize("make", [str, torch.device])
def test_a_device_that_is_not_there(make):
    check_kind("device", make("cpu"), str | torch.device)
    absent = "cuda:99" if torch.cuda.is_available() else "cuda"
    with pytest.raises(ValueError, match=f"device '{absent}' cannot be used here"):
        check_kind("device", make(absent), str | torch.device)


def test_bounds():
    check_count("n", 3, least=1, most=3)
    check_finite("x", 0.5, above=0.0)
    for refused in (lambda: check_count("n", 4, most=3), lambda: check_count("n", 0)):
        with pytest.raises(ValueError, match="n must be at least 1"):
            refused()
    for value in (0.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="x must be a finite number above 0"):
            check_finite("x", value, above=0.0)


def test_a_function_whose_arguments_are_checked():
    @checked
    def twice(x: float, names: Sequence[str] = ()) -> float:
        """Twice."""
        return 2 * x

    assert twice(2) == 4 and twice.__doc__ == "Twice."
    with pytest.raises(ValueError, match=r"names\[1\] must be .*, got 3"):
        twice(1.0, ["a", 3])
    with pytest.raises(TypeError, match="missing 1 required positional argument"):
        twice()


def test_settings_by_name():
    assert TrainerConfig.from_settings({"n_groups": 3}, 5) == trainer_config(n_groups=3, seed=5)
    with pytest.raises(
        ValueError, match=r"grpo must name settings of TrainerConfig or GRPOConfig, got \['lr'\]"
    ):
        TrainerConfig.from_settings({"lr": 1.0}, 0)
    with pytest.raises(ValueError, match="grpo must not hold a seed"):
        TrainerConfig.from_settings({"seed": 1}, 0)
