"""Replays searches on stored learning curves, without training: `python -m benchmarks.replay`.

Measures the regret of samplers and early stopping by the number of trained epochs. `benchmarks/replay/README.md`
describes the arms and the figures.
"""

import argparse
import math
import multiprocessing
import os
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from benchmarks.replay.arms import ARMS, REFERENCE_NAMES, Arm
from benchmarks.replay.searches import (
    EPOCHS,
    N_TRIALS,
    N_WORKERS,
    Conditions,
    Replay,
    replay_seeds,
    surrogate_of,
    table_names,
    table_of,
)
from benchmarks.replay.surrogate import MODELS, PROCESS, HeldOut, held_out_scores
from benchmarks.speed.report import machine, number_text, print_json, progress, table_text
from benchmarks.stats import Array, Factor, factor_of, geometric_mean, resampled_factors, thinned
from search.processes.helper_pool import count_cores
from spaces import InputError
from spaces.command import CommandParser, run_command
from spaces.counted import duration_text

# Parts of the budget after which tables give the regret.
PARTS = (0.25, 0.5, 1.0)
# Largest factor in a mean over tables; counts for an arm that never reaches the reference's regret.
MOST_FACTOR = 2.0
SEEDS_PER_JOB = 5
TOLD_EVERY_S = 15.0

_Key = tuple[str, str]  # names of the table and of the arm


def main(arguments: list[str] | None = None) -> int:
    parser = CommandParser(
        prog="python -m benchmarks.replay",
        description="Replay searches on stored learning curves: regret by the epoch, for samplers and early stopping.",
        epilog="example: python -m benchmarks.replay --table digits --arm tpe --arm tpe-stop-9 --seeds 20",
    )
    arms = [arm.name for arm in ARMS]
    parser.add_argument("--table", action="append", choices=table_names(), help="default: all tables")
    parser.add_argument("--arm", action="append", choices=arms, help="beside the references (default: all arms)")
    parser.add_argument("--seeds", type=int, default=50, metavar="N", help="searches per arm (default: 50)")
    parser.add_argument("--first-seed", type=int, default=0, metavar="N", help="default: 0")
    parser.add_argument(
        "--workers",
        type=int,
        default=N_WORKERS,
        metavar="N",
        help=f"trials at once of each search (default: {N_WORKERS})",
    )
    parser.add_argument(
        "--trials", type=int, default=N_TRIALS, metavar="N", help=f"budget, in complete trials (default: {N_TRIALS})"
    )
    parser.add_argument("--surrogate", choices=MODELS, default=PROCESS, help=f"default: {PROCESS}")
    parser.add_argument(
        "--noise-correlation",
        type=float,
        metavar="R",
        help="correlation of the noise of two epochs of a run, 0 to 1 (default: the table's)",
    )
    return run_command(parser, _run, arguments)


def _run(options: argparse.Namespace) -> int:
    if min(options.seeds, options.workers, options.trials) < 1:
        raise InputError("--seeds, --workers and --trials must be at least 1.")
    correlation = options.noise_correlation
    if correlation is not None and not 0 <= correlation <= 1:
        raise InputError(f"--noise-correlation {correlation} is not between 0 and 1.")
    conditions = Conditions(options.surrogate, options.workers, options.trials, correlation)
    began = time.perf_counter()
    tables = options.table or table_names()
    arms = [arm for arm in ARMS if not options.arm or arm.name in (*REFERENCE_NAMES, *options.arm)]
    # With several threads, such small matrices take several times as long on a busy machine.
    with threadpool_limits(1):
        held_out = {table: _held_out(table, options.surrogate) for table in tables}
    seeds = range(options.first_seed, options.first_seed + options.seeds)
    replays = _replay_all(tables, arms, seeds, conditions)
    progress("resampling seeds")
    resampled = _resampled({key: np.array([found.regret for found in several]) for key, several in replays.items()})
    factors = {key: {title: factor_of(values) for title, values in found.items()} for key, found in resampled.items()}
    rows = [_row(key, several, factors[key]) for key, several in replays.items()]
    for table in tables:
        print(
            f"\n{table}: {options.seeds} seeds, {options.workers} workers, budget {options.trials} × {EPOCHS} epochs\n"
        )
        print(_regret_table([row for row in rows if row["table"] == table]))
        print(f"\n{_factor_table({arm.name: factors[table, arm.name] for arm in arms})}")
    overall = _overall(tables, resampled)
    if len(tables) > 1:
        print(f"\n{len(tables)} tables, geometric mean\n\n{_factor_table(overall)}")
    print_json(
        {
            "benchmark": "search_replay",
            "settings": vars(options),
            "seconds": round(time.perf_counter() - began, 1),
            "machine": machine(),
            "held_out": {table: [asdict(score) for score in scores] for table, scores in held_out.items()},
            "rows": rows,
            "overall": {arm: _as_dicts(of_arm) for arm, of_arm in overall.items()},
        }
    )
    return 0


