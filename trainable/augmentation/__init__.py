"""Augmentation of images, on the host with albumentations and in batches on the device."""
