"""From a winner to `final/`: retraining, the test set, exports, the model card."""
