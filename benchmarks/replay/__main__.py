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
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from benchmarks.replay.arms import ARMS, REFERENCE_NAMES, Arm
from benchmarks.replay.searches import N_WORKERS, Job, Replay, replay_job, set_surrogates
from benchmarks.replay.surrogate import MODEL_NAMES, Surrogate, best_model, fit, held_out_scores, ties
from benchmarks.replay.tables import FOLDER, Table, read_table, stored_tables
from benchmarks.speed.report import machine, number_text, print_json, progress, table_text
from benchmarks.stats import Array, Factor, epochs_to, factor_of, geometric_mean, resampled_factors, thinned
from search.processes.helper_pool import count_cores
from spaces import InputError
from spaces.command import CommandParser, run_command
from spaces.counted import duration_text
from spaces.errors import expanded
from trainable.files import replacing

EPOCHS = 27
# Parts of the budget after which tables give the regret.
PARTS = (0.25, 0.5, 1.0)
LEVELS = (1.0, 0.5)
# Largest factor in a mean over tables; counts for an arm that never reaches the reference's regret.
MOST_FACTOR = 2.0
SEEDS_PER_JOB = 5
TOLD_EVERY_S = 15.0


@dataclass(frozen=True, slots=True)
class Row:
    """Results of one arm on one table.

    Attributes:
        setting: table and epochs of a trial.
        arm: name of the arm.
        n_seeds: number of searches.
        trials, completed: medians over seeds of the number of trials.
        regret: median regrets after a quarter, half and all of the budget, in points.
        mean_regret: mean over all seeds and all epochs but the first tenth, in points.
        epochs_to_1, epochs_to_half: epochs after which the median regret stays at or below 1 point and 0.5 points;
            infinite if it does not.
        factors: against each reference and its budget or not, see `resampled_factors`.
    """

    setting: str
    arm: str
    n_seeds: int
    trials: float
    completed: float
    regret: tuple[float, ...]
    mean_regret: float
    epochs_to_1: float
    epochs_to_half: float
    factors: Mapping[str, Factor]


def main(arguments: list[str] | None = None) -> int:
    parser = CommandParser(
        prog="python -m benchmarks.replay",
        description="Replay searches on stored learning curves: regret by the epoch, for samplers and early stopping.",
        epilog="example: python -m benchmarks.replay --table digits --arm tpe --arm tpe-stop-3 --seeds 20",
    )
    parser.add_argument("--table", action="append", metavar="NAME", help="NAME.csv.gz and NAME.json (default: all)")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="folder of the tables (default: replay/curves)")
    parser.add_argument("--arm", action="append", metavar="NAME", help="beside the references (default: all arms)")
    parser.add_argument("--seeds", type=int, default=50, help="searches per arm (default: 50)")
    parser.add_argument("--first-seed", type=int, default=0, help="default: 0")
    parser.add_argument("--workers", type=int, default=N_WORKERS, metavar="N", help="of a search (default: 4)")
    parser.add_argument("--at-once", type=int, metavar="N", help="processes (default: one per core)")
    parser.add_argument("--surrogate", metavar="NAME", help="for all tables (default: the most accurate for each)")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw regret against epochs: .png or .svg")
    parser.add_argument("--curves", type=Path, metavar="FILE", help="write all regret curves: .npz")
    return run_command(parser, _run, arguments)


