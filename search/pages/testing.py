"""A report's part about the test images, from the results of retraining. It does not open the test images."""

from dataclasses import dataclass

from search.experiment.final_results import ShownMistake, mistake_image
from search.experiment.folder import Experiment
from search.experiment.manifest import use_of_test_set_text
from search.pages.next_commands import retrain_line
from search.pages.page import data_uri
from search.pages.report_data import ReportData
from spaces.counted import counted
from spaces.errors import InputError


@dataclass(frozen=True, slots=True)
class MistakePicture:
    """A wrongly classified test image; `source` is a `data:` URI."""

    source: str
    true: str
    predicted: str
    probability: str


def tested_sentences(known: ReportData) -> list[str]:
    """Sentences about the uses and results of the test images."""
    openings = [use_of_test_set_text(opening) for opening in known.manifest.test_openings]
    if known.final_problem:
        return [f"What retraining left cannot be shown: {known.final_problem}", *openings]
    if known.final is None and openings:
        return ["The test images were opened, but final/metrics.json is not here.", *openings]
    if known.final is None:
        how = f" To retrain the winner and test it once: {retrain_line(known)}" if known.best else ""
        return [f"The test images have not been opened.{how}"]
    final = known.final
    seeds = ", ".join(f"{one.accuracy:.2%}" for one in final.test_accuracy_per_seed)
    return [
        f"Trial {final.trial} was retrained for {counted(final.epochs, 'epoch')} and tested on "
        f"{final.tested_on.n_images:,} images. By seed: {seeds}. The interval is over seeds, not over test images.",
        *openings,
    ]


def mistake_pictures(known: ReportData) -> tuple[list[MistakePicture], str]:
    """The most confident mistakes and their caption; without mistakes, an empty list and the reason."""
    if known.final is None:
        return [], ""
    mistakes = known.final.surest_mistakes
    if mistakes is None:
        return [], "This experiment was retrained by a version that did not keep the images that were named wrongly."
    if not mistakes:
        return [], "The exported seed named every test image rightly."
    try:
        pictures = [_mistake(known.experiment, mistake) for mistake in mistakes]
    except InputError as error:
        return [], f"The images cannot be shown: {error.lines[0]}"
    caption = f"The {len(pictures)} test images that the exported seed named wrongly with the highest probabilities."
    return pictures, caption


def _mistake(experiment: Experiment, mistake: ShownMistake) -> MistakePicture:
    source = data_uri(mistake_image(experiment, mistake))
    return MistakePicture(source, mistake.true[:60], mistake.predicted[:60], f"sure to {mistake.probability:.1%}")
