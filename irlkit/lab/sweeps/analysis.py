"""What a sweep says about its parameters."""

from __future__ import annotations

import warnings

import pandas as pd

from irlkit.lab.sweeps.optuna_backend import distributions, import_optuna
from irlkit.lab.sweeps.spaces import SearchSpace
from irlkit.utils.checks import checked


@checked
def importance(trials: pd.DataFrame, space: SearchSpace) -> pd.Series:
    """Which parameters make the difference between good trials and the others (PED-ANOVA).

    It compares how a parameter is distributed over the best quarter of the trials with how it is
    over all of them. Few trials say little: what is below a tenth is mostly noise.

    Args:
        trials: of ``SweepFolder.trials``, whichever backend ran them; complete and pruned ones
            count.
        space: what was searched.

    Returns:
        Parameter -> share, highest first; the shares sum to 1. All are nan with fewer than four
        trials or where all values are equal.

    Raises:
        ValueError: the table has other columns.
        ImportError: Optuna is not installed.
    """
    if not {"state", "value"} <= set(trials.columns):
        raise ValueError(
            "trials must have the columns of SweepFolder.trials, 'state' and 'value' among them, "
            f"got {list(trials.columns)}"
        )
    optuna = import_optuna()
    done = trials[trials["state"].isin(("complete", "pruned")) & trials["value"].notna()]
    unknown = pd.Series(float("nan"), index=list(space.names), name="importance")
    if len(done) < 4 or done["value"].nunique() < 2:
        return unknown
    study = optuna.create_study(direction="maximize")
    for row in done.to_dict("records"):
        study.add_trial(
            optuna.trial.create_trial(
                params={name: row[name] for name in space.names},
                distributions=distributions(space),
                value=row["value"],
            )
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        evaluator = optuna.importance.PedAnovaImportanceEvaluator(target_quantile=0.25)
        found = optuna.importance.get_param_importances(study, evaluator=evaluator)
    shares = pd.Series(found, dtype=float, name="importance").reindex(list(space.names)).fillna(0.0)
    if not shares.sum() > 0:
        return unknown
    return (shares / shares.sum()).sort_values(ascending=False, kind="stable")
