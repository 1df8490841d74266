"""The evaluation of a SAM against true masks, or against the masks of another model."""
