"""A training loop of your own around `FitEvaluate`, on the embedded digits: `python docs/training_loop.py`.

Keeps the best epoch, and stops when the validation accuracy has not risen for two epochs.
"""

import tempfile
from pathlib import Path

import torch

from spaces import Dataset, Hyperparameters
from trainable.compute import choose_compute
from trainable.data.datasets import prepare_training_data
from trainable.fit_evaluate import FitEvaluate
from trainable.seeding import RunSeed

MOST_EPOCHS, PATIENCE = 4, 2

torch.set_num_threads(1)  # the network is small: more threads on a CPU mostly wait for each other
# Half of the training images in each epoch, so that the accuracy is seen twice as often.
data = prepare_training_data(Dataset(name="digits", image_size=18, images_per_epoch=576))
config = Hyperparameters(lr=0.02, batch_size=16, flip_p=0.0)
compute, reason = choose_compute(device="auto", precision="auto")
run = FitEvaluate(data.train, data.validation, config, RunSeed(experiment=0), compute)

with tempfile.TemporaryDirectory() as folder:
    best, best_epoch = 0.0, 0
    while run.epoch < MOST_EPOCHS and run.epoch - best_epoch < PATIENCE:
        result = run.run_epoch()
        print(f"epoch {result.epoch}: training loss {result.train_loss:.4f}, accuracy {result.validation_accuracy:.2%}")
        if result.diverged:
            break
        if result.validation_accuracy > best:
            best, best_epoch = result.validation_accuracy, result.epoch
            run.save(Path(folder))
    if best_epoch:
        run.restore(Path(folder))

log_probabilities = run.predict(data.validation)  # (N, 10) float32, in the order of the images
accuracy = (log_probabilities.argmax(axis=1) == data.validation.labels).mean()
print(f"kept epoch {run.epoch}: {accuracy:.2%} of {len(data.validation)} validation images")
