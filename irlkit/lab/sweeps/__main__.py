"""Command line of sweeps: ``python -m irlkit.lab.sweeps run|show|spaces``."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from irlkit.lab.sweeps.objective import REWARDS, PolicyObjective, TrainingSettings, close
from irlkit.lab.sweeps.optuna_backend import STORES, run_optuna
from irlkit.lab.sweeps.ray_backend import run_ray
from irlkit.lab.sweeps.spaces import SPACES
from irlkit.lab.sweeps.store import SweepFolder


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    options = _parser().parse_args(arguments)
    try:
        return {"run": _run, "show": _show, "spaces": _spaces}[options.action](options)
    except KeyboardInterrupt:
        print("stopped; the same command continues", file=sys.stderr)
        return 130
    except (ImportError, OSError, ValueError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    defaults = TrainingSettings()
    parser = argparse.ArgumentParser(prog="python -m irlkit.lab.sweeps", description=__doc__)
    actions = parser.add_subparsers(dest="action", required=True)

    run = actions.add_parser(
        "run", help="run a sweep of Appendix F; the same command continues one that was stopped"
    )
    run.add_argument("--policy", choices=sorted(SPACES), default="annealing")
    run.add_argument("--out-dir", required=True, type=Path)
    run.add_argument("--trials", type=int, default=40, help="in total")
    run.add_argument("--iterations", type=int, default=defaults.iterations, help="per trial")
    run.add_argument("--checkpoint", help="default: the shipped model for the policy")
    run.add_argument("--dataset", default=defaults.dataset)
    run.add_argument("--reward", choices=REWARDS, help="default: crmse, energy but for annealing")
    run.add_argument("--potential", default=defaults.potential)
    run.add_argument("--n-steps", type=int, help="default: 10, 50 but for annealing")
    run.add_argument("--n-groups", type=int, help="default: 16, as the paper has it")
    run.add_argument("--group-size", type=int, nargs="+", help="choices; default: 32 64")
    run.add_argument("--validate-every", type=int, default=5)
    run.add_argument("--validation-size", type=int, default=256)
    run.add_argument("--max-batch", type=int, help="structures per network call")
    run.add_argument("--seed", type=int, default=0)
    run.add_argument("--device", default=defaults.device)
    run.add_argument("--prune", action="store_true", help="end trials below the median early")
    run.add_argument("--backend", choices=("optuna", "ray"), default="optuna")
    run.add_argument("--store", choices=sorted(STORES), default="sqlite", help="of Optuna")
    run.add_argument("--workers", type=int, default=2, help="trials at the same time, of Ray")
    run.add_argument("--address", help="of a Ray cluster; default: one on this machine")
    run.add_argument("--cpus-per-trial", type=float, default=1.0, help="of Ray")
    run.add_argument("--gpus-per-trial", type=float, default=0.0, help="of Ray")

    show = actions.add_parser("show", help="the trials of a sweep, and the best")
    show.add_argument("folder", type=Path)
    show.add_argument("--json", action="store_true", help="only the best configuration, as JSON")

    actions.add_parser("spaces", help="the search spaces")
    return parser


def _run(options: argparse.Namespace) -> int:
    annealing = options.policy == "annealing"
    changed = {} if options.group_size is None else {"group_size": options.group_size}
    fixed = {} if options.n_groups is None else {"n_groups": options.n_groups}
    space = SPACES[options.policy].narrowed(changed, **fixed)
    settings = TrainingSettings(
        checkpoint=options.checkpoint or ("linear-ode" if annealing else "trig-sde-gamma"),
        dataset=options.dataset,
        reward=options.reward or ("crmse" if annealing else "energy"),
        potential=options.potential,
        iterations=options.iterations,
        grpo={
            "n_steps": options.n_steps or (10 if annealing else 50),
            "validate_every": options.validate_every,
            "validation_size": options.validation_size,
            "max_batch": options.max_batch,
        },
        seed=options.seed,
        device=options.device,
    )
    objective = PolicyObjective(space, settings)
    sweep = SweepFolder.create(
        options.out_dir, space, objective.describe(), options.seed, options.backend
    )
    try:
        if options.backend == "ray":
            run_ray(
                sweep,
                objective,
                options.trials,
                n_workers=options.workers,
                cpus_per_trial=options.cpus_per_trial,
                gpus_per_trial=options.gpus_per_trial,
                address=options.address,
                prune=options.prune,
            )
        else:
            run_optuna(sweep, objective, options.trials, store=options.store, prune=options.prune)
    finally:
        close()
    _print(sweep)
    return 0


def _show(options: argparse.Namespace) -> int:
    sweep = SweepFolder.open(options.folder)
    if options.json:
        print(json.dumps(dict(sweep.best().config)))
    else:
        _print(sweep)
    return 0


def _spaces(options: argparse.Namespace) -> int:
    for space in SPACES.values():
        print(f"{space.policy}\n{space.table().to_string(header=False)}\n")
    return 0


def _print(sweep: SweepFolder) -> None:
    trials = sweep.trials()
    print(trials.drop(columns="error").to_string(index=False, float_format="{:.4g}".format))
    for row in trials[trials["error"].notna()].to_dict("records"):
        print(f"trial {row['number']} failed: {row['error']}")
    counts = trials["state"].value_counts().to_dict()
    print(", ".join(f"{count} {state}" for state, count in counts.items()) or "no trials yet")
    if "complete" in counts:
        best = sweep.best()
        print(f"best: trial {best.number}, {best.value:.4f}, {json.dumps(dict(best.config))}")


if __name__ == "__main__":
    sys.exit(main())
