"""Command line of sweeps: ``irlkit sweeps run|show|spaces``."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import optuna

from irlkit.lab.sweeps.objective import REWARDS, PolicyObjective
from irlkit.lab.sweeps.run import run_optuna, run_ray
from irlkit.lab.sweeps.spaces import SPACES
from irlkit.lab.sweeps.study import Sweep, open_study, trials_table


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    options = _parser().parse_args(arguments)
    try:
        options.action(options)
    except KeyboardInterrupt:
        print("stopped; the same command continues", file=sys.stderr)
        return 130
    except (ImportError, OSError, ValueError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="irlkit sweeps", description=__doc__)
    actions = parser.add_subparsers(required=True)

    run = actions.add_parser(
        "run", help="run a sweep of Appendix F; the same command continues one that was stopped"
    )
    run.set_defaults(action=_run)
    run.add_argument("--policy", choices=sorted(SPACES), default="annealing")
    run.add_argument("--out-dir", required=True, type=Path)
    run.add_argument("--trials", type=int, default=40, help="in total")
    run.add_argument("--iterations", type=int, default=60, help="per trial")
    run.add_argument("--checkpoint", help="default: the shipped model for the policy")
    run.add_argument("--dataset", default="prototypes")
    run.add_argument("--reward", choices=REWARDS, help="default: crmse, energy but for annealing")
    run.add_argument("--potential", default="chgnet")
    run.add_argument("--n-steps", type=int, help="default: 10, 50 but for annealing")
    run.add_argument("--n-groups", type=int, help="default: 16, as the paper has it")
    run.add_argument("--group-size", type=int, nargs="+", help="choices; default: 32 64")
    run.add_argument("--validate-every", type=int, default=5)
    run.add_argument("--validation-size", type=int, default=256)
    run.add_argument("--max-batch", type=int, help="structures per network call")
    run.add_argument("--seed", type=int, default=0)
    run.add_argument("--device", default="cpu")
    run.add_argument("--prune", action="store_true", help="end trials below the median early")
    run.add_argument("--backend", choices=("optuna", "ray"), default="optuna")
    run.add_argument("--workers", type=int, default=2, help="trials at the same time, of Ray")
    run.add_argument("--address", help="of a Ray cluster; default: one on this machine")
    run.add_argument("--cpus-per-trial", type=float, default=1.0, help="of Ray")
    run.add_argument("--gpus-per-trial", type=float, default=0.0, help="of Ray")

    show = actions.add_parser("show", help="the trials of a sweep, and the best")
    show.set_defaults(action=_show)
    show.add_argument("folder", type=Path)
    show.add_argument("--json", action="store_true", help="only the best configuration, as JSON")

    spaces = actions.add_parser("spaces", help="the search spaces")
    spaces.set_defaults(action=_spaces)
    return parser


def _run(options: argparse.Namespace) -> None:
    changed = {} if options.group_size is None else {"group_size": options.group_size}
    fixed = {} if options.n_groups is None else {"n_groups": options.n_groups}
    space = SPACES[options.policy].narrowed(changed, **fixed)
    names = ("n_steps", "validate_every", "validation_size", "max_batch")
    objective = PolicyObjective(
        space,
        checkpoint=options.checkpoint,
        dataset=options.dataset,
        reward=options.reward,
        potential=options.potential,
        iterations=options.iterations,
        grpo={name: getattr(options, name) for name in names},
        seed=options.seed,
        device=options.device,
    )
    sweep = Sweep(options.out_dir, space, objective.describe(), options.seed)
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
            run_optuna(sweep, objective, options.trials, prune=options.prune)
    finally:
        objective.close()
    _print(sweep.study)


def _show(options: argparse.Namespace) -> None:
    study = open_study(options.folder)
    if options.json:
        print(json.dumps(study.best_trial.params))
    else:
        _print(study)


def _spaces(options: argparse.Namespace) -> None:
    for space in SPACES.values():
        print(f"{space.policy}\n{space.table().to_string(header=False)}\n")


def _print(study: optuna.Study) -> None:
    trials = trials_table(study)
    print(trials.drop(columns="error").to_string(index=False, float_format="{:.4g}".format))
    for row in trials[trials["error"].notna()].to_dict("records"):
        print(f"trial {row['number']} failed: {row['error']}")
    counts = trials["state"].value_counts().to_dict()
    print(", ".join(f"{count} {state}" for state, count in counts.items()) or "no trials yet")
    if "complete" in counts:
        best = study.best_trial
        print(f"best: trial {best.number}, {best.value:.4f}, {json.dumps(best.params)}")


if __name__ == "__main__":
    sys.exit(main())
