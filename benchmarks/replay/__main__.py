"""Searches replayed on stored learning curves, without training: `python -m benchmarks.replay`.

What samplers and early stopping buy, by the epoch. The metric and the arms stand in `benchmarks/README.md`, written
down before the first result.
"""

import argparse
import math
import multiprocessing
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from benchmarks.replay.arms import REFERENCE_NAMES, Arm, full_arms, shipped_arms
from benchmarks.replay.searches import Replay, replay
from benchmarks.replay.stats import (
    Array,
    Factor,
    epochs_to,
    factor_of,
    geometric_mean,
    interval_of_median,
    resampled_factors,
    thinned,
)
from benchmarks.replay.surrogate import MODEL_NAMES, Surrogate, best_model, fit, held_out_scores, ties
from benchmarks.replay.tables import FOLDER, Table, read_table, stored_tables
from benchmarks.speed.report import machine, number_text, print_json, progress, table_text
from search.processes.helper_pool import count_cores
from spaces import InputError
from spaces.command import CommandParser, run_command
from spaces.counted import duration_text
from spaces.errors import expanded
from trainable.files import replacing

EPOCHS = 27
LONG_EPOCHS = 81
BUDGET_IN_TRIALS = 40
# Of the budget: where regret is told.
PARTS = (0.25, 0.5, 1.0)
LEVELS = (1.0, 0.5)
# What a factor counts as in a mean over tables, where an arm does not get there.
MOST_FACTOR = 2.0
SEEDS_A_JOB = 5
TOLD_EVERY_S = 15.0


@dataclass(frozen=True, slots=True)
class Job:
    """Some seeds of one arm on one table."""

    setting: str
    arm: Arm
    seeds: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Row:
    """One arm on one table.

    Attributes:
        setting: table and epochs of a trial.
        arm: its name.
        n_seeds: how many searches.
        trials, completed: medians over seeds.
        regret: medians after a quarter, half and all of the budget, in points.
        regret_interval: 95 % bootstrap interval of the last of those.
        mean_regret: over all seeds and all epochs but the first tenth, in which hardly a trial has completed.
        epochs_to_1, epochs_to_half: until the median regret stays at or below 1 point and 0.5; infinite for never.
        factors: against each reference, in `REFERENCE_NAMES`: over the epochs after which that stayed where it ended.
        budget_factors: the same over all epochs that the reference trained.
    """

    setting: str
    arm: str
    n_seeds: int
    trials: float
    completed: float
    regret: tuple[float, ...]
    regret_interval: tuple[float, float]
    mean_regret: float
    epochs_to_1: float
    epochs_to_half: float
    factors: Mapping[str, Factor]
    budget_factors: Mapping[str, Factor]


def main(arguments: list[str] | None = None) -> int:
    parser = CommandParser(
        prog="python -m benchmarks.replay",
        description="Replay searches on stored learning curves: regret by the epoch, for samplers and early stopping.",
        epilog="example: python -m benchmarks.replay --table digits --arm random --arm tpe-stop-3 --seeds 20",
    )
    parser.add_argument("--table", action="append", metavar="NAME", help="NAME.csv.gz and NAME.json (default: all)")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="of the tables (default: benchmarks/curves)")
    parser.add_argument("--arm", action="append", metavar="NAME", help="of the full list (default: the shipped ones)")
    parser.add_argument("--full", action="store_true", help="all arms, and 81 epochs where a table has them: hours")
    parser.add_argument("--seeds", type=int, default=50, help="searches an arm (default: 50)")
    parser.add_argument("--first-seed", type=int, default=0, help="default: 0")
    parser.add_argument("--at-once", type=int, metavar="N", help="processes (default: one a core)")
    parser.add_argument("--surrogate", metavar="NAME", help="of all tables (default: for each what foresees it best)")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw regret against epochs: .png or .svg")
    parser.add_argument("--curves", type=Path, metavar="FILE", help="write all regret curves: .npz")
    return run_command(parser, _run, arguments)


