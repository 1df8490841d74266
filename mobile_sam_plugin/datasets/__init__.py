"""Images with masks: folders and files of every common form, read one way."""