def _held_out(table: str, model: str) -> list[HeldOut]:
    progress(f"{table}: fitting the surrogate")
    known = table_of(table)
    scores = held_out_scores(known, model)
    surrogate = surrogate_of(table, model)
    print(f"\n{table}, {EPOCHS} epochs: {model}, held-out rows of {len(known.unit)} configurations\n")
    cells = [(str(score.epoch), f"{score.r2:.2f}", f"{100 * score.mae:.1f}") for score in scores]
    print(table_text(("epoch", "R²", "error, points"), cells))
    below = 100 * (surrogate.best - surrogate.baseline)
    print(f"\nbest {surrogate.best:.2%}, baseline {below:.2f} points below it", flush=True)
    return scores


def _replay_all(
    tables: Sequence[str], arms: Sequence[Arm], seeds: range, conditions: Conditions
) -> dict[_Key, list[Replay]]:
    parts = [seeds[at : at + SEEDS_PER_JOB] for at in range(0, len(seeds), SEEDS_PER_JOB)]
    jobs = [(table, arm, part) for table in tables for arm in arms for part in parts]
    # TPE takes longer than random proposals: first, so that no long job is left for the end.
    jobs.sort(key=lambda job: "random" in job[1].name)
    found: dict[_Key, dict[int, Replay]] = {(table, arm.name): {} for table in tables for arm in arms}
    # The processes read these when they start: the matrices are too small for several threads.
    os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", MKL_NUM_THREADS="1")
    n_done, told = 0, time.perf_counter()
    began = told
    with ProcessPoolExecutor(min(count_cores(), len(jobs)), multiprocessing.get_context("spawn")) as pool:
        futures = {pool.submit(replay_seeds, *job, conditions): job for job in jobs}
        try:
            for future in as_completed(futures):
                table, arm, part = futures[future]
                found[table, arm.name] |= zip(part, future.result(), strict=True)
                n_done += 1
                if time.perf_counter() - told > TOLD_EVERY_S:
                    told = time.perf_counter()
                    left_s = (told - began) / n_done * (len(jobs) - n_done)
                    progress(f"{n_done} of {len(jobs)} jobs, about {duration_text(left_s)} left")
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
    return {key: [several[seed] for seed in seeds] for key, several in found.items()}


# By table and arm, then by the title of the reference's column.
_Resampled = Mapping[_Key, Mapping[str, Array]]


def _resampled(curves: Mapping[_Key, Array]) -> _Resampled:
    few = {key: thinned(regrets) for key, regrets in curves.items()}
    return {
        (table, arm): {
            f"of {name}'s budget" if of_budget else f"× {name}": resampled_factors(regrets, few[table, name], of_budget)
            for name in REFERENCE_NAMES
            for of_budget in (False, True)
        }
        for (table, arm), regrets in few.items()
    }


def _row(key: _Key, replays: Sequence[Replay], factors: Mapping[str, Factor]) -> dict[str, Any]:
    """Results of one arm on one table; regrets in points."""
    regrets = np.array([found.regret for found in replays])
    medians = np.median(regrets, axis=0)
    means = regrets[:, regrets.shape[1] // 10 :].mean(axis=1)  # without the first tenth: hardly a trial has completed
    return {
        "table": key[0],
        "arm": key[1],
        "trials": float(np.median([found.n_trials for found in replays])),
        "completed": float(np.median([found.n_completed for found in replays])),
        "median_regrets": [float(medians[round(part * len(medians)) - 1]) for part in PARTS],
        "mean_regret": float(means.mean()),
        "mean_regret_by_seed": means.round(4).tolist(),
        "last_regret_by_seed": regrets[:, -1].round(4).tolist(),
        "factors": _as_dicts(factors),
    }


def _overall(tables: Sequence[str], resampled: _Resampled) -> dict[str, dict[str, Factor]]:
    """Factors by arm, as geometric means over the tables; the lowest factor to the last reference first."""
    found = {
        arm: {
            title: factor_of(geometric_mean([resampled[table, arm][title] for table in tables], MOST_FACTOR))
            for title in resampled[tables[0], arm]
        }
        for arm in dict.fromkeys(arm for _, arm in resampled)
    }
    return dict(sorted(found.items(), key=lambda item: item[1][f"× {REFERENCE_NAMES[-1]}"].value))


def _as_dicts(factors: Mapping[str, Factor]) -> dict[str, dict[str, float]]:
    return {title: asdict(factor) for title, factor in factors.items()}


def _regret_table(rows: Sequence[Mapping[str, Any]]) -> str:
    cells = [
        (
            row["arm"],
            *(number_text(row[name]) for name in ("trials", "completed")),
            *(number_text(regret, 2) for regret in (*row["median_regrets"], row["mean_regret"])),
        )
        for row in rows
    ]
    return table_text(("arm", "trials", "to the end", "regret at ¼", "½", "budget", "mean"), cells)


def _factor_table(by_arm: Mapping[str, Mapping[str, Factor]]) -> str:
    titles = next(iter(by_arm.values()))
    cells = [(arm, *map(_factor_text, factors.values())) for arm, factors in by_arm.items()]
    return table_text(("epochs to the same regret", *titles), cells)


def _factor_text(factor: Factor) -> str:
    value, low, high = (f"{v:.2f}" if math.isfinite(v) else "∞" for v in (factor.value, factor.low, factor.high))
    return f"{value} ({low} – {high})"


if __name__ == "__main__":
    sys.exit(main())