def _run(options: argparse.Namespace) -> int:
    _check(options)
    began = time.perf_counter()
    arms = _arms(options)
    surrogates, quality = {}, {}
    for table in _tables(options):
        setting = f"{table.name}, {table.epochs} epochs"
        progress(f"{setting}: fitting the surrogate")
        surrogates[setting], quality[setting] = _fitted(table, options.surrogate)
        _print_quality(setting, quality[setting])
    jobs = _jobs(arms, surrogates, range(options.first_seed, options.first_seed + options.seeds))
    replays = _replay_all(jobs, surrogates, options.at_once or count_cores())
    curves = {key: np.array([found.regret for _, found in sorted(several)]) for key, several in replays.items()}
    progress("resampling seeds")
    resampled = _resampled(curves)
    rows = [_row(key, curves, [found for _, found in replays[key]], resampled) for key in curves]
    overall = _overall(list(surrogates), resampled)
    for setting in surrogates:
        of_setting = [row for row in rows if row.setting == setting]
        print(f"\n{setting}, {options.seeds} seeds\n\n{_table(of_setting)}\n\n{_factor_table(of_setting)}")
    if len(surrogates) > 1:
        print(f"\n{len(surrogates)} tables, geometric mean\n\n{_overall_table(overall)}")
    if options.plot:
        _draw(options.plot, rows, curves)
    if options.curves:
        _save(options.curves, curves)
    print_json(
        {
            "benchmark": "search_replay",
            "settings": {key: value.name if isinstance(value, Path) else value for key, value in vars(options).items()},
            "seconds": round(time.perf_counter() - began, 1),
            "machine": machine(),
            "surrogates": quality,
            "rows": [asdict(row) for row in rows],
            "overall": {
                arm: {f"{name}{' budget' * of_budget}": asdict(factor) for (name, of_budget), factor in factors.items()}
                for arm, factors in overall.items()
            },
        }
    )
    return 0


def _check(options: argparse.Namespace) -> None:
    if options.seeds < 1 or (options.at_once is not None and options.at_once < 1):
        raise InputError("--seeds and --at-once must be at least 1.")
    known = {arm.name for arm in full_arms()}
    for name in options.arm or ():
        if name not in known:
            raise InputError(f"--arm is `{name}`, but must be one of {', '.join(sorted(known))}.")
    if options.surrogate not in (None, *MODEL_NAMES):
        raise InputError(f"--surrogate is `{options.surrogate}`, but must be one of {', '.join(MODEL_NAMES)}.")
    if options.plot and options.plot.suffix not in (".png", ".svg"):
        raise InputError(f"--plot is {options.plot}, but must end with .png or .svg.")
    for flag, path in (("--plot", options.plot), ("--curves", options.curves)):
        if path and not expanded(str(path)).parent.is_dir():
            raise InputError(f"{flag} is {path}, but must lie in a folder that there is: {path.parent} is none.")


def _arms(options: argparse.Namespace) -> list[Arm]:
    if options.arm:
        return [arm for arm in full_arms() if arm.name in (*REFERENCE_NAMES, *options.arm)]
    return list(full_arms() if options.full else shipped_arms())


def _tables(options: argparse.Namespace) -> Iterator[Table]:
    for name in options.table or stored_tables(options.folder):
        table = read_table(name, options.folder)
        yield table.first_epochs(EPOCHS)
        if options.full and table.epochs >= LONG_EPOCHS:
            yield table.first_epochs(LONG_EPOCHS)


def _fitted(table: Table, model: str | None) -> tuple[Surrogate, dict[str, Any]]:
    # Threads that wait for each other over matrices this small take several times as long on a busy machine.
    with threadpool_limits(1):
        scores = held_out_scores(table)
        surrogate = fit(table, model or best_model(scores))
    noise = surrogate.noise
    quality = {
        "configurations": len(table.unit),
        "model": surrogate.model,
        "held_out": [asdict(score) for score in scores],
        "ties": [asdict(tie) for tie in ties(surrogate)],
        "noise_at_80_percent": round(100 * 0.4 * float(noise.scale[-1]), 3),
        "noise_correlation": round(noise.correlation, 3),
        "noise_from_seeds": noise.from_seeds,
        "best": surrogate.best,
        "best_in_table": float(table.curves[:, -1].max()),
        "baseline_regret": 100 * (surrogate.best - surrogate.baseline),
    }
    return surrogate, quality