def _run(options: argparse.Namespace) -> int:
    _check(options)
    began = time.perf_counter()
    arms = [arm for arm in ARMS if not options.arm or arm.name in (*REFERENCE_NAMES, *options.arm)]
    surrogates, quality = {}, {}
    for table in _tables(options):
        setting = f"{table.name}, {table.epochs} epochs"
        progress(f"{setting}: fitting the surrogate")
        surrogates[setting], quality[setting] = _fitted(table, options.surrogate)
        _print_quality(setting, quality[setting])
    seeds = range(options.first_seed, options.first_seed + options.seeds)
    jobs = _jobs(arms, surrogates, seeds, options.workers)
    replays = _replay_all(jobs, surrogates, options.at_once or count_cores())
    curves = {key: np.array([found.regret for _, found in sorted(several)]) for key, several in replays.items()}
    progress("resampling seeds")
    resampled = _resampled(curves)
    rows = [_row(key, curves, [found for _, found in replays[key]], resampled) for key in curves]
    overall = _overall(list(surrogates), resampled)
    for setting in surrogates:
        of_setting = [row for row in rows if row.setting == setting]
        factors = _factor_table({row.arm: row.factors for row in of_setting})
        print(f"\n{setting}, {options.seeds} seeds\n\n{_table(of_setting)}\n\n{factors}")
    if len(surrogates) > 1:
        print(f"\n{len(surrogates)} tables, geometric mean\n\n{_factor_table(overall)}")
    if options.plot:
        _draw(options.plot, curves)
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
                arm: {name: asdict(factor) for name, factor in factors.items()} for arm, factors in overall.items()
            },
        }
    )
    return 0


def _check(options: argparse.Namespace) -> None:
    if options.seeds < 1 or options.workers < 1 or (options.at_once is not None and options.at_once < 1):
        raise InputError("--seeds, --workers and --at-once must be at least 1.")
    known = [arm.name for arm in ARMS]
    for name in options.arm or ():
        if name not in known:
            raise InputError(f"--arm is `{name}`, but must be one of {', '.join(known)}.")
    if options.surrogate not in (None, *MODEL_NAMES):
        raise InputError(f"--surrogate is `{options.surrogate}`, but must be one of {', '.join(MODEL_NAMES)}.")
    if options.plot and options.plot.suffix not in (".png", ".svg"):
        raise InputError(f"--plot is {options.plot}, but must end with .png or .svg.")
    for flag, path in (("--plot", options.plot), ("--curves", options.curves)):
        if path and not expanded(str(path)).parent.is_dir():
            raise InputError(f"{flag} is {path}, but must lie in a folder that there is: {path.parent} is none.")


def _tables(options: argparse.Namespace) -> Iterator[Table]:
    for name in options.table or stored_tables(options.folder):
        yield read_table(name, options.folder).first_epochs(EPOCHS)


def _fitted(table: Table, model: str | None) -> tuple[Surrogate, dict[str, Any]]:
    # With several threads, such small matrices take several times as long on a busy machine.
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


def _jobs(arms: Sequence[Arm], settings: Mapping[str, Surrogate], seeds: range, n_workers: int) -> list[Job]:
    starts = range(0, len(seeds), SEEDS_PER_JOB)
    jobs = [
        Job(setting, arm, tuple(seeds[at : at + SEEDS_PER_JOB]), n_workers)
        for setting in settings
        for arm in arms
        for at in starts
    ]
    # TPE takes longer than random proposals: first, so that no long job is left for the end.
    return sorted(jobs, key=lambda job: "random" in job.arm.name)


_Key = tuple[str, str]  # setting, name of the arm
_Replays = dict[_Key, list[tuple[int, Replay]]]


def _replay_all(jobs: Sequence[Job], surrogates: Mapping[str, Surrogate], at_once: int) -> _Replays:
    # The processes read these when they start: the matrices are too small for several threads.
    os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", MKL_NUM_THREADS="1")
    replays: _Replays = {(setting, arm.name): [] for setting in surrogates for arm in ARMS}
    n_searches = sum(len(job.seeds) for job in jobs)
    n_done, began = 0, time.perf_counter()
    told = began
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(at_once, len(jobs)), context, set_surrogates, (dict(surrogates),)) as pool:
        futures = {pool.submit(replay_job, job): job for job in jobs}
        try:
            for future in as_completed(futures):
                job = futures[future]
                replays[job.setting, job.arm.name] += zip(job.seeds, future.result(), strict=True)
                n_done += len(job.seeds)
                if time.perf_counter() - told > TOLD_EVERY_S or n_done == n_searches:
                    told = time.perf_counter()
                    left_s = (told - began) / n_done * (n_searches - n_done)
                    progress(f"{n_done:,} of {n_searches:,} searches, about {duration_text(left_s)} left")
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
    return {key: several for key, several in replays.items() if several}


