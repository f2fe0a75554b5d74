"""What a notebook has to write with its quick preset, however it was run."""

import json
from pathlib import Path

KEYS = {"parameters", "environment", "dataset", "claims"}
KEYS_OF = {
    "02_noise_schedules": {"evaluation", "handcrafted_sweep", "noise_scales", "potential"},
    "03_energy_reinforcement": {"evaluation", "training", "diversity", "potential"},
    "04_velocity_annealing": {"evaluation", "handcrafted_sweep", "training"},
    "06_bring_your_own": {"training", "structures"},
}
EVALUATION_KEYS = {
    *("schedule", "n_steps", "seed", "metre", "crmse", "match_rate", "rmse", "n_structures"),
}


def check_results(notebook: str, out_dir: Path) -> None:
    results = json.loads((out_dir / "results.json").read_text(encoding="utf-8"))
    assert (KEYS | KEYS_OF.get(notebook, set())) <= set(results)
    assert results["parameters"]["preset"] == "quick"
    assert results["environment"] and results["dataset"] and results["claims"]
    for claim in results["claims"]:
        assert {"claim", "value", "low", "high", "control", "target", "kind"} <= set(claim)
        assert claim["verdict"] in ("holds", "fails", "undecided")
    for row in results.get("evaluation", []):
        assert set(row) >= EVALUATION_KEYS
        assert 0 <= row["metre"] <= 1 and row["n_structures"] > 0
    assert list(out_dir.rglob("*.parquet"))