def _print_quality(setting: str, quality: Mapping[str, Any]) -> None:
    rows = [
        (row["model"], str(row["epoch"]), f"{row['r2']:.3f}", f"{100 * row['mae']:.2f}", f"{row['spearman']:.3f}")
        for row in quality["held_out"]
    ]
    print(f"\n{setting}: held-out rows of {quality['configurations']}, taken: {quality['model']}\n")
    print(table_text(("surrogate", "epoch", "R²", "error, points", "Spearman"), rows))
    kept = [
        (str(tie["epoch"]), *(f"{100 * tie[key]:.1f} %" for key in tie if key != "epoch")) for tie in quality["ties"]
    ]
    print()
    print(table_text(("epoch", "at chance: table", "surrogate", "one exact value: table", "surrogate"), kept))
    source = "repeated seeds" if quality["noise_from_seeds"] else "raggedness of the curves"
    print(
        f"\nnoise at 80 %: {quality['noise_at_80_percent']:.2f} points after the last epoch, correlation between "
        f"epochs {quality['noise_correlation']:.2f} (from {source}); best {quality['best']:.2%}, "
        f"baseline {quality['baseline_regret']:.2f} points below it",
        flush=True,
    )


def _jobs(arms: Sequence[Arm], settings: Mapping[str, Surrogate], seeds: range) -> list[Job]:
    jobs = []
    for setting in settings:
        for arm in arms:
            taken = seeds if arm.most_seeds is None else seeds[: arm.most_seeds]
            jobs += [Job(setting, arm, tuple(taken[at : at + SEEDS_A_JOB])) for at in range(0, len(taken), SEEDS_A_JOB)]
    # What takes long must not be left for the end, and the time left is told the better the more alike the rest is.
    return sorted(jobs, key=_slowness, reverse=True)


def _slowness(job: Job) -> tuple[bool, bool, int]:
    sampler = getattr(job.arm, "sampler", "tpe")
    return sampler == "gp", str(LONG_EPOCHS) in job.setting, ("random", "tpe", "gp").index(sampler)


_Replays = dict[tuple[str, str], list[tuple[int, Replay]]]


def _replay_all(jobs: Sequence[Job], surrogates: Mapping[str, Surrogate], at_once: int) -> _Replays:
    # Read by the processes when they start: matrices here are too small to share.
    os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", MKL_NUM_THREADS="1")
    # In the order of tables and arms, whatever is done first.
    replays: _Replays = {}
    n_searches = sum(len(job.seeds) for job in jobs)
    n_done, began = 0, time.perf_counter()
    told = began
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(at_once, len(jobs)), context, _take, (dict(surrogates),)) as pool:
        futures = {pool.submit(_replay_job, job): job for job in jobs}
        try:
            for future in as_completed(futures):
                job = futures[future]
                replays.setdefault((job.setting, job.arm.name), []).extend(zip(job.seeds, future.result(), strict=True))
                n_done += len(job.seeds)
                if time.perf_counter() - told > TOLD_EVERY_S or n_done == n_searches:
                    told = time.perf_counter()
                    left_s = (told - began) / n_done * (n_searches - n_done)
                    progress(f"{n_done:,} of {n_searches:,} searches, about {duration_text(left_s)} left")
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
    order = {key: place for place, key in enumerate((s, arm.name) for s in surrogates for arm in full_arms())}
    return dict(sorted(replays.items(), key=lambda item: order[item[0]]))


_surrogates: dict[str, Surrogate] = {}


def _take(surrogates: dict[str, Surrogate]) -> None:
    _surrogates.update(surrogates)


def _replay_job(job: Job) -> list[Replay]:
    surrogate = _surrogates[job.setting]
    return [replay(job.arm, surrogate, seed, BUDGET_IN_TRIALS * surrogate.table.epochs) for seed in job.seeds]


_Key = tuple[str, str]
# Of a setting and arm, against a reference and its budget or not.
_Resampled = Mapping[_Key, Mapping[tuple[str, bool], Array]]


def _resampled(curves: Mapping[_Key, Array]) -> _Resampled:
    few = {key: thinned(regrets) for key, regrets in curves.items()}
    return {
        (setting, arm): {
            (name, of_budget): resampled_factors(regrets, few[setting, name], of_budget)
            for name in REFERENCE_NAMES
            if (setting, name) in few
            for of_budget in (False, True)
        }
        for (setting, arm), regrets in few.items()
    }


