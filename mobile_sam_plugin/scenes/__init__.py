"""Generated images with exact masks, to train and to measure on without any data."""