# By setting and arm, then by the title of the reference's column.
_Resampled = Mapping[_Key, Mapping[str, Array]]


def _resampled(curves: Mapping[_Key, Array]) -> _Resampled:
    few = {key: thinned(regrets) for key, regrets in curves.items()}
    return {
        (setting, arm): {
            f"of {name}'s budget" if of_budget else f"× {name}": resampled_factors(
                regrets, few[setting, name], of_budget
            )
            for name in REFERENCE_NAMES
            for of_budget in (False, True)
        }
        for (setting, arm), regrets in few.items()
    }


def _row(key: _Key, curves: Mapping[_Key, Array], replays: Sequence[Replay], resampled: _Resampled) -> Row:
    regrets = curves[key]
    medians = np.median(regrets, axis=0)
    return Row(
        *key,
        n_seeds=len(regrets),
        trials=float(np.median([found.n_trials for found in replays])),
        completed=float(np.median([found.n_completed for found in replays])),
        regret=tuple(float(medians[round(part * len(medians)) - 1]) for part in PARTS),
        mean_regret=float(regrets[:, regrets.shape[1] // 10 :].mean()),
        epochs_to_1=epochs_to(medians, LEVELS[0]),
        epochs_to_half=epochs_to(medians, LEVELS[1]),
        factors={title: factor_of(values) for title, values in resampled[key].items()},
    )


def _overall(settings: Sequence[str], resampled: _Resampled) -> dict[str, dict[str, Factor]]:
    """Factors by arm, as geometric means over the tables; the lowest factor to the last reference first."""
    found = {
        arm: {
            title: factor_of(geometric_mean([resampled[setting, arm][title] for setting in settings], MOST_FACTOR))
            for title in resampled[settings[0], arm]
        }
        for arm in dict.fromkeys(arm for _, arm in resampled)
    }
    return dict(sorted(found.items(), key=lambda item: item[1][f"× {REFERENCE_NAMES[-1]}"].value))


def _factor_table(by_arm: Mapping[str, Mapping[str, Factor]]) -> str:
    titles = next(iter(by_arm.values()))
    cells = [(arm, *map(_factor_text, factors.values())) for arm, factors in by_arm.items()]
    return table_text(("epochs to the same regret", *titles), cells)


def _table(rows: Sequence[Row]) -> str:
    columns = ("arm", "trials", "to the end", "regret at ¼", "½", "budget", "mean", "to 1 point", "to 0.5")
    return table_text(columns, [_cells(row) for row in rows])


def _cells(row: Row) -> tuple[str, ...]:
    return (
        row.arm,
        number_text(row.trials),
        number_text(row.completed),
        *(number_text(regret, 2) for regret in (*row.regret, row.mean_regret)),
        *(f"{epochs:,.0f}" if math.isfinite(epochs) else "never" for epochs in (row.epochs_to_1, row.epochs_to_half)),
    )


def _factor_text(factor: Factor) -> str:
    value, low, high = (f"{v:.2f}" if math.isfinite(v) else "∞" for v in (factor.value, factor.low, factor.high))
    return f"{value} ({low} – {high})"


def _draw(path: Path, curves: Mapping[_Key, Array]) -> None:
    from benchmarks.replay.plot import draw

    with replacing(expanded(str(path))) as temporary:
        draw(temporary, path.suffix[1:], [(*key, regrets) for key, regrets in curves.items()])
    progress(f"{path} is drawn")


def _save(path: Path, curves: Mapping[_Key, Array]) -> None:
    named: dict[str, Any] = {f"{setting}/{arm}": thinned(found) for (setting, arm), found in curves.items()}
    with replacing(expanded(str(path))) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **named)


if __name__ == "__main__":
    sys.exit(main())