def _row(key: _Key, curves: Mapping[_Key, Array], replays: Sequence[Replay], resampled: _Resampled) -> Row:
    setting, arm = key
    regrets = curves[key]
    medians = np.median(regrets, axis=0)
    factors = {which: factor_of(values) for which, values in resampled[key].items()}
    return Row(
        setting=setting,
        arm=arm,
        n_seeds=len(regrets),
        trials=float(np.median([found.n_trials for found in replays])),
        completed=float(np.median([found.n_completed for found in replays])),
        regret=tuple(float(medians[round(part * len(medians)) - 1]) for part in PARTS),
        regret_interval=interval_of_median(regrets[:, -1]),
        mean_regret=float(regrets[:, regrets.shape[1] // 10 :].mean()),
        epochs_to_1=epochs_to(medians, LEVELS[0]),
        epochs_to_half=epochs_to(medians, LEVELS[1]),
        factors={name: factor for (name, of_budget), factor in factors.items() if not of_budget},
        budget_factors={name: factor for (name, of_budget), factor in factors.items() if of_budget},
    )


def _overall(settings: Sequence[str], resampled: _Resampled) -> dict[str, dict[tuple[str, bool], Factor]]:
    """Of the arms that every table was replayed with; the lowest factor to the last reference first."""
    arms = dict.fromkeys(arm for _, arm in resampled if all((setting, arm) in resampled for setting in settings))
    found = {
        arm: {
            which: factor_of(geometric_mean([resampled[setting, arm][which] for setting in settings], MOST_FACTOR))
            for which in resampled[settings[0], arm]
        }
        for arm in arms
    }
    return dict(sorted(found.items(), key=lambda item: item[1][REFERENCE_NAMES[-1], False].value))


def _overall_table(overall: Mapping[str, Mapping[tuple[str, bool], Factor]]) -> str:
    titles = [f"of {name}'s budget" if of_budget else f"× {name}" for name, of_budget in next(iter(overall.values()))]
    cells = [(arm, *map(_factor_text, factors.values())) for arm, factors in overall.items()]
    return table_text(("epochs to the same regret", *titles), cells)


def _table(rows: Sequence[Row]) -> str:
    columns = ("arm", "trials", "to the end", "regret at ¼", "½", "budget", "95 %", "mean", "to 1 point", "to 0.5")
    return table_text(columns, [_cells(row) for row in rows])


def _factor_table(rows: Sequence[Row]) -> str:
    headers = [(f"× {name}", f"of {name}'s budget") for name in REFERENCE_NAMES]
    cells = [
        (
            row.arm,
            *(
                _factor_text(factors[name]) if name in factors else ""
                for name in REFERENCE_NAMES
                for factors in (row.factors, row.budget_factors)
            ),
        )
        for row in rows
    ]
    return table_text(("epochs to the same regret", *(title for pair in headers for title in pair)), cells)


def _cells(row: Row) -> tuple[str, ...]:
    low, high = row.regret_interval
    name = row.arm if row.n_seeds >= 50 else f"{row.arm} ({row.n_seeds} seeds)"
    return (
        name,
        number_text(row.trials),
        number_text(row.completed),
        *(number_text(regret, 2) for regret in row.regret),
        f"{low:.2f} – {high:.2f}",
        number_text(row.mean_regret, 2),
        _epochs_text(row.epochs_to_1),
        _epochs_text(row.epochs_to_half),
    )


def _epochs_text(epochs: float) -> str:
    return f"{epochs:,.0f}" if math.isfinite(epochs) else "never"


def _factor_text(factor: Factor) -> str:
    return f"{_one(factor.value)} ({_one(factor.low)} – {_one(factor.high)})"


def _one(value: float) -> str:
    return f"{value:.2f}" if math.isfinite(value) else "∞"


def _draw(path: Path, rows: Sequence[Row], curves: Mapping[tuple[str, str], Array]) -> None:
    from benchmarks.replay.plot import draw

    drawn = [row for row in rows if row.arm in {arm.name for arm in shipped_arms()}]
    with replacing(expanded(str(path))) as temporary:
        draw(temporary, path.suffix[1:], [(row.setting, row.arm, curves[row.setting, row.arm]) for row in drawn])
    progress(f"{path} is drawn")


def _save(path: Path, curves: Mapping[tuple[str, str], Array]) -> None:
    named: dict[str, Any] = {f"{setting}/{arm}": thinned(found) for (setting, arm), found in curves.items()}
    with replacing(expanded(str(path))) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **named)


if __name__ == "__main__":
    sys.exit(main())
